"""Sampling from one stage as pure functions: its denoiser, with guidance and thresholding, and its sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.fit import needs_variance
from imagen_jax.config.schema import SamplingConfig
from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.guidance import Guidance, get_threshold_fn
from imagen_jax.diffusion.inpainting import keep_known
from imagen_jax.diffusion.pair_editing import edit_pairs
from imagen_jax.diffusion.process import predict_x0_and_eps
from imagen_jax.diffusion.schedules import Schedule, alpha_from_logsnr, cosine_time, sigma_from_logsnr
from imagen_jax.diffusion.tiling import tiled_predict
from imagen_jax.models.attention_control import AttentionControl
from imagen_jax.parallel import runtime
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.parallel.batching import batch_sharding
from imagen_jax.parallel.sharding import replicate_conv_kernels
from imagen_jax.stages.conditions import split_keys, start_condition
from imagen_jax.stages.stage import CONDITION_AXES, Stage, check_rows, enlarged_size
from imagen_jax.stages.vae import VAEInputs, decode_inputs
from imagen_jax.text.encoder import TEXT_CONDITION_AXES, TextCondition

SAMPLING_MESH = {"data": -1, "fsdp": 1, "spatial": 1}  # every device has full networks, and images of its own
# the arguments of a `SampleFn` after the parameters
SAMPLING_AXES = (TEXT_CONDITION_AXES, TEXT_CONDITION_AXES, "batch ...", IMAGE)
_SPREAD = 1 / 32  # of the shorter side, by which masks of what an edit changes are wider
SampleFn = Callable[..., jax.Array]
PredictFn = Callable[..., tuple[jax.Array, jax.Array | None]]


class StageInputs(NamedTuple):
    """What a stage's network is called with.

    Attributes:
        z: noisy images z_t [B, H, W, C].
        logsnr: their log signal-to-noise ratio, a scalar.
        text: the text condition.
        condition: see `Stage.predict`.
        control: what attention takes over from other examples; None for nothing.
    """

    z: jax.Array
    logsnr: jax.Array
    text: TextCondition
    condition: dict[str, jax.Array]
    control: AttentionControl | None = None


class Pairs(NamedTuple):
    """How images are edited, each beside its source: sources are at even rows, and after each the edited image.

    Attributes:
        image: the sources, [B, H, W, C] in [-1, 1].
        alignment: [B, L, L], see `AttentionControl`, as the following.
        text_steps: [B] in [0, 1]: in which first share of the steps attention to text is taken over.
        pixel_steps: [B] in [0, 1]: likewise attention to pixels.
        threshold: [B], see `edit_pairs`.
    """

    image: jax.Array
    alignment: jax.Array
    text_steps: jax.Array
    pixel_steps: jax.Array
    threshold: jax.Array

    def control(self, progress: jax.Array) -> AttentionControl:
        """Returns what attention takes over when this share of the steps is taken."""
        shares = ((progress < steps).astype(jnp.float32) for steps in (self.text_steps, self.pixel_steps))
        return AttentionControl(self.alignment, *shares)


PAIRS_AXES: Any = Pairs(IMAGE, "batch ...", VECTOR, VECTOR, VECTOR)  # type: ignore[arg-type]  # names in the place of arrays


class Conditions(NamedTuple):
    """What the images of a batch depend on during a walk, [B, ...] each.

    Attributes:
        text: the prompts.
        null_text: in their place in the unconditional half: the null text, or negative prompts.
        condition: see `start_condition`.
        guidance_scale: float [B].
        keys: keys [B] for the noise of the steps.
        known: `image` [B, H, W, C] and `mask` [B, H, W, 1], if only what is masked is drawn; else None.
        pairs: how images are edited beside their sources; else None.
    """

    text: TextCondition
    null_text: TextCondition
    condition: dict[str, jax.Array]
    guidance_scale: jax.Array
    keys: jax.Array
    known: dict[str, jax.Array] | None = None
    pairs: Pairs | None = None


def make_sampler(settings: SamplingConfig, schedule: Schedule) -> samplers.Sampler:
    """Returns the sampler of sampling settings for a noise schedule."""
    return samplers.get_sampler(
        settings.sampler,
        schedule,
        samplers.SamplerConfig(
            eta=settings.eta,
            inversion_iterations=settings.inversion_iterations,
            variance_type=settings.variance_type,  # type: ignore[arg-type]  # one of its choices
            s_churn=settings.s_churn,
            s_tmin=settings.s_tmin,
            s_tmax=settings.s_tmax,
            s_noise=settings.s_noise,
        ),
    )


def make_sample_fn(stage: Stage, settings: SamplingConfig) -> SampleFn:
    """Makes the sampler of a stage as one pure function, with the settings' number of steps.

    Args:
        stage: the stage to sample from.
        settings: sampling settings, such as the `sampling` of its config.

    Returns:
        `(params, text, null_text, keys [B], low_res=None) -> [B, H, W, C]`; `low_res` is float [B, h, w, C];
        images are in [-1, 1].
    """
    if stage.is_vae:
        return _make_vae_sample_fn(stage, settings)
    sampler = make_sampler(settings, stage.schedule)
    times = sampler.times(settings.num_inference_steps, settings.timestep_spacing)
    guided = is_guided(settings, settings.guidance_scale)

    def sample(
        params: Any,
        text: TextCondition,
        null_text: TextCondition,
        keys: jax.Array,
        low_res: jax.Array | None = None,
    ) -> jax.Array:
        size = stage.image_shape[:2] if low_res is None else enlarged_size(stage, low_res)
        start_keys, step_keys, aug_keys = split_keys(keys)
        z = samplers.gaussian_noise(start_keys, 0, stage.z_shape(size))
        condition = start_condition(stage, z.shape, low_res, settings.aug_level, aug_keys)
        scale = jnp.full(keys.shape, settings.guidance_scale, jnp.float32)
        conditions = Conditions(text, null_text, condition, scale, step_keys)
        denoise = make_denoise_fn(stage, settings, guided, params, conditions, times)
        return stage.decode(params, sampler(denoise, z, times, step_keys))

    return sample


def _make_vae_sample_fn(stage: Stage, settings: SamplingConfig) -> SampleFn:
    """Makes the sampler of a VAE's prior, see `make_sample_fn`."""

    def sample(
        params: Any,
        text: TextCondition,
        null_text: TextCondition,
        keys: jax.Array,
        low_res: jax.Array | None = None,
    ) -> jax.Array:
        def each(value: float) -> jax.Array:
            return jnp.full(keys.shape, value, jnp.float32)

        size = stage.image_shape[:2] if low_res is None else enlarged_size(stage, low_res)
        uses_text, temperature = each(settings.guidance_scale), each(settings.temperature)
        inputs = VAEInputs(text, null_text, uses_text, keys, low_res, None, temperature, each(settings.aug_level))
        return decode_inputs(stage, size, params, inputs)

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


def is_guided(settings: SamplingConfig, scales: np.ndarray | float) -> bool:
    """Returns whether guidance at these scales [B] needs the unconditional half at all."""
    return bool(np.any(np.asarray(scales) != 1)) or (settings.oscillating_guidance and settings.guidance_low != 1)


def make_denoise_fn(
    stage: Stage,
    settings: SamplingConfig,
    guided: bool,
    params: Any,
    conditions: Conditions,
    ends: Any,
    steps: jax.Array | None = None,
) -> Callable[[jax.Array, jax.Array], Any]:
    """Returns the denoiser of a batch, with guidance and thresholding.

    Args:
        stage: the stage.
        settings: its sampling settings.
        guided: whether there is an unconditional half.
        params: parameters of the network.
        conditions: of the batch.
        ends: times whose first and last are those of the walk.
        steps: number of steps; by default as many as there are times.
    """
    limit = get_threshold_fn(settings.threshold, settings.dynamic_threshold_percentile, settings.dynamic_threshold_max)
    guidance = _make_guidance(settings, conditions.guidance_scale) if guided else Guidance(1.0)
    predict = _make_predict_fn(stage, settings)
    count = len(ends) - 1 if steps is None else steps

    def predict_fn(inputs: StageInputs) -> tuple[jax.Array, jax.Array | None]:
        return predict(params, *inputs)

    def denoise(z: jax.Array, t: jax.Array) -> Any:
        logsnr = stage.schedule.logsnr(t)
        # the step's index among uniform times
        step = jnp.round((ends[0] - t) / (ends[0] - ends[-1]) * count)
        control = None if conditions.pairs is None else conditions.pairs.control(step / count)
        inputs = StageInputs(z, logsnr, conditions.text, conditions.condition, control)
        prediction, v = guided_prediction(predict_fn, inputs, conditions.null_text, guidance, step)
        x_hat, _ = predict_x0_and_eps(
            prediction, z, alpha_from_logsnr(logsnr), sigma_from_logsnr(logsnr), stage.prediction
        )
        return (limit(x_hat), v) if needs_variance(settings) else limit(x_hat)

    if conditions.pairs is not None:
        spread = max(1, round(min(conditions.pairs.image.shape[1:3]) * _SPREAD))
        pairs = conditions.pairs
        return edit_pairs(denoise, pairs.image, pairs.threshold, spread, clips=stage.codec is None)
    return denoise if conditions.known is None else keep_known(denoise, **conditions.known)


def _make_guidance(settings: SamplingConfig, scale: jax.Array) -> Guidance:
    """Returns the guidance of sampling settings at scales [B]."""
    return Guidance(
        scale=scale,
        interval=settings.guidance_interval,
        rescale=settings.guidance_rescale,
        oscillating=settings.oscillating_guidance,
        low=settings.guidance_low,
        warmup_steps=settings.guidance_warmup_steps,
    )


def _make_predict_fn(stage: Stage, settings: SamplingConfig) -> PredictFn:
    """Returns the stage's `predict`, for full images or, as the settings say, in tiles.

    Predictions of tiles are merged before guidance and thresholding, which then see the full image.
    """
    factor = stage.config.latent_factor
    tile, overlap = (settings.tile_hw[0] // factor, settings.tile_hw[1] // factor), settings.tile_overlap // factor
    if not any(tile):
        return stage.predict

    def predict(
        params: Any,
        z: jax.Array,
        logsnr: jax.Array,
        text: TextCondition,
        condition: dict[str, jax.Array],
        control: AttentionControl | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        images = [name for name in condition if CONDITION_AXES[name] == IMAGE]

        def of_tile(z: jax.Array, *parts: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            here = condition | dict(zip(images, parts, strict=True))
            return stage.predict(params, z, logsnr, text, here, control)

        return tiled_predict(of_tile, [z, *(condition[name] for name in images)], tile, overlap)

    return predict


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
        null_text: text of the unconditional half, [B, L, D] and [B, L], or without B for all alike.
        guidance: combines both halves.
        step: the sampler's step, counted from 0, a scalar.

    Returns:
        The guided prediction, and the v of the conditional half: variances are not guided. None if not learned.
    """
    z, logsnr, text, condition, control = inputs
    if guidance.is_identity:
        return predict_fn(inputs._replace(logsnr=jnp.broadcast_to(logsnr, z.shape[:1])))

    def doubled(array: Any, other: Any) -> jax.Array:
        return jnp.concatenate([array, jnp.broadcast_to(other, array.shape).astype(array.dtype)])

    both, both_v = predict_fn(
        StageInputs(
            doubled(z, z),
            jnp.broadcast_to(logsnr, (2 * z.shape[0],)),
            TextCondition(doubled(text.embeddings, null_text.embeddings), doubled(text.mask, null_text.mask)),
            {name: doubled(array, array) for name, array in condition.items()},
            None if control is None else control.with_unconditional(),
        )
    )
    conditional, unconditional = jnp.split(both, 2)
    guided = guidance(conditional, unconditional, cosine_time(logsnr), step)
    return guided, None if both_v is None else jnp.split(both_v, 2)[0]
