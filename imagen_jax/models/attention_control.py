"""Attention weights that examples take over from others (prompt-to-prompt, arXiv:2208.01626).

Examples come in pairs: at even rows of a batch are the sources, and after each the one that is edited.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class AttentionControl(NamedTuple):
    """What the attention of edited examples takes over from that of their sources; the rows of sources are not read.

    Attributes:
        alignment: float [B, L, L]: for each token of the source, by rows, the shares of its weight that the tokens of
            the edited text get, by columns. Tokens whose column is zero keep their own weight.
        text_share: float [B] in [0, 1]: how much of the weights over text is taken over.
        pixel_share: float [B] in [0, 1]: how much of the weights over pixels is taken over.
    """

    alignment: jax.Array
    text_share: jax.Array
    pixel_share: jax.Array

    def inject(self, weights: jax.Array, length: int) -> jax.Array:
        """Returns attention weights [B, N, Q, S] with those of edited examples replaced; sources keep theirs.

        Rows sum to 1 again afterwards: where pixels and text share a softmax, what the text gains pixels lose.

        Args:
            weights: over pixels, if there are any, and then over text.
            length: L, how many of the last columns are of text; 0 for none.
        """
        rows = jnp.arange(len(weights))
        source = weights[rows - rows % 2]
        pixels = weights.shape[-1] - length
        text_share, pixel_share = (share[:, None, None, None] for share in (self.text_share, self.pixel_share))
        parts = [_mix(weights[..., :pixels], source[..., :pixels], pixel_share)]
        if length:
            aligned_BNQL = jnp.einsum("bnqk,bkl->bnql", source[..., pixels:], self.alignment)
            is_aligned = (self.alignment > 0).any(axis=1)[:, None, None, :]
            parts.append(_mix(weights[..., pixels:], aligned_BNQL, text_share * is_aligned))
        mixed = jnp.concatenate(parts, axis=-1)
        mixed /= jnp.maximum(mixed.sum(axis=-1, keepdims=True), 1e-20)
        takes = (rows % 2 == 1)[:, None, None, None] & (text_share + pixel_share > 0)
        return jnp.where(takes, mixed, weights)

    def with_unconditional(self) -> AttentionControl:
        """Returns the control of a batch that is followed by its unconditional half, which takes nothing over."""
        alignment, *shares = (jnp.concatenate([array, array]) for array in self)
        size = len(self.text_share)
        return AttentionControl(alignment, *(share.at[size:].set(0) for share in shares))


def _mix(own: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
    return (1 - share) * own + share * other
