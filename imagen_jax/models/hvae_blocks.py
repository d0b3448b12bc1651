"""Blocks of the hierarchical VAE: a group of latents in the top-down path, and the vector that conditions blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.layers import AttentionPooling, NoiseLevelEmbedding, ResBlock, conv

# Log-deviations of priors are within ±LOG_STD_LIMIT, those of posteriors within as much of them; their means within
# ±MEAN_LIMIT deviations of the prior. Beyond, exp() of a bf16 network's rare outliers would overflow.
LOG_STD_LIMIT, MEAN_LIMIT = 5.0, 50.0

# Scale of what is read from the features at first as the posterior: they have no norm, and from far posteriors the
# first updates have the largest gradients of the run
_POSTERIOR_SCALE = 0.1


class Group(NamedTuple):
    """The latents of a group, float32 [B, h, w, Z]; those of the posterior are empty where there is none.

    Attributes:
        prior_noise: the latents in units of the prior, (z - mu) / sigma.
        delta_mean: mean of the posterior in these units.
        delta_log_std: log of its standard deviation in these units.
    """

    prior_noise: jax.Array
    delta_mean: Any = ()
    delta_log_std: Any = ()


def soft_bound(values: jax.Array, limit: float) -> jax.Array:
    """Returns values, in float32, within ±`limit`, and nearly unchanged while they are small."""
    return limit * jnp.tanh(values.astype(jnp.float32) / limit)


class VectorCondition(nn.Module):
    """Embeds pooled text, and the augmentation level if any, as the vector [B, E] that conditions all blocks."""

    width: int
    text_pool_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, text: jax.Array, mask: jax.Array, aug_level: jax.Array | None) -> jax.Array:
        embedding = AttentionPooling(self.width, self.text_pool_heads, self.dtype, name="text_pooling")(text, mask)
        if aug_level is not None:
            embedding += NoiseLevelEmbedding(self.width, self.dtype, name="aug_level")(aug_level)
        return nn.swish(embedding)


class LatentBlock(nn.Module):
    """A group of latents: prior and posterior, the latents' effect on the features, and a residual block.

    The posterior is in units of the prior (residual, arXiv:2007.03898, Eq. 2), and sees the bottom-up features beside
    the top-down ones; the prior sees the latter alone (arXiv:2011.10650, Figure 3).

    Attributes:
        channels: of the features.
        latent_channels: Z, of the latents.
        num_groups: groups of each GroupNorm.
        latent_scale: deviation of the latents' effect at initialization; 1/sqrt(number of groups) in VDVAE.
        dtype: dtype of the compute; priors, posteriors and latents are float32.
    """

    channels: int
    latent_channels: int
    num_groups: int
    latent_scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, encoded: jax.Array | None, embedding: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, Group]:
        """Returns the features after the group, and its latents.

        Args:
            x: top-down features [B, h, w, C].
            encoded: bottom-up features [B, h, w, C'] of the image; None to take the latents from the prior.
            embedding: conditioning vector [B, E].
            noise: standard Gaussian noise [B, h, w, Z] of the posterior, or of the prior.
        """
        width = self.latent_channels
        prior = self._block("prior")(x, embedding)
        prior = conv(2 * width + self.channels, "prior_out", self.dtype, size=1, zero=True)(prior)
        mean, log_std, rest = jnp.split(prior, [width, 2 * width], axis=-1)
        if encoded is None:
            group = Group(noise.astype(jnp.float32))
        else:
            # in initialization and training alike: all parameters are made where there is an image
            posterior = self._block("posterior")(jnp.concatenate([x, encoded.astype(x.dtype)], axis=-1), embedding)
            init = nn.initializers.variance_scaling(_POSTERIOR_SCALE**2, "fan_in", "truncated_normal")
            posterior = nn.Conv(2 * width, (1, 1), kernel_init=init, dtype=self.dtype, name="posterior_out")(posterior)
            delta_mean, delta_log_std = jnp.split(posterior, 2, axis=-1)
            delta_mean = soft_bound(delta_mean, MEAN_LIMIT)
            delta_log_std = soft_bound(delta_log_std, LOG_STD_LIMIT)
            group = Group(delta_mean + jnp.exp(delta_log_std) * noise, delta_mean, delta_log_std)
        # latents in float32: bf16 would round their noise
        z = mean.astype(jnp.float32) + jnp.exp(soft_bound(log_std, LOG_STD_LIMIT)) * group.prior_noise
        init = nn.initializers.variance_scaling(self.latent_scale**2, "fan_in", "truncated_normal")
        effect = nn.Conv(self.channels, (1, 1), kernel_init=init, dtype=self.dtype, name="latent_in")(z)
        return self._block("out")(x + rest + effect, embedding), group

    def _block(self, name: str) -> ResBlock:
        return ResBlock(self.channels, self.num_groups, 0.0, self.dtype, name=name)
