"""Sampling from one stage: its sampler as one pure function, compiled for a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.guidance import Guidance, threshold
from imagen_jax.diffusion.process import to_x_and_eps
from imagen_jax.diffusion.schedules import noise_angle, signal
from imagen_jax.diffusion.tiling import check_tiles, in_tiles
from imagen_jax.diffusion.timesteps import check_steps
from imagen_jax.errors import ConfigError, collect_errors
from imagen_jax.images.array import dtype_of, said, size_of, to_float, to_whole
from imagen_jax.parallel import multihost
from imagen_jax.parallel.sharding import batch_parts, example_sharding, put_examples, whole_kernels
from imagen_jax.stages.stage import (
    Stage,
    aug_levels,
    check_rows,
    image_size,
    is_super_resolution,
    side_multiple,
)

SAMPLING_MESH = {"data": -1, "fsdp": 1, "spatial": 1}  # every device has full networks, and images of its own
SampleFn = Callable[..., jax.Array]
PredictFn = Callable[..., tuple[jax.Array, jax.Array | None]]


def make_sample_fn(stage: Stage, settings: ml_collections.ConfigDict) -> SampleFn:
    """The sampler of a stage as one pure function, to be compiled.

    Args:
        stage: what to sample from.
        settings: a config's ``sampling``.

    Returns:
        ``(params, encoder_params, tokens [B, L], mask [B, L], keys [B], low_res, weights=None) -> [B, H, W, C]``;
        ``low_res`` is [B, h, w, C] or None; ``weights`` [B] of guidance take the place of the settings' one; images are
        in [-1, 1].

    Raises:
        UsageError: unknown names or values out of range in the settings.
    """
    check_sampling(stage.config, settings)
    sampler = chosen_sampler(settings, stage.learns_variance)
    limit = threshold(settings.threshold, settings.percentile)
    usual_guidance = guidance_of(settings)
    predict = chosen_predict(stage, settings)

    def sample(
        params: Any,
        encoder_params: Any,
        tokens: jax.Array,
        mask: jax.Array,
        keys: jax.Array,
        low_res: jax.Array | None,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        guidance = usual_guidance if weights is None else dataclasses.replace(usual_guidance, weight=weights)
        start_key, walk_key, aug_key = jnp.unstack(jax.vmap(functools.partial(jax.random.split, num=3))(keys), axis=1)
        text = stage.encoder.encode(encoder_params, tokens, mask)
        no_text = stage.unconditional(encoder_params)
        condition = {}
        if low_res is not None:
            levels = jnp.full(low_res.shape[:1], settings.aug_level)
            condition = stage.condition_on(low_res, levels, samplers.noise(aug_key, 0, low_res.shape[1:]))

        def denoise(z: jax.Array, t: jax.Array) -> Any:
            logsnr = stage.schedule.logsnr(t)
            # counted on the uniform grid of times that samplers walk down
            step = jnp.round((1.0 - t) * settings.steps)
            prediction, v = guided_prediction(
                predict, params, z, logsnr, (text, mask), no_text, condition, guidance, step
            )
            x_hat, _ = to_x_and_eps(prediction, z, signal(logsnr), signal(-logsnr), stage.prediction)
            return (limit(x_hat), v) if takes_variance(settings) else limit(x_hat)

        z = samplers.noise(start_key, 0, stage.image_shape)
        return jnp.clip(sampler(denoise, z, walk_key, stage.schedule, settings.steps), -1.0, 1.0)

    return sample


def make_sampler(stage: Stage, mesh: Mesh | AbstractMesh) -> jax.stages.Wrapped:
    """The jitted sampler of a stage, as ``make_sample_fn`` has it, its images laid on the mesh.

    Raises UsageError as ``make_sample_fn``, or where rows of the images cannot be split as the mesh says.
    """
    check_rows(stage.config, mesh.shape["spatial"])
    sample = make_sample_fn(stage.laid_on(mesh), stage.config.sampling)
    return jax.jit(
        lambda params, *rest: sample(whole_kernels(params, mesh), *rest), out_shardings=example_sharding(mesh, 4)
    )


def check_sampling(config: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> None:
    """Raises UsageError for whatever a config's stage cannot be sampled with, of settings such as its ``sampling``."""
    collect_errors(
        lambda: chosen_sampler(settings, config.diffusion.variance == "learned"),
        lambda: threshold(settings.threshold, settings.percentile),
        lambda: guidance_of(settings),
        lambda: check_tiling(config, settings),
        lambda: check_aug_level(config, settings.aug_level),
        lambda: dtype_of(settings.bits, "sampling bits"),
    )


def check_aug_level(config: ml_collections.ConfigDict, level: float) -> None:
    """Raises UsageError unless a config's stage can be given a low-resolution image with so much noise."""
    if not 0 <= level <= 1:
        raise ConfigError(f"aug_level {level} is not in [0, 1]: 0 adds no noise to the low-resolution image")
    if is_super_resolution(config):
        aug_levels(config).check_sampling(level)


def check_tiling(config: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> None:
    """Raises UsageError for tiles that the network of a config cannot take."""
    tile = size_of(settings.tile_size, "tile_size")
    if not any(tile):
        return
    if config.model.positions:
        raise ConfigError(
            f"tile_size {said(tile)} is for stages that do not know the places of pixels, and this one has "
            f"model.positions {config.model.positions}: set tile_size to 0"
        )
    check_tiles(image_size(config), tile, settings.tile_overlap, side_multiple(config.model))


def guidance_of(settings: ml_collections.ConfigDict) -> Guidance:
    """The guidance of a config's ``sampling``. Raises UsageError for values that mean none."""
    return Guidance(
        weight=settings.guidance,
        start=settings.guidance_from,
        end=settings.guidance_to,
        rescale=settings.guidance_rescale,
        oscillates=settings.guidance_oscillates,
        low=settings.guidance_low,
        constant_steps=settings.guidance_constant_steps,
    )


def takes_variance(settings: ml_collections.ConfigDict) -> bool:
    """Whether the sampler of a config's ``sampling`` has to be told v."""
    return settings.sampler == "ddpm" and settings.variance == "learned"


def chosen_sampler(settings: ml_collections.ConfigDict, learns_variance: bool) -> samplers.Sampler:
    """The sampler of a config's ``sampling``. Raises UsageError for unknown names and numbers out of range."""
    if takes_variance(settings) and not learns_variance:
        raise ConfigError(
            "variance 'learned' needs a stage trained with diffusion.variance 'learned': use small or large"
        )
    if settings.guidance_oscillates and settings.grid != "uniform":
        raise ConfigError(
            f"guidance_oscillates counts steps of the uniform grid, not of {settings.grid!r}: turn one off"
        )
    check_steps(settings.steps)
    return samplers.by_name(
        settings.sampler,
        grid=settings.grid,
        eta=settings.eta,
        variance=settings.variance,
        churn=settings.churn,
        churn_range=settings.churn_range,
        churn_noise=settings.churn_noise,
    )


def chosen_predict(stage: Stage, settings: ml_collections.ConfigDict) -> PredictFn:
    """The stage's ``predict``, of whole images or of their tiles, as its ``sampling`` says.

    Predictions are put together before anything else is done with them, so that guidance and thresholds look at whole
    images. Raises UsageError for tiles that the network cannot take.
    """
    tile, overlap = size_of(settings.tile_size, "tile_size"), settings.tile_overlap
    if not any(tile):
        return stage.predict

    def predict(
        params: Any, z: jax.Array, logsnr: jax.Array, text: jax.Array, mask: jax.Array, condition: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array | None]:
        def of_tile(z: jax.Array, *low_res: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            here = condition | ({"low_res": low_res[0]} if low_res else {})
            return stage.predict(params, z, logsnr, text, mask, here)

        return in_tiles(of_tile, [z, condition["low_res"]] if condition else [z], tile, overlap)

    return predict


def guided_prediction(
    predict: PredictFn,
    params: Any,
    z: jax.Array,
    logsnr: jax.Array,
    text: tuple[jax.Array, jax.Array],
    no_text: tuple[jax.Array, jax.Array],
    condition: dict[str, jax.Array],
    guidance: Guidance,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """(prediction, v) [B, H, W, C] at z_t under guidance, both halves in one forward of a doubled batch.

    Args:
        predict: a stage's, or one with its arguments and result.
        params: of its network.
        z: [B, H, W, C] at a noise level.
        logsnr: of that level, a scalar.
        text: embeddings [B, L, D] and mask [B, L].
        no_text: what stands for a dropped caption, [L, D] and [L].
        condition: from ``Stage.condition_on``, or empty.
        guidance: of both halves.
        step: of the sampler, counted from 0, a scalar.

    Returns:
        The guided prediction, and the v of the conditional one: variances are not guided; None if not learned.
    """
    if guidance.is_none:
        return predict(params, z, jnp.broadcast_to(logsnr, z.shape[:1]), *text, condition)

    def doubled(array: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.concatenate([array, jnp.broadcast_to(other, array.shape).astype(array.dtype)])

    both, both_v = predict(
        params,
        doubled(z, z),
        jnp.broadcast_to(logsnr, (2 * z.shape[0],)),
        doubled(text[0], no_text[0]),
        doubled(text[1], no_text[1]),
        {name: doubled(array, array) for name, array in condition.items()},
    )
    conditional, unconditional = jnp.split(both, 2)
    guided = guidance(conditional, unconditional, noise_angle(logsnr), step)
    return guided, None if both_v is None else jnp.split(both_v, 2)[0]


def stage_keys(seed: int, indices: jax.Array, place: int) -> jax.Array:
    """The keys [B] of samples ``indices`` in the stage at a place of the cascade."""
    return jax.vmap(lambda key: jax.random.fold_in(key, place))(samplers.sample_keys(seed, indices))


class StageSampler:
    """The sampler of one stage, compiled for a mesh.

    Args:
        stage: what to sample from.
        mesh: batches are spread over all its devices.
        place: where in the cascade the stage stands; stages at other places draw other noise.

    Raises:
        UsageError: the config's sampling settings are wrong, or rows of its images cannot be split as the mesh says.
    """

    def __init__(self, stage: Stage, mesh: Mesh, place: int) -> None:
        self._stage, self._mesh, self._place = stage, mesh, place
        self._dtype = dtype_of(stage.config.sampling.bits, "sampling bits")
        self._program = make_sampler(stage, mesh)

    def sample(
        self,
        params: Any,
        encoder_params: Any,
        prompts: Sequence[str],
        seed: int,
        first_index: int,
        low_res: np.ndarray | None = None,
        guidance: np.ndarray | None = None,
    ) -> np.ndarray:
        """Images [B, H, W, C] of the prompts of samples ``first_index`` and on, uint8 or uint16 as the config says.

        A super-resolution stage enlarges ``low_res`` [B, h, w, C], of either type. Weights ``guidance`` [B], one a
        sample, take the place of the config's one.
        """
        count = len(prompts)
        # Every device needs the same share: a short batch is filled up, and its surplus cut off again.
        surplus = -count % batch_parts(self._mesh)
        tokens, mask = self._stage.encoder.tokenize([*prompts, *[""] * surplus])
        keys = stage_keys(seed, jnp.arange(first_index, first_index + count + surplus), self._place)
        batch = {"tokens": tokens, "mask": mask, "keys": np.asarray(jax.random.key_data(keys))}
        if low_res is not None:
            batch["low_res"] = np.concatenate([low_res, np.zeros((surplus, *low_res.shape[1:]), low_res.dtype)])
        if guidance is not None:
            batch["guidance"] = np.concatenate([np.asarray(guidance, np.float32), np.ones(surplus, np.float32)])
        placed = put_examples(batch, self._mesh)
        images = self._program(
            params,
            encoder_params,
            placed["tokens"],
            placed["mask"],
            jax.random.wrap_key_data(placed["keys"]),
            to_float(placed["low_res"]) if low_res is not None else None,
            placed.get("guidance"),
        )
        return multihost.gather(to_whole(images, self._dtype))[:count]
