"""What a stage costs, from its config alone: no text encoder is needed, nothing is allocated or compiled."""

from __future__ import annotations

import dataclasses

import jax

from imagen_jax.config.schema import StageConfig
from imagen_jax.planning.flops import count_flops
from imagen_jax.stages.stage import make_network, network_arguments

# The gradient of a product of two is two products of the same size.
FORWARD_AND_BACKWARD = 3


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a stage's network costs, without its text encoder.

    Attributes:
        parameters: their number.
        training_flops: floating-point operations of one image in training, forward and backward; of one crop, where
            the config trains on crops.
    """

    parameters: int
    training_flops: int


def cost(config: StageConfig, text_width: int) -> Cost:
    """The cost of the stage that a config describes, its text embeddings ``text_width`` wide.

    Raises UsageError where the config cannot work.
    """
    arguments = network_arguments(config, text_width, config.training_hw)
    # parameters and forward pass in one trace; drawing parameters takes no product
    traced = jax.jit(make_network(config).init_with_output).trace(jax.random.key(0), *arguments)
    _, variables = traced.out_info
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Cost(parameters, FORWARD_AND_BACKWARD * count_flops(traced.jaxpr))
