"""What both U-Nets share: the conditioning, the stem, and the way to an image again."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.layers import (
    AttentionStack,
    Conditioning,
    InputSkip,
    ModulatedNorm,
    Positions,
    ResBlock,
    conv,
    from_patches,
    keys_of_place,
    place_number,
    to_patches,
)
from imagen_jax.parallel.scan_params import stack_name

ModuleMaker = Callable[..., Any]  # makes a module of a name
Lay = Callable[[Any], Any]  # of features [B, H, W, C], or a tree of them: the same, with a say in which device has what


def as_they_lie(features: Any) -> Any:
    """Features with no say in which device has what."""
    return features


def keeps_dots(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Whether a result within a block is kept for the backward pass: of convolutions and dense layers alone.

    Norms and activations cost little to make again; so do the products of attention, beside the memory of its weights,
    which grows with the square of the pixels.
    """
    if primitive is jax.lax.dot_general_p:
        _, batch_axes = parameters["dimension_numbers"]
        return not any(batch_axes)
    return primitive is jax.lax.conv_general_dilated_p


# What residual blocks and attention layers keep for the backward pass beside their inputs; None: everything.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": keeps_dots,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def runs(kinds: Sequence[Any]) -> Iterator[range]:
    """The places of things that are alike and side by side."""
    for _, group in itertools.groupby(range(len(kinds)), key=kinds.__getitem__):
        places = list(group)
        yield range(places[0], places[-1] + 1)


class Given(NamedTuple):
    """What all blocks of a network are given: the conditioning vector [B, E], text [B, L, D] and its mask [B, L].

    ``dropout_keys`` [B] are of each example's dropout; None for none.
    """

    embedding: jax.Array
    text: jax.Array
    text_mask: jax.Array
    dropout_keys: jax.Array | None

    def keys_at(self, place: jax.Array | int) -> jax.Array | None:
        """The dropout keys [B] of the block at a place, if there is dropout."""
        return None if self.dropout_keys is None else keys_of_place(self.dropout_keys, place)


class Turn(nn.Module):
    """One of the blocks of a run, of which ``nn.scan`` makes all: a residual block, and attention after it."""

    res: ModuleMaker
    attend: ModuleMaker
    lay: Lay

    @nn.compact
    def __call__(
        self, x: jax.Array, skip: jax.Array | None, place: jax.Array, given: Given
    ) -> tuple[jax.Array, jax.Array]:
        # else XLA may lay what goes round in a loop as the parameters there: channels over devices, and not examples
        x, skip = self.lay((x, skip))
        x = self.res(name="res")(joined(x, skip), given.embedding, given.keys_at(place))
        x = self.lay(self.attend(name="attend")(x, given.text, given.text_mask))
        return x, x


def joined(x: jax.Array, skip: jax.Array | None) -> jax.Array:
    """Features with those of a skip, if there is one, behind their channels."""
    return x if skip is None else jnp.concatenate([x, skip], axis=-1)


class Denoiser(nn.Module):
    """A network that sees through the noise of images; its kinds differ in their ``trunk``.

    Attributes:
        image_channels: channels of the image that is denoised.
        patch: side of the squares of pixels that the network sees as one pixel; 1 in the paper. Larger ones are cheap
            (arXiv:2301.11093, Section 3.3).
        positions: cosines an axis of the learned picture of places that is added to the stem; 0 in the paper: none.
            It ties the network to whole images: not for stages that are trained on crops.
        input_skip: whether the inputs are added to the output by learned gains; False in the paper.
        channels: channels of the first level.
        multipliers: channels of each level, as multiples of ``channels``; a level is half the size of the one before.
        blocks: residual blocks of each level; see the kinds.
        attention: for each level its attention layers, a tuple of "self", "self+text", "text"; see the kinds.
        head_channels: channels of an attention head.
        attention_mlp: hidden width of a feed-forward layer after each attention, in multiples of its channels; 0: none.
        embedding_multiplier: width of the conditioning vector, as a multiple of ``channels``.
        text_heads: heads of the attention pooling of the text.
        norm_groups: groups of each GroupNorm.
        skip_scale: factor on each skip before it is concatenated.
        dropout: share of activations dropped in training.
        dtype: of the compute; parameters, norms and softmax stay float32.
        out_channels: channels of the output; inputs skip to the first ``image_channels`` of them.
        scan_blocks: whether blocks of a level that are alike are one that is repeated, its parameters stacked: the same
            network in a shorter program.
        remat: of ``REMAT``, what is computed again in the backward pass instead of kept: time for memory.
        lay: what lays features on devices that share a batch, for blocks that are repeated.
    """

    image_channels: int
    patch: int
    positions: int
    input_skip: bool
    channels: int
    multipliers: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[tuple[str, ...], ...]
    head_channels: int
    attention_mlp: int
    embedding_multiplier: int
    text_heads: int
    norm_groups: int
    skip_scale: float
    dropout: float
    dtype: jnp.dtype
    out_channels: int
    scan_blocks: bool
    remat: str
    lay: Lay

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        noise_level: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        low_res: jax.Array | None = None,
        aug_level: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """The network's prediction.

        Args:
            z: [B, H, W, C] noisy images; H and W divisible by the patch, and then by 2 at every change of level.
            noise_level: [B] in [0, 1].
            text: [B, L, D] embeddings, zero where the caption is dropped.
            text_mask: [B, L] True where there is a token.
            low_res: [B, H, W, C] the condition of a super-resolution stage, already of z's size.
            aug_level: [B] in [0, 1], the noise in ``low_res``.
            dropout_keys: [B] keys of the dropout of each example; None for none, as outside of training.

        Returns:
            [B, H, W, out_channels] float32; zero at initialisation.
        """
        width = self.channels * self.embedding_multiplier
        embedding = Conditioning(width, self.text_heads, self.dtype, name="conditioning")(
            noise_level, text, text_mask, aug_level
        )
        images = z if low_res is None else jnp.concatenate([z, low_res], axis=-1)
        x = conv(self.channels, "stem", self.dtype)(to_patches(images.astype(self.dtype), self.patch))
        if self.positions:
            x = Positions(self.positions, self.dtype, name="positions")(x)

        x = self.trunk(x, Given(embedding, text, text_mask, dropout_keys))

        x = ModulatedNorm(self.norm_groups, self.dtype, name="out_norm")(x, embedding)
        x = nn.swish(x)
        x = conv(self.patch**2 * self.out_channels, "out", self.dtype, zero=True)(x)
        x = from_patches(x, self.patch).astype(jnp.float32)
        if not self.input_skip:
            return x
        image, rest = jnp.split(x, [self.image_channels], axis=-1)
        return jnp.concatenate([InputSkip(name="input_skip")(image, images, embedding), rest], axis=-1)

    def trunk(self, x: jax.Array, given: Given) -> jax.Array:
        """Features of the stem [B, H/patch, W/patch, channels] → features of that height and width."""
        raise NotImplementedError

    def res(self, x: jax.Array, given: Given, channels: int, name: str, resample: str = "") -> jax.Array:
        """A residual block that sees the conditioning."""
        block = self.res_maker(channels, resample)(name=name)
        return block(x, given.embedding, given.keys_at(place_number(name)))

    def attend(self, x: jax.Array, given: Given, kinds: tuple[str, ...], name: str) -> jax.Array:
        """Attention layers that see the text."""
        return self.attention_maker(kinds)(name=name)(x, given.text, given.text_mask)

    def level(
        self,
        x: jax.Array,
        given: Given,
        count: int,
        channels: int,
        kinds: tuple[str, ...],
        name: str,
        skips: Sequence[jax.Array] = (),
    ) -> tuple[jax.Array, list[jax.Array]]:
        """``count`` residual blocks with attention after each, that get a skip each if there are some.

        Returns the features of the last one, and a list of those of all.
        """
        made: list[jax.Array] = []
        # blocks differ in the channels that they get
        widths = [channels if i else x.shape[-1] for i in range(count)]
        alike = list(zip(widths, [skip.shape[-1] for skip in skips], strict=True)) if skips else widths
        for run in runs(alike if self.scan_blocks else range(count)):
            first, last = run[0], run[-1]
            if first == last:
                x = self.res(joined(x, skips[first] if skips else None), given, channels, f"{name}_res_{first}")
                x = self.attend(x, given, kinds, f"{name}_attend_{first}")
                made.append(x)
            else:
                turns = self.run_maker(channels, kinds, len(run))(name=stack_name(f"{name}_blocks", first, last))
                # as if each had its own name
                places = jnp.array([place_number(f"{name}_res_{i}") for i in run], jnp.uint32)
                x, stacked = turns(x, jnp.stack(skips[first : last + 1]) if skips else None, places, given)
                made.extend(stacked)
        return x, made

    def run_maker(self, channels: int, kinds: tuple[str, ...], count: int) -> ModuleMaker:
        """Makes a run of ``count`` blocks; their parameters, skips and places are stacked."""
        run = nn.scan(
            Turn,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),
            length=count,
        )
        return functools.partial(
            run, self.res_maker(channels, repeated=True), self.attention_maker(kinds, repeated=True), self.lay
        )

    def res_maker(self, channels: int, resample: str = "", repeated: bool = False) -> ModuleMaker:
        """Makes a residual block."""
        kind = self.with_remat(ResBlock, repeated)
        return functools.partial(kind, channels, self.norm_groups, self.dropout, self.dtype, resample)

    def attention_maker(self, kinds: tuple[str, ...], repeated: bool = False) -> ModuleMaker:
        """Makes attention layers."""
        kind = self.with_remat(AttentionStack, repeated)
        return functools.partial(kind, kinds, self.head_channels, self.norm_groups, self.attention_mlp, self.dtype)

    def with_remat(self, kind: type[nn.Module], repeated: bool) -> Any:
        """The kind of module whose backward pass remakes what ``remat`` does not keep; its parameters are the same."""
        policy = REMAT[self.remat]
        # in a loop nothing is left from the forward pass that XLA could merge it with
        return nn.remat(kind, policy=policy, prevent_cse=not repeated) if policy else kind
