"""Parameters and training FLOPs of a stage from its config, without a text encoder, allocation or compilation."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.config.schema import StageConfig
from imagen_jax.planning.flops import count_flops
from imagen_jax.stages.adapter import network_params, network_patterns, with_adapter
from imagen_jax.stages.codec import Codec
from imagen_jax.stages.codec_loss import CodecBatch, CodecModel
from imagen_jax.stages.stage import make_network, network_arguments
from imagen_jax.stages.trainable import merge, split

# The gradient of a product of two arrays is two products of the same size.
_FORWARD_AND_BACKWARD = 3


@dataclasses.dataclass(frozen=True)
class StageCost:
    """The cost of a stage's network, without its text encoder.

    Attributes:
        num_params: number of parameters.
        training_flops: operations of a forward and backward pass for one image, or for one crop if the config trains on
            crops; without the gradients of parameters that `training.trainable` freezes, or an adapter is beside.
    """

    num_params: int
    training_flops: int


def stage_cost(config: StageConfig, text_width: int) -> StageCost:
    """Returns the cost of a stage.

    Args:
        config: the stage's config.
        text_width: width of its text embeddings.

    Raises:
        ConfigError: the config is not valid.
    """
    if config.is_codec:
        return _codec_cost(config)
    codec = _encoding_cost(config)
    arguments = network_arguments(config, text_width, config.training_hw)
    # parameters and forward pass in one trace: initialization has no matrix products
    traced = jax.jit(make_network(config).init_with_output).trace(jax.random.key(0), *arguments)
    _, variables = traced.out_info
    num_params = codec.num_params + _count(variables["params"])
    if not network_patterns(config):
        return StageCost(num_params, codec.training_flops + _FORWARD_AND_BACKWARD * count_flops(traced.jaxpr))
    return StageCost(num_params, codec.training_flops + _fine_tuning_flops(config, variables["params"], arguments))


def forward_flops(config: StageConfig, text_width: int) -> int:
    """Returns the operations of a forward pass of a stage's network for one image of training; see `stage_cost`."""
    arguments = network_arguments(config, text_width, config.training_hw)
    return count_flops(jax.jit(make_network(config).init_with_output).trace(jax.random.key(0), *arguments).jaxpr)


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _encoding_cost(config: StageConfig) -> StageCost:
    """Returns the cost of encoding images for a stage of latents; nothing for one of pixels."""
    if not config.codec.has_latents:
        return StageCost(0, 0)
    codec = Codec.of(config.codec.model, config.channels)
    params = jax.eval_shape(codec.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *config.training_hw, config.channels), jnp.float32)
    return StageCost(_count(params), count_flops(jax.make_jaxpr(codec.encode)(params, image)))


def _codec_cost(config: StageConfig) -> StageCost:
    """Returns the cost of a codec in training, with its discriminator."""
    model = CodecModel.of(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *config.training_hw, config.channels), jnp.float32)
    eps = jax.ShapeDtypeStruct(model.latent_shape(image), jnp.float32)
    batch: Any = CodecBatch(image, eps, jax.ShapeDtypeStruct((1,), jnp.float32))  # type: ignore[arg-type]  # abstract

    def total(params: Any, batch: CodecBatch) -> jax.Array:
        return jnp.sum(model.loss(params, batch).loss)

    return StageCost(_count(params), count_flops(jax.make_jaxpr(jax.grad(total))(params, batch)))


def _fine_tuning_flops(config: StageConfig, params: Any, arguments: list[Any]) -> int:
    """Returns the operations of a forward and backward pass in which some parameters have no gradients."""
    # without what is computed again to save memory
    network = make_network(config.with_changes({"training.remat": "none"}))
    everything = jax.eval_shape(partial(with_adapter, config), params, jax.random.key(0))

    def total(trainable: Any, frozen: Any) -> jax.Array:
        zeros = jax.tree.map(lambda argument: jnp.zeros(argument.shape, argument.dtype), arguments)
        output = network.apply({"params": network_params(config, merge(trainable, frozen))}, *zeros)
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(output)), jnp.float32(0))

    return count_flops(jax.make_jaxpr(jax.grad(total))(*split(everything, network_patterns(config))))
