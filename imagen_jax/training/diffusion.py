"""The diffusion objective: what a stage is trained to do; all randomness of a step is drawn in one function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.diffusion.process import sample_timesteps
from imagen_jax.images.array import scale_size, to_float
from imagen_jax.images.resize import resize
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.stages.loss import DIFFUSION_BATCH_AXES, DiffusionBatch, Losses, diffusion_loss
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.text import null_text
from imagen_jax.text.encoder import TextCondition, TextEncoder
from imagen_jax.text.tokenizer import FEATURE_AXES
from imagen_jax.training.objective import Batch, Metrics

TRAINING_AXES = {"image": IMAGE, **FEATURE_AXES}
# equal bins of the noise level in [0, 1] by which losses are reported; the last is almost pure noise
NOISE_BINS = 5
_MASK_KEY = 2**16  # folded into a step's key; the others are split from it, with small numbers


@dataclasses.dataclass(frozen=True)
class DiffusionObjective:
    """The training objective of a stage, an `Objective`; its frozen network is the text encoder.

    Attributes:
        stage: the stage to train.
        encoder: the frozen text encoder.
    """

    example_axes: ClassVar[Any] = DIFFUSION_BATCH_AXES

    stage: Stage
    encoder: TextEncoder

    @property
    def batch_axes(self) -> Any:
        """The names of the axes of a batch's arrays."""
        return training_axes(self.stage.config)

    def with_mesh(self, mesh: Mesh) -> DiffusionObjective:
        """Returns the objective with a network that shards its activations."""
        return dataclasses.replace(self, stage=self.stage.with_mesh(mesh))

    def init(self, key: jax.Array) -> Any:
        """Returns random parameters of the stage's network."""
        return self.stage.init(key)

    def draw(self, networks: Any, batch: Batch, key: jax.Array, step: jax.Array) -> DiffusionBatch:
        """Returns the examples of a batch; `networks` are the encoder's parameters. See `make_diffusion_batch`."""
        return make_diffusion_batch(self.stage, self.encoder, networks, batch, key)

    def loss(self, params: Any, networks: Any, examples: DiffusionBatch) -> Losses:
        """Returns the loss of each example, see `diffusion_loss`."""
        return diffusion_loss(self.stage, params, examples)

    def metrics(self, batch: Batch, losses: Losses) -> Metrics:
        """Returns scalars, and two arrays from `loss_by_noise_bin`.

        `full_captions` is the fraction of captions that use every token position: truncated ones, and those that just
        fit. `bound_bits` is the variational bound, if variances are learned.
        """
        metrics = {"full_captions": jnp.mean(batch["mask"][:, -1]), **loss_by_noise_bin(losses)}
        return metrics if losses.vlb is None else {**metrics, "bound_bits": jnp.mean(losses.vlb)}


def training_axes(config: StageConfig) -> dict[str, str]:
    """Returns the names of the axes of the arrays in a batch for a stage, see `make_diffusion_batch`."""
    objects = {"objects": IMAGE} if config.inpainting.needs_objects else {}
    return TRAINING_AXES | objects | ({"keep": VECTOR} if config.diffusion.never_dropped else {})


def make_diffusion_batch(
    stage: Stage, encoder: TextEncoder, encoder_params: Any, batch: Batch, key: jax.Array
) -> DiffusionBatch:
    """Returns the examples of a batch at random times, with all randomness of the step drawn.

    Args:
        stage: the stage to train.
        encoder: the frozen text encoder.
        encoder_params: its parameters.
        batch: `image` uint8 or uint16 [B, H, W, C], full images or crops; `tokens` int32 [B, L], or embeddings
            [B, L, D] from a cache; `mask` bool [B, L]; `objects` [B, H, W, 1] if masks are drawn of them; `keep`
            bool [B] if some captions are never dropped.
        key: the key of the step.
    """
    return noised_examples(stage, batch, key, lambda key: draw_text(stage, encoder, encoder_params, batch, key))


def draw_text(stage: Stage, encoder: TextEncoder, encoder_params: Any, batch: Batch, key: jax.Array) -> TextCondition:
    """Returns the text of a batch, see `make_diffusion_batch`, with random captions dropped."""
    text = TextCondition(encoder.encode(encoder_params, batch["tokens"], batch["mask"]), batch["mask"])
    dropped = null_text(stage.config.diffusion.null_text, encoder, encoder_params)
    return replace_text(text, dropped, dropped_captions(key, batch, stage.config.diffusion.cond_drop_prob))


def noised_examples(stage: Stage, batch: Batch, key: jax.Array, text_of: Callable[[jax.Array], Any]) -> DiffusionBatch:
    """Returns the examples of a batch, see `make_diffusion_batch`, with their text from a function.

    Args:
        stage: the stage to train.
        batch: as there.
        key: the key of the step.
        text_of: returns the text of the examples for the key by which captions are dropped.
    """
    time_key, noise_key, drop_key, aug_key, dropout_key = jax.random.split(key, 5)
    x = to_float(batch["image"])
    text = text_of(drop_key)
    condition = draw_low_res(stage, aug_key, x) if stage.is_super_resolution else {}
    if stage.config.inpainting.enabled:
        condition |= _known_condition(stage, jax.random.fold_in(key, _MASK_KEY), x, batch.get("objects"))

    t = stage.schedule.round_up(sample_timesteps(time_key, x.shape[0]))
    dropout_keys = jax.random.split(dropout_key, x.shape[0]) if stage.config.model.dropout else None
    eps = jax.random.normal(noise_key, (len(x), *stage.z_shape(x.shape[1:3])))
    return DiffusionBatch(x, text, condition, t, eps, dropout_keys)


def dropped_captions(key: jax.Array, batch: Batch, rate: float) -> jax.Array:
    """Returns which captions are dropped for classifier-free guidance (arXiv:2205.11487, Section 2.2), bool [B].

    Args:
        key: decides which ones.
        batch: `mask` [B, L]; `keep` bool [B], which ones are never dropped, if there are such.
        rate: probability of each other caption.
    """
    drop = jax.random.bernoulli(key, rate, (len(batch["mask"]),))
    return drop & ~batch["keep"] if "keep" in batch else drop


def replace_text(text: TextCondition, dropped: TextCondition, drop: jax.Array) -> TextCondition:
    """Replaces captions by the null text.

    Args:
        text: embeddings [B, L, D] and mask [B, L].
        dropped: the null text, embeddings [L, D] and mask [L].
        drop: which captions, bool [B].

    Returns:
        Embeddings [B, L, D] and mask [B, L].
    """
    embeddings, mask = text
    null_embeddings, null_mask = dropped
    embeddings = jnp.where(drop[:, None, None], null_embeddings.astype(embeddings.dtype), embeddings)
    return TextCondition(embeddings, jnp.where(drop[:, None], null_mask, mask))


def loss_by_noise_bin(losses: Losses) -> Metrics:
    """Returns sums `band_losses` and counts `band_counts` of losses [NOISE_BINS]; a bin may have no example."""
    bin_index = jnp.clip((losses.noise_level * NOISE_BINS).astype(jnp.int32), 0, NOISE_BINS - 1)
    members = bin_index[:, None] == jnp.arange(NOISE_BINS)
    # selected, not multiplied by 0, so that a NaN stays in its own bin
    sums = jnp.sum(jnp.where(members, losses.loss[:, None], 0.0), axis=0)
    return {"band_losses": sums, "band_counts": jnp.sum(members, axis=0)}


def draw_low_res(stage: Stage, key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the low-resolution condition of targets x [B, H, W, C], at random augmentation levels.

    If x is a crop, the condition is the same crop, downsampled by the factor of full images.
    """
    level_key, noise_key = jax.random.split(key)
    low_res = resize(x, *scale_size(x.shape[1:3], stage.image_shape[:2], stage.low_res_shape[:2]))
    level = stage.aug_schedule.round_up(stage.aug_levels.sample(level_key, x.shape[0], stage.aug_schedule))
    return stage.augment_low_res(low_res, level, jax.random.normal(noise_key, stage.aug_noise_shape(low_res)))


def _known_condition(stage: Stage, key: jax.Array, x: jax.Array, objects: jax.Array | None) -> dict[str, jax.Array]:
    """Returns what a stage that inpaints sees of targets x [B, H, W, C], outside of random masks.

    `objects` are maps of their objects [B, H, W, 1], or None.
    """
    assert stage.masks is not None
    size, maps = (x.shape[1], x.shape[2]), None if objects is None else objects[..., 0]
    return stage.mask_known(x, stage.masks.sample(jax.random.split(key, x.shape[0]), size, maps))
