"""Sampling from one stage: its sampler as one pure function, compiled for a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.fit import needs_variance
from imagen_jax.config.schema import SamplingConfig
from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.guidance import Guidance, get_threshold_fn
from imagen_jax.diffusion.process import predict_x0_and_eps
from imagen_jax.diffusion.schedules import alpha_from_logsnr, cosine_time, sigma_from_logsnr
from imagen_jax.diffusion.tiling import tiled_predict
from imagen_jax.images.array import image_dtype, to_float, to_uint
from imagen_jax.parallel import multihost, runtime
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import num_batch_shards
from imagen_jax.parallel.sharding import replicate_conv_kernels
from imagen_jax.stages.stage import Stage, check_rows
from imagen_jax.text.encoder import TextCondition
from imagen_jax.text.tokenizer import FEATURE_AXES

SAMPLING_MESH = {"data": -1, "fsdp": 1, "spatial": 1}  # every device has full networks, and images of its own
# what a sampler takes, apart from weights
SAMPLING_AXES = {**FEATURE_AXES, "keys": "batch ...", "low_res": IMAGE, "guidance_scale": VECTOR}
SampleFn = Callable[..., jax.Array]
PredictFn = Callable[..., tuple[jax.Array, jax.Array | None]]


def make_sample_fn(stage: Stage, settings: SamplingConfig) -> SampleFn:
    """Makes the sampler of a stage as one pure function, to be compiled.

    Args:
        stage: the stage to sample from.
        settings: sampling settings, such as the `sampling` of its config.

    Returns:
        `(params, encoder_params, tokens [B, L], mask [B, L], keys [B], low_res, guidance_scale=None) -> [B, H, W, C]`;
        `low_res` is [B, h, w, C] or None; `guidance_scale` [B] replaces that of the settings; images are in [-1, 1].
    """
    sampler = make_sampler(settings)
    limit = get_threshold_fn(settings.threshold, settings.dynamic_threshold_percentile)
    default_guidance = _make_guidance(settings)
    predict = _make_predict_fn(stage, settings)

    def sample(
        params: Any,
        encoder_params: Any,
        tokens: jax.Array,
        mask: jax.Array,
        keys: jax.Array,
        low_res: jax.Array | None,
        guidance_scale: jax.Array | None = None,
    ) -> jax.Array:
        guidance = default_guidance
        if guidance_scale is not None:
            guidance = dataclasses.replace(default_guidance, scale=guidance_scale)
        init_key, step_key, aug_key = jnp.unstack(jax.vmap(functools.partial(jax.random.split, num=3))(keys), axis=1)
        text = stage.encoder.encode(encoder_params, tokens, mask)
        null_text = TextCondition(*stage.unconditional(encoder_params))
        condition = {}
        if low_res is not None:
            levels = jnp.full(low_res.shape[:1], settings.aug_level)
            condition = stage.augment_low_res(low_res, levels, samplers.gaussian_noise(aug_key, 0, low_res.shape[1:]))

        def predict_fn(inputs: StageInputs) -> tuple[jax.Array, jax.Array | None]:
            return predict(params, inputs.z, inputs.logsnr, *inputs.text, inputs.condition)

        def denoise(z: jax.Array, t: jax.Array) -> Any:
            logsnr = stage.schedule.logsnr(t)
            # the step's index on a uniform grid of times
            step = jnp.round((1.0 - t) * settings.num_inference_steps)
            inputs = StageInputs(z, logsnr, TextCondition(text, mask), condition)
            prediction, v = guided_prediction(predict_fn, inputs, null_text, guidance, step)
            x_hat, _ = predict_x0_and_eps(
                prediction, z, alpha_from_logsnr(logsnr), sigma_from_logsnr(logsnr), stage.prediction
            )
            return (limit(x_hat), v) if needs_variance(settings) else limit(x_hat)

        z = samplers.gaussian_noise(init_key, 0, stage.image_shape)
        return jnp.clip(sampler(denoise, z, step_key, stage.schedule, settings.num_inference_steps), -1.0, 1.0)

    return sample


def jit_sample_fn(stage: Stage, mesh: Mesh | AbstractMesh) -> jax.stages.Wrapped:
    """Returns the jitted sampler of a stage, see `make_sample_fn`, with images sharded over the mesh.

    Raises:
        ConfigError: the rows of the images cannot be sharded as the mesh says.
    """
    check_rows(stage.config, mesh.shape["spatial"])
    sample = make_sample_fn(stage.with_mesh(mesh), stage.config.sampling)
    return jax.jit(
        lambda params, *rest: sample(replicate_conv_kernels(params, mesh), *rest),
        out_shardings=batch_sharding(mesh, IMAGE),
        compiler_options=runtime.compiler_options(mesh),
    )


def _make_guidance(settings: SamplingConfig) -> Guidance:
    """Returns the guidance of sampling settings."""
    return Guidance(
        scale=settings.guidance_scale,
        interval=settings.guidance_interval,
        rescale=settings.guidance_rescale,
        oscillating=settings.oscillating_guidance,
        low=settings.guidance_low,
        warmup_steps=settings.guidance_warmup_steps,
    )


def make_sampler(settings: SamplingConfig) -> samplers.Sampler:
    """Returns the sampler of sampling settings."""
    return samplers.get_sampler(
        settings.sampler,
        samplers.SamplerConfig(
            timestep_spacing=settings.timestep_spacing,
            eta=settings.eta,
            variance_type=settings.variance_type,  # type: ignore[arg-type]  # one of its choices
            s_churn=settings.s_churn,
            s_tmin=settings.s_tmin,
            s_tmax=settings.s_tmax,
            s_noise=settings.s_noise,
        ),
    )


def _make_predict_fn(stage: Stage, settings: SamplingConfig) -> PredictFn:
    """Returns the stage's `predict`, for full images or, as the settings say, in tiles.

    Predictions of tiles are merged before guidance and thresholding, which then see the full image.
    """
    tile, overlap = settings.tile_hw, settings.tile_overlap
    if not any(tile):
        return stage.predict

    def predict(
        params: Any, z: jax.Array, logsnr: jax.Array, text: jax.Array, mask: jax.Array, condition: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array | None]:
        def of_tile(z: jax.Array, *low_res: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            here = condition | ({"low_res": low_res[0]} if low_res else {})
            return stage.predict(params, z, logsnr, text, mask, here)

        return tiled_predict(of_tile, [z, condition["low_res"]] if condition else [z], tile, overlap)

    return predict


class StageInputs(NamedTuple):
    """What a stage's network is called with.

    Attributes:
        z: noisy images z_t [B, H, W, C].
        logsnr: their log signal-to-noise ratio, a scalar.
        text: the text condition.
        condition: from `Stage.augment_low_res`, or empty for a base stage.
    """

    z: jax.Array
    logsnr: jax.Array
    text: TextCondition
    condition: dict[str, jax.Array]


def guided_prediction(
    predict_fn: Callable[[StageInputs], tuple[jax.Array, jax.Array | None]],
    inputs: StageInputs,
    null_text: TextCondition,
    guidance: Guidance,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """Returns (prediction, v) at z_t under guidance, [B, H, W, C] each; both halves in one forward of a doubled batch.

    Args:
        predict_fn: a stage's network with its parameters.
        inputs: of the conditional half.
        null_text: stands for a dropped caption, embeddings [L, D] and mask [L].
        guidance: combines both halves.
        step: the sampler's step, counted from 0, a scalar.

    Returns:
        The guided prediction, and the v of the conditional half: variances are not guided. None if not learned.
    """
    z, logsnr, text, condition = inputs
    if guidance.is_identity:
        return predict_fn(StageInputs(z, jnp.broadcast_to(logsnr, z.shape[:1]), text, condition))

    def doubled(array: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.concatenate([array, jnp.broadcast_to(other, array.shape).astype(array.dtype)])

    both, both_v = predict_fn(
        StageInputs(
            doubled(z, z),
            jnp.broadcast_to(logsnr, (2 * z.shape[0],)),
            TextCondition(doubled(text.embeddings, null_text.embeddings), doubled(text.mask, null_text.mask)),
            {name: doubled(array, array) for name, array in condition.items()},
        )
    )
    conditional, unconditional = jnp.split(both, 2)
    guided = guidance(conditional, unconditional, cosine_time(logsnr), step)
    return guided, None if both_v is None else jnp.split(both_v, 2)[0]


def stage_keys(seed: int, indices: jax.Array, stage_index: int) -> jax.Array:
    """Returns the keys [B] of samples `indices` in the stage with an index in the cascade."""
    return jax.vmap(lambda key: jax.random.fold_in(key, stage_index))(samplers.sample_keys(seed, indices))


class StageSampler:
    """The sampler of one stage, compiled for a mesh.

    Args:
        stage: the stage to sample from.
        mesh: batches are split over all its devices.
        stage_index: the stage's index in the cascade; each index has noise of its own.

    Raises:
        ConfigError: the rows of the images cannot be sharded as the mesh says.
    """

    def __init__(self, stage: Stage, mesh: Mesh, stage_index: int) -> None:
        self._stage, self._mesh, self._stage_index = stage, mesh, stage_index
        self._dtype = image_dtype(stage.config.sampling.bits, "sampling bits")
        self._program = jit_sample_fn(stage, mesh)

    def sample(
        self,
        params: Any,
        encoder_params: Any,
        prompts: Sequence[str],
        seed: int,
        first_index: int,
        low_res: np.ndarray | None = None,
        guidance_scale: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples one batch.

        Args:
            params: weights of the network.
            encoder_params: weights of the text encoder.
            prompts: of samples `first_index`, `first_index` + 1, …; B of them.
            seed: of the noise.
            first_index: index of the first sample.
            low_res: the images that a super-resolution stage enlarges, uint8 or uint16 [B, h, w, C].
            guidance_scale: float [B], in place of the config's scale.

        Returns:
            Images [B, H, W, C], uint8 or uint16 as the config's `sampling.bits` says.
        """
        count = len(prompts)
        # all devices need equal shards: a short batch is padded, and the padding is cut off again
        size = padded_size(count, num_batch_shards(self._mesh))
        tokens, mask = self._stage.encoder.tokenize(pad_batch(prompts, size, ""))
        keys = stage_keys(seed, jnp.arange(first_index, first_index + size), self._stage_index)
        batch = {"tokens": tokens, "mask": mask, "keys": np.asarray(jax.random.key_data(keys))}
        if low_res is not None:
            batch["low_res"] = pad_batch(low_res, size)
        if guidance_scale is not None:
            batch["guidance_scale"] = pad_batch(np.asarray(guidance_scale, np.float32), size, 1)
        placed = shard_host_batch(batch, SAMPLING_AXES, self._mesh)
        images = self._program(
            params,
            encoder_params,
            placed["tokens"],
            placed["mask"],
            jax.random.wrap_key_data(placed["keys"]),
            to_float(placed["low_res"]) if low_res is not None else None,
            placed.get("guidance_scale"),
        )
        return multihost.all_gather(to_uint(images, self._dtype))[:count]
