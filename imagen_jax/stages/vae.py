"""What a stage that is a hierarchical VAE does with its network: bounds of images, and images of latents."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.samplers import gaussian_noise
from imagen_jax.images.array import Size
from imagen_jax.models.hvae import HVAE, HVAEOutput
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.stages.conditions import split_keys, start_condition
from imagen_jax.stages.stage import CONDITION_AXES, Stage
from imagen_jax.text.encoder import TEXT_CONDITION_AXES, TextCondition
from imagen_jax.variational import bounds, logistics

Noise = tuple[jax.Array, ...]
LATENT_AXES = "batch ..."  # axes of the latents of all groups in one array [B, D]


class VAEBatch(NamedTuple):
    """The examples of a batch with all randomness drawn; arrays are [B, ...].

    Attributes:
        x: images [B, H, W, C] in [-1, 1].
        text: embeddings [B, L, D] and mask [B, L].
        condition: from `Stage.augment_low_res`; empty for a base stage.
        noise: of each group of latents, from coarse to fine, as `draw_noise` returns it.
        kl_weight: weight of the divergences [B]; 1 for the bound.
    """

    x: jax.Array
    text: TextCondition
    condition: dict[str, jax.Array]
    noise: Noise
    kl_weight: jax.Array


VAE_BATCH_AXES = VAEBatch(IMAGE, TEXT_CONDITION_AXES, CONDITION_AXES, IMAGE, VECTOR)  # type: ignore[arg-type]  # names


class VAELosses(NamedTuple):
    """The losses of a batch in bits per dimension.

    Attributes:
        loss: training minimizes its mean: as the bound, with divergences weighted, [B].
        bound: the negative ELBO, [B]: an image takes at most so many bits.
        reconstruction: the part of it that is the negative log-likelihood, [B].
        kls: the parts of it that are divergences of groups, [B, G].
        kl_weight: [B], as given.
    """

    loss: jax.Array
    bound: jax.Array
    reconstruction: jax.Array
    kls: jax.Array
    kl_weight: jax.Array


def num_levels(stage: Stage) -> int:
    """Returns how many values a channel has in the images that a stage is trained on."""
    return int(2**stage.config.data.bits)


def latent_shapes(stage: Stage, size: Size) -> list[tuple[int, int, int]]:
    """Returns (h, w, Z) of each group of latents for images of (height, width), from coarse to fine."""
    assert isinstance(stage.network, HVAE)
    return stage.network.latent_shapes(size)


def draw_noise(stage: Stage, keys: jax.Array, size: Size) -> Noise:
    """Returns standard Gaussian noise of each group, [B, h, w, Z]; that of an image depends on its key alone."""
    return tuple(gaussian_noise(keys, index, shape) for index, shape in enumerate(latent_shapes(stage, size)))


def flatten_noise(noise: Noise) -> jax.Array:
    """Returns the noise of groups [B, h, w, Z] as one array [B, D]."""
    return jnp.concatenate([group.reshape(len(group), -1) for group in noise], axis=-1)


def split_noise(stage: Stage, flat: jax.Array, size: Size) -> Noise:
    """Returns the noise of each group from one array [B, D], for images of (height, width)."""
    shapes = latent_shapes(stage, size)
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    parts = jnp.split(flat, ends[:-1], axis=-1)
    return tuple(part.reshape(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True))


def run_network(
    stage: Stage,
    params: Any,
    x: jax.Array | None,
    noise: Noise,
    text: TextCondition,
    condition: dict[str, jax.Array],
) -> HVAEOutput:
    """Returns what the network makes of images, or of noise if x is None; see `HVAE`."""
    x, noise, text, condition = stage.network.constrain(
        (x, noise, text, condition), (IMAGE, IMAGE, TEXT_CONDITION_AXES, CONDITION_AXES)
    )
    output = stage.network.apply(
        {"params": params}, x, noise, *text, condition.get("low_res"), condition.get("aug_level")
    )
    assert isinstance(output, HVAEOutput)  # no mutable collections: nothing else comes back
    return output


def encode_batch(stage: Stage, params: Any, batch: VAEBatch) -> HVAEOutput:
    """Returns what the network makes of the images of a batch."""
    return run_network(stage, params, batch.x, batch.noise, batch.text, batch.condition)


def vae_loss(stage: Stage, batch: VAEBatch, output: HVAEOutput) -> VAELosses:
    """Returns the loss of each example: the negative ELBO with weighted divergences (arXiv:2007.03898, Eq. 1).

    Args:
        stage: the stage to train.
        batch: the examples with the noise of their latents.
        output: of `encode_batch`.
    """
    log_likelihood = _log_likelihood(stage, batch.x, output)
    kls = jnp.stack([bounds.sum_latents(bounds.residual_kl(*group[1:])) for group in output.groups], axis=-1)
    weights = batch.kl_weight[:, None]
    if stage.config.vae.kl_balancing:
        sizes = [noise.shape[1] * noise.shape[2] for noise in batch.noise]
        weights = bounds.balanced_weights(kls, sizes, batch.kl_weight)

    def bits(nats: jax.Array) -> jax.Array:
        return bounds.bits_per_dim(nats, batch.x[0].size)

    return VAELosses(
        loss=bits(-bounds.elbo(log_likelihood, weights * kls)),
        bound=bits(-bounds.elbo(log_likelihood, kls)),
        reconstruction=bits(-log_likelihood),
        kls=bits(kls),
        kl_weight=batch.kl_weight,
    )


def _log_likelihood(stage: Stage, x: jax.Array, output: HVAEOutput) -> jax.Array:
    """Returns log p(x|z) of images [B, H, W, C], [B] in nats."""
    levels = num_levels(stage)
    mixture = logistics.read_mixture(output.pixels, stage.config.channels, levels)
    return bounds.sum_latents(logistics.log_likelihood(x, mixture, levels))


def importance_weight(stage: Stage, batch: VAEBatch, output: HVAEOutput) -> jax.Array:
    """Returns log p(x, z) - log q(z|x) of images and one sample of their latents, [B] in nats; see `iwae_bound`.

    Args:
        stage: the stage.
        batch: the examples with the noise of their latents.
        output: of `encode_batch`.
    """
    ratios = [
        bounds.sum_latents(bounds.log_prior_to_posterior(group.prior_noise, noise, group.delta_log_std))
        for group, noise in zip(output.groups, batch.noise, strict=True)
    ]
    return _log_likelihood(stage, batch.x, output) + sum(ratios)


def decode(
    stage: Stage,
    params: Any,
    noise: Noise,
    text: TextCondition,
    condition: dict[str, jax.Array],
    pixel_keys: jax.Array | None = None,
) -> jax.Array:
    """Returns images [B, H, W, C] in [-1, 1] of latents in units of the prior.

    Args:
        stage: the stage.
        params: parameters of its network.
        noise: of each group.
        text: the prompts.
        condition: from `start_condition`.
        pixel_keys: keys [B] to sample pixels by; None for the means of their distributions.
    """
    return _read_pixels(stage, run_network(stage, params, None, noise, text, condition), pixel_keys)


def _read_pixels(stage: Stage, output: HVAEOutput, keys: jax.Array | None = None) -> jax.Array:
    """Returns the images [B, H, W, C] of a network's output: means of distributions, or samples by keys [B]."""
    levels = num_levels(stage)
    mixture = logistics.read_mixture(output.pixels, stage.config.channels, levels)
    return logistics.mean(mixture) if keys is None else logistics.sample(keys, mixture, levels)


class VAEInputs(NamedTuple):
    """The arrays [B, ...] that images are decoded from.

    Attributes:
        text: the prompts.
        null_text: what stands in their place where `uses_text` is 0.
        uses_text: float [B], 0 or 1.
        keys: from `stage_keys`.
        low_res: the images to enlarge; None for a base stage.
        z: latents [B, D] in units of the prior, see `flatten_noise`, in place of random ones; None to sample.
        temperature: factor on random latents [B].
        aug_level: of the low-resolution images [B].
    """

    text: TextCondition
    null_text: TextCondition
    uses_text: jax.Array
    keys: jax.Array
    low_res: jax.Array | None
    z: jax.Array | None
    temperature: jax.Array
    aug_level: jax.Array


def _chosen_text(inputs: VAEInputs) -> TextCondition:
    """Returns the text of each example: its prompt, or the null text."""
    used = inputs.uses_text > 0
    embeddings, null_embeddings = inputs.text.embeddings, inputs.null_text.embeddings
    return TextCondition(
        jnp.where(used[:, None, None], embeddings, null_embeddings.astype(embeddings.dtype)),
        jnp.where(used[:, None], inputs.text.mask, inputs.null_text.mask),
    )


def prior_latents(stage: Stage, size: Size, keys: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Returns random latents [B, D] in units of the prior, for keys of `stage_keys` and images of (height, width)."""
    return flatten_noise(draw_noise(stage, split_keys(keys)[0], size)) * jnp.reshape(temperature, (-1, 1))


def decode_inputs(stage: Stage, size: Size, params: Any, inputs: VAEInputs) -> jax.Array:
    """Returns images [B, H, W, C] of given latents, or of those of the prior."""
    _, pixel_keys, aug_keys = split_keys(inputs.keys)
    z = prior_latents(stage, size, inputs.keys, inputs.temperature) if inputs.z is None else inputs.z
    shape = (len(z), *size, stage.config.channels)
    condition = start_condition(stage, shape, inputs.low_res, inputs.aug_level, aug_keys)
    keys = pixel_keys if stage.config.sampling.sample_pixels else None
    return decode(stage, params, split_noise(stage, z, size), _chosen_text(inputs), condition, keys)


def encode_inputs(stage: Stage, size: Size, params: Any, inputs: VAEInputs, image: jax.Array) -> jax.Array:
    """Returns the latents [B, D] of images in units of the prior: the means of their posteriors, group by group."""
    _, _, aug_keys = split_keys(inputs.keys)
    zeros = tuple(jnp.zeros((len(image), *shape)) for shape in latent_shapes(stage, size))
    condition = start_condition(stage, image.shape, inputs.low_res, inputs.aug_level, aug_keys)
    output = run_network(stage, params, image, zeros, _chosen_text(inputs), condition)
    return flatten_noise(tuple(group.prior_noise for group in output.groups))


def reconstruct_inputs(stage: Stage, size: Size, params: Any, inputs: VAEInputs, image: jax.Array) -> jax.Array:
    """Returns images [B, H, W, C] as the VAE gives them back: the means of pixels for a sample of the posterior."""
    start_keys, _, aug_keys = split_keys(inputs.keys)
    condition = start_condition(stage, image.shape, inputs.low_res, inputs.aug_level, aug_keys)
    noise = draw_noise(stage, start_keys, size)
    return _read_pixels(stage, run_network(stage, params, image, noise, _chosen_text(inputs), condition))
