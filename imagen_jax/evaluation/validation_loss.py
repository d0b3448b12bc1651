"""The validation loss by noise level: the training loss on real images of a validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.schedules import logsnr_from_cosine_time
from imagen_jax.images.array import to_float
from imagen_jax.images.resize import resize
from imagen_jax.parallel import multihost, runtime
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import num_batch_shards
from imagen_jax.stages.loss import DiffusionBatch, diffusion_loss
from imagen_jax.stages.stage import Stage
from imagen_jax.text.encoder import TEXT_CONDITION_AXES, TextCondition

# Names of the metrics: `validation_loss_at_noise/0.05` and so on.
METRIC_PREFIX = "validation_loss_at_noise/"
# Values of `schedules.cosine_time`, from little noise to much.
NOISE_LEVELS = tuple((i + 0.5) / 10 for i in range(10))
SEED = 0
_MASK_KEY = 2**16  # folded into an image's key; the noise has smaller numbers
_AXES = {"image": IMAGE, "low_res": IMAGE, **TEXT_CONDITION_AXES._asdict(), "keys": "batch ..."}

ValidationLossFn = Callable[..., np.ndarray]


def make_validation_loss(stage: Stage, mesh: Mesh, batch_size: int) -> ValidationLossFn:
    """Returns a function `(params, images [N, H, W, C], text, low_res=None) -> losses [N, NOISE_LEVELS]`.

    The loss is the training loss on full images without text dropout. The noise, the augmentation level and the mask of
    image i depend on i alone, neither on the batch nor on the mesh, so that losses of different runs and steps are
    comparable. `low_res` are the images [N, h, w, C] in [-1, 1] that the stage starts from; by default it is given
    images that are downsampled.

    Args:
        stage: the stage to evaluate.
        mesh: batches are split over all its devices.
        batch_size: images at once, rounded up to a multiple of the mesh's batch parts.
    """

    def losses_at_level(params: Any, batch: Any, level: jax.Array) -> jax.Array:
        x, keys = to_float(batch["image"]), jax.random.wrap_key_data(batch["keys"])
        text = TextCondition(batch["embeddings"], batch["mask"])
        condition = {}
        if stage.is_super_resolution:
            low_res = batch["low_res"] if "low_res" in batch else resize(x, *stage.low_res_shape[:2])
            aug_level = jax.vmap(lambda key: stage.aug_levels.sample(key, 1, stage.aug_schedule)[0])(keys)
            condition = stage.augment_low_res(
                low_res, aug_level, samplers.gaussian_noise(keys, 1, stage.aug_noise_shape(low_res)[1:])
            )
        if stage.masks is not None:
            mask_keys = jax.vmap(lambda key: jax.random.fold_in(key, _MASK_KEY))(keys)
            condition |= stage.mask_known(x, stage.masks.sample(mask_keys, (x.shape[1], x.shape[2])))
        t = jnp.clip(stage.schedule.inverse_logsnr(logsnr_from_cosine_time(level)), 0.0, 1.0)
        eps = samplers.gaussian_noise(keys, 0, stage.z_shape(x.shape[1:3]))
        examples = DiffusionBatch(x, text, condition, jnp.broadcast_to(t, x.shape[:1]), eps)
        return diffusion_loss(stage, params, examples).loss

    program = jax.jit(
        losses_at_level, out_shardings=batch_sharding(mesh, VECTOR), compiler_options=runtime.compiler_options(mesh)
    )

    def validation_loss(
        params: Any, images: np.ndarray, text: TextCondition, low_res: np.ndarray | None = None
    ) -> np.ndarray:
        losses = []
        for batch, count in real_batches(images, text, batch_size, mesh, low_res):
            by_level = [program(params, batch, jnp.float32(level)) for level in NOISE_LEVELS]
            gathered = np.stack([multihost.all_gather(level_losses) for level_losses in by_level], axis=1)
            losses.append(gathered[:count])
        return np.concatenate(losses)

    return validation_loss


def real_batches(
    images: np.ndarray, text: TextCondition, batch_size: int, mesh: Mesh, low_res: np.ndarray | None = None
) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """Yields batches of images on a mesh, and how many of each are no padding.

    Args:
        images: uint8 or uint16 [N, H, W, C].
        text: of the images.
        batch_size: images at once, rounded up to a multiple of the mesh's batch parts.
        mesh: batches are split over all its devices.
        low_res: what goes with them [N, h, w, C]; None for nothing.

    Yields:
        `image`, `embeddings`, `mask` and `keys`, the data of a key for each image, which depends on its index alone;
        and `low_res` if it is given.
    """
    # all batches have the same size, a multiple of the batch shards: the last one is padded
    size = padded_size(min(batch_size, len(images)), num_batch_shards(mesh))
    arrays = {"image": images, **text._asdict(), **({} if low_res is None else {"low_res": low_res})}
    for start in range(0, len(images), size):
        part = {name: pad_batch(array[start : start + size], size) for name, array in arrays.items()}
        keys = np.asarray(jax.random.key_data(samplers.sample_keys(SEED, jnp.arange(start, start + size))))
        axes = {name: _AXES[name] for name in ("keys", *part)}
        yield shard_host_batch({"keys": keys, **part}, axes, mesh), len(images[start : start + size])


def validation_metrics(losses: np.ndarray) -> dict[str, float]:
    """Returns the mean losses by noise level as metrics, from losses [N, NOISE_LEVELS]."""
    means = losses.mean(axis=0)
    return {f"{METRIC_PREFIX}{level:.2f}": float(mean) for level, mean in zip(NOISE_LEVELS, means, strict=True)}


def mean_validation_loss(metrics: dict[str, float]) -> float:
    """Returns the mean of the metrics of `validation_metrics` over noise levels."""
    return float(np.mean([value for name, value in metrics.items() if name.startswith(METRIC_PREFIX)]))
