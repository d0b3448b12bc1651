"""The programs that a plan is of: those of the commands, with shapes in the place of arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.images.array import dtype_of
from imagen_jax.parallel import sharding
from imagen_jax.planning.cost import cost
from imagen_jax.planning.flops import count_flops
from imagen_jax.stages import stage as stages
from imagen_jax.stages.sampling import jit_sample_fn, make_sample_fn
from imagen_jax.stages.stage import Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_state
from imagen_jax.training.step import make_train_step

AnyMesh = Mesh | AbstractMesh


@dataclasses.dataclass(frozen=True)
class Program:
    """What runs on the chips of a mesh.

    Attributes:
        held: bytes on each chip of what it is given, by kind.
        params: parameters of the network that it is about.
        flops: operations that the model needs, on all chips, as its own arithmetic counts them.
        examples: images, or captions, of one run.
        lower: the program as jax gives it to XLA; only on a mesh of devices.
    """

    held: dict[str, int]
    params: int
    flops: int
    examples: int
    lower: Callable[[], jax.stages.Lowered]


def train_program(config: StageConfig, mesh: AnyMesh, encoder: TextEncoder) -> Program:
    """The training step of a config. Raises UsageError where the config cannot work on the mesh."""
    size = config.training.batch_size
    sharding.check_batch(size, mesh, config.training.grad_accum_steps)
    stage = stages.build(config, encoder)
    optimizer = make_optimizer(config.optimizer)
    abstract, _ = abstract_state(stage.init, optimizer, config.seed, mesh, config.sharding_rules)
    encoder_params = sharding.abstract_sharded(encoder.shapes, mesh)
    image = jax.ShapeDtypeStruct((size, *stage.image_shape), dtype_of(config.data.bits, "config.data.bits"))
    batch = on_mesh({"image": image} | captions(size, encoder), mesh)

    def lower() -> jax.stages.Lowered:
        assert isinstance(mesh, Mesh)
        return make_train_step(stage, optimizer, abstract, mesh).lower(abstract, encoder_params, batch)

    return Program(
        held={
            "parameters": chip_bytes(abstract.params),
            "optimizer": chip_bytes(abstract.opt_state),
            "ema": chip_bytes(abstract.ema_params),
            "text encoder": chip_bytes(encoder_params),
            "batch": chip_bytes(batch),
        },
        params=parameter_count(abstract.params),
        flops=size * (cost(config, encoder.width).training_flops + caption_flops(encoder)),
        examples=size,
        lower=lower,
    )


def sample_program(config: StageConfig, mesh: AnyMesh, encoder: TextEncoder, size: int) -> Program:
    """The sampler of a stage for ``size`` prompts. Raises UsageError where its settings cannot work."""
    stage = stages.build(config, encoder)
    params = sharding.abstract_sharded(jax.eval_shape(stage.init, jax.random.key(0)), mesh)
    encoder_params = sharding.abstract_sharded(encoder.shapes, mesh)
    given = captions(size, encoder) | {"keys": jax.ShapeDtypeStruct((size,), jax.random.key(0).dtype)}
    if stage.is_super_resolution:
        given["low_res"] = jax.ShapeDtypeStruct((size, *stage.low_res_shape), jnp.float32)
    batch = on_mesh(given, mesh)
    arguments = (params, encoder_params, batch["tokens"], batch["mask"], batch["keys"], batch.get("low_res"))
    sampler = jit_sample_fn(stage, mesh)
    return Program(
        held={
            "parameters": chip_bytes(params),
            "text encoder": chip_bytes(encoder_params),
            "batch": chip_bytes(batch),
        },
        params=parameter_count(params),
        flops=sample_flops(stage, size),
        examples=size,
        lower=lambda: sampler.lower(*arguments),
    )


def embed_program(mesh: AnyMesh, encoder: TextEncoder, size: int) -> Program:
    """The text encoder for ``size`` captions."""
    params = sharding.abstract_sharded(encoder.shapes, mesh)
    batch = on_mesh(captions(size, encoder), mesh)
    return Program(
        held={"text encoder": chip_bytes(params), "batch": chip_bytes(batch)},
        params=parameter_count(params),
        flops=size * caption_flops(encoder),
        examples=size,
        lower=lambda: jax.jit(encoder.encode, out_shardings=sharding.batch_sharding(mesh)).lower(
            params, batch["tokens"], batch["mask"]
        ),
    )


def captions(size: int, encoder: TextEncoder) -> dict[str, jax.ShapeDtypeStruct]:
    """The text of a batch, without a sharding: tokens, or embeddings where the encoder has no parameters."""
    tokens = jax.ShapeDtypeStruct((size, encoder.length), jnp.int32)
    if not encoder.shapes:
        tokens = jax.ShapeDtypeStruct((*tokens.shape, encoder.width), jnp.bfloat16)
    return {"tokens": tokens, "mask": jax.ShapeDtypeStruct((size, encoder.length), jnp.bool_)}


def on_mesh(batch: dict[str, jax.ShapeDtypeStruct], mesh: AnyMesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch, as the commands lay it: examples over the devices, and rows of images where these share them."""
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.example_sharding(mesh, leaf.ndim))
        for name, leaf in batch.items()
    }


def chip_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on each chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def parameter_count(tree: Any) -> int:
    """Numbers in a tree of abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def caption_flops(encoder: TextEncoder) -> int:
    """What embedding one caption takes."""
    one = captions(1, encoder)
    return count_flops(jax.make_jaxpr(encoder.encode)(encoder.shapes, one["tokens"], one["mask"]))


def sample_flops(stage: Stage, size: int) -> int:
    """What drawing ``size`` images takes, all steps of the sampler."""
    config = stage.config
    one = captions(1, stage.encoder)
    key = jax.ShapeDtypeStruct((1,), jax.random.key(0).dtype)
    low_res = jax.ShapeDtypeStruct((1, *stage.low_res_shape), jnp.float32) if stage.is_super_resolution else None
    params = jax.eval_shape(stage.init, jax.random.key(0))
    traced = jax.make_jaxpr(make_sample_fn(stage, config.sampling))(
        params, stage.encoder.shapes, one["tokens"], one["mask"], key, low_res
    )
    return size * count_flops(traced)
