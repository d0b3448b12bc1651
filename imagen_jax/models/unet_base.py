"""The base class of both U-Nets: conditioning, stem, output layers, and the blocks of a level."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.attention_control import AttentionControl
from imagen_jax.models.layers import (
    AdaGN,
    AttentionStack,
    ConditioningEmbedding,
    InputSkip,
    LearnedPositionEmbedding,
    ResBlock,
    conv,
    fold_in_keys,
    name_hash,
    patchify,
    unpatchify,
)
from imagen_jax.parallel.axes import IMAGE
from imagen_jax.parallel.scan_params import stack_name

# what a stage that inpaints has besides the others; it starts at zero, where it has no effect (arXiv:2212.06909)
KNOWN_STEM, KNOWN_SKIP = "known_stem", "known_skip"

_ModuleMaker = Callable[..., Any]  # makes a module with a name
ConstraintFn = Callable[[Any, Any], Any]  # applies sharding constraints to a pytree of features with named axes


def no_constraint(features: Any, axes: Any) -> Any:
    """Returns features without a sharding constraint."""
    return features


def _save_matmuls_and_convs(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Returns whether a result within a block is saved for the backward pass: those of convolutions and dense layers.

    Norms and activations are cheap to recompute. So are the batched matmuls of attention, compared to the memory of its
    weights, which is quadratic in the number of pixels.
    """
    if primitive is jax.lax.dot_general_p:
        _, batch_axes = parameters["dimension_numbers"]
        return not any(batch_axes)
    return primitive is jax.lax.conv_general_dilated_p


# What residual blocks and attention layers save for the backward pass besides their inputs; None: everything.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": _save_matmuls_and_convs,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _consecutive_groups(values: Sequence[Any]) -> Iterator[range]:
    """Yields the indices of each run of equal consecutive values."""
    for _, group in itertools.groupby(range(len(values)), key=values.__getitem__):
        indices = list(group)
        yield range(indices[0], indices[-1] + 1)


class BlockContext(NamedTuple):
    """Inputs that all blocks of a network share.

    Attributes:
        embedding: conditioning vector [B, E].
        text: text embeddings [B, L, D].
        text_mask: bool [B, L], True where there is a token.
        dropout_keys: [B], one key per example; None for no dropout.
        control: what attention layers take over from other examples; None for nothing.
    """

    embedding: jax.Array
    text: jax.Array
    text_mask: jax.Array
    dropout_keys: jax.Array | None
    control: AttentionControl | None = None

    def dropout_keys_for(self, block_hash: jax.Array | int) -> jax.Array | None:
        """Returns the dropout keys [B] for the block with a hash of its name, or None without dropout."""
        return None if self.dropout_keys is None else fold_in_keys(self.dropout_keys, block_hash)


class _ScanBlock(nn.Module):
    """The body of `nn.scan` over blocks with equal shapes: a residual block, followed by attention."""

    make_res_block: _ModuleMaker
    make_attention: _ModuleMaker
    constrain: ConstraintFn

    @nn.compact
    def __call__(
        self, x: jax.Array, skip: jax.Array | None, block_hash: jax.Array, context: BlockContext
    ) -> tuple[jax.Array, jax.Array]:
        # otherwise XLA may shard the scan carry like the parameters, by channels instead of batch
        x, skip = self.constrain((x, skip), IMAGE)
        x = self.make_res_block(name="res")(
            concat_skip(x, skip), context.embedding, context.dropout_keys_for(block_hash)
        )
        x = self.constrain(
            self.make_attention(name="attend")(x, context.text, context.text_mask, context.control), IMAGE
        )
        return x, x


def concat_skip(x: jax.Array, skip: jax.Array | None) -> jax.Array:
    """Returns features [B, H, W, C] with those of a skip, if there is one, concatenated to their channels."""
    return x if skip is None else jnp.concatenate([x, skip], axis=-1)


class UNetBase(nn.Module):
    """A U-Net that predicts from noisy images, conditioned on text; subclasses define the `backbone`.

    Attributes:
        image_channels: channels of the image.
        patch_size: side of the patches that are folded into channels; 1 in the paper. Larger ones lower the cost
            (arXiv:2301.11093, Section 3.3).
        positions: cosines per axis of the learned position embedding that is added to the stem; 0 in the paper, none.
            Position embeddings require full images: not for stages that are trained on crops.
        input_skip: whether the inputs are added to the output with learned gains; False in the paper.
        channels: channels of the first level.
        channel_mult: channels of each level, as multiples of `channels`; each level has half the resolution of the
            previous one.
        num_res_blocks: residual blocks of each level; see the subclasses.
        attention_types: for each level its attention layers, a tuple of "self", "self+text", "text"; see the
            subclasses.
        head_channels: channels of an attention head.
        mlp_ratio: hidden width of the MLP after each attention layer, as a multiple of its channels; 0: no MLP.
        cond_dim_mult: width of the conditioning vector, as a multiple of `channels`.
        text_pool_heads: heads of the attention pooling over the text.
        num_groups: groups of each GroupNorm.
        skip_scale: factor applied to each skip before it is concatenated.
        dropout: dropout rate in training.
        dtype: dtype of the compute; parameters, norms and softmax stay float32.
        out_channels: channels of the output; `input_skip` adds inputs to the first `image_channels` of them.
        scan_blocks: whether blocks of a level with equal shapes are scanned, with stacked parameters: the same network
            in a shorter program.
        remat: a key of `REMAT_POLICIES`: what is saved for the backward pass; the rest is recomputed.
        constrain: applies sharding constraints to features, for blocks that are scanned.
    """

    image_channels: int
    patch_size: int
    positions: int
    input_skip: bool
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention_types: tuple[tuple[str, ...], ...]
    head_channels: int
    mlp_ratio: int
    cond_dim_mult: int
    text_pool_heads: int
    num_groups: int
    skip_scale: float
    dropout: float
    dtype: jnp.dtype
    out_channels: int
    scan_blocks: bool
    remat: str
    constrain: ConstraintFn

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
        known: jax.Array | None = None,
        control: AttentionControl | None = None,
        positions: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Returns the network's prediction.

        Args:
            z: noisy images [B, H, W, C]; H and W divisible by the patch size, and then by 2 at every change of level.
            noise_level: [B] in [0, 1].
            text: text embeddings [B, L, D], zero where the text is dropped.
            text_mask: bool [B, L], True where there is a token.
            low_res: images [B, H, W, C] that condition a super-resolution stage, already resized to the size of z.
            aug_level: [B] in [0, 1], the augmentation level of `low_res`.
            dropout_keys: [B], one key per example; None for no dropout, outside of training.
            known: [B, H, W, C + 1] for a stage that inpaints: the image, 0 where it is to be drawn, and the mask, which
                is 1 there.
            control: what attention layers take over from other examples; None for nothing.
            positions: where each row [B, H] and each column [B, W] of z is in images as they were in training, in
                [0, 1], for networks with a position embedding; None to spread them evenly.

        Returns:
            Predictions [B, H, W, out_channels], float32; zero at initialization.
        """
        width = self.channels * self.cond_dim_mult
        embedding = ConditioningEmbedding(width, self.text_pool_heads, self.dtype, name="conditioning")(
            noise_level, text, text_mask, aug_level
        )
        images = z if low_res is None else jnp.concatenate([z, low_res], axis=-1)
        x = conv(self.channels, "stem", self.dtype)(patchify(images.astype(self.dtype), self.patch_size))
        if known is not None:
            # as more input channels of the stem; apart from it, so that all that the stem has learned stays as it is
            x += conv(self.channels, KNOWN_STEM, self.dtype, zero=True)(
                patchify(known.astype(self.dtype), self.patch_size)
            )
        if self.positions:
            if positions is not None:
                rows, columns = (axis.reshape(len(axis), -1, self.patch_size).mean(axis=-1) for axis in positions)
                positions = rows, columns
            x = LearnedPositionEmbedding(self.positions, self.dtype, name="positions")(x, positions)

        x = self.backbone(x, BlockContext(embedding, text, text_mask, dropout_keys, control))

        x = AdaGN(self.num_groups, self.dtype, name="out_norm")(x, embedding)
        x = nn.swish(x)
        x = conv(self.patch_size**2 * self.out_channels, "out", self.dtype, zero=True)(x)
        x = unpatchify(x, self.patch_size).astype(jnp.float32)
        if not self.input_skip:
            return x
        image, rest = jnp.split(x, [self.image_channels], axis=-1)
        image = InputSkip(name="input_skip")(image, images, embedding)
        if known is not None:
            image = InputSkip(name=KNOWN_SKIP)(image, known[..., : self.image_channels], embedding)
        return jnp.concatenate([image, rest], axis=-1)

    def backbone(self, x: jax.Array, context: BlockContext) -> jax.Array:
        """Returns features of the same height and width as the stem's, [B, H/patch, W/patch, channels]."""
        raise NotImplementedError

    def _res_block(
        self, x: jax.Array, context: BlockContext, channels: int, name: str, resample: str = ""
    ) -> jax.Array:
        """Applies a residual block with conditioning."""
        block = self._make_res_block(channels, resample)(name=name)
        return block(x, context.embedding, context.dropout_keys_for(name_hash(name)))

    def _attention(self, x: jax.Array, context: BlockContext, kinds: tuple[str, ...], name: str) -> jax.Array:
        """Applies attention layers with the text."""
        return self._make_attention(kinds)(name=name)(x, context.text, context.text_mask, context.control)

    def _level_blocks(
        self,
        x: jax.Array,
        context: BlockContext,
        count: int,
        channels: int,
        kinds: tuple[str, ...],
        name: str,
        skips: Sequence[jax.Array] = (),
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Applies `count` residual blocks, each followed by attention.

        Args:
            x: features [B, h, w, c].
            context: see `BlockContext`.
            count: number of blocks.
            channels: channels of their outputs.
            kinds: attention layers after each block.
            name: prefix of the blocks' names.
            skips: features to concatenate to the input of each block; empty for none.

        Returns:
            The output of the last block, and a list of the outputs of all blocks.
        """
        outputs: list[jax.Array] = []
        # blocks differ in their input channels
        widths = [channels if i else x.shape[-1] for i in range(count)]
        input_channels = list(zip(widths, [skip.shape[-1] for skip in skips], strict=True)) if skips else widths
        for group in _consecutive_groups(input_channels if self.scan_blocks else range(count)):
            first, last = group[0], group[-1]
            if first == last:
                x = concat_skip(x, skips[first] if skips else None)
                x = self._res_block(x, context, channels, f"{name}_res_{first}")
                x = self._attention(x, context, kinds, f"{name}_attend_{first}")
                outputs.append(x)
            else:
                scan = self._make_scan(channels, kinds, len(group))(name=stack_name(f"{name}_blocks", first, last))
                # the hashes that the blocks would have if they were not scanned
                hashes = jnp.array([name_hash(f"{name}_res_{i}") for i in group], jnp.uint32)
                x, stacked = scan(x, jnp.stack(skips[first : last + 1]) if skips else None, hashes, context)
                outputs.extend(stacked)
        return x, outputs

    def _make_scan(self, channels: int, kinds: tuple[str, ...], count: int) -> _ModuleMaker:
        """Returns a maker of `count` scanned blocks; their parameters, skips and name hashes are stacked."""
        scan = nn.scan(
            _ScanBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),
            length=count,
        )
        return functools.partial(
            scan,
            self._make_res_block(channels, scanned=True),
            self._make_attention(kinds, scanned=True),
            self.constrain,
        )

    def _make_res_block(self, channels: int, resample: str = "", scanned: bool = False) -> _ModuleMaker:
        """Returns a maker of a residual block."""
        module = self._with_remat(ResBlock, scanned)
        return functools.partial(module, channels, self.num_groups, self.dropout, self.dtype, resample)

    def _make_attention(self, kinds: tuple[str, ...], scanned: bool = False) -> _ModuleMaker:
        """Returns a maker of attention layers."""
        module = self._with_remat(AttentionStack, scanned)
        return functools.partial(module, kinds, self.head_channels, self.num_groups, self.mlp_ratio, self.dtype)

    def _with_remat(self, module: type[nn.Module], scanned: bool) -> Any:
        """Returns the module class with rematerialization as `remat` says; its parameters are the same."""
        policy = REMAT_POLICIES[self.remat]
        # inside a scan, XLA cannot merge the recomputation with the forward pass (CSE)
        return nn.remat(module, policy=policy, prevent_cse=not scanned) if policy else module
