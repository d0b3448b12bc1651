"""The programs of the commands with abstract arrays, for plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.images.array import image_dtype
from imagen_jax.parallel import batching, sharding
from imagen_jax.parallel.axes import TEXT
from imagen_jax.parallel.mesh import check_batch_size
from imagen_jax.planning.cost import forward_flops, stage_cost
from imagen_jax.planning.flops import count_flops
from imagen_jax.stages import stage as stages
from imagen_jax.stages.adapter import trained_patterns
from imagen_jax.stages.codec_loss import CodecModel
from imagen_jax.stages.sampling import SAMPLING_AXES, jit_sample_fn, make_sample_fn
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.trainable import merge
from imagen_jax.text.encoder import TextCondition, TextEncoder
from imagen_jax.text.tokenizer import FEATURE_AXES
from imagen_jax.training.codec_task import CodecObjective
from imagen_jax.training.diffusion_task import make_objective
from imagen_jax.training.objective import Objective
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.refinement import RefinementNetworks, open_low_res_vae
from imagen_jax.training.state import Frozen, abstract_parts
from imagen_jax.training.step import make_train_step

AnyMesh = Mesh | AbstractMesh


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that runs on the chips of a mesh.

    Attributes:
        argument_bytes: bytes of its arguments on each chip, by kind.
        num_params: parameters of its network.
        model_flops: operations that the model needs, on all chips.
        batch_size: images or captions of one run.
        lower: lowers the program for XLA; only if the mesh has devices.
        num_trainable: parameters that are trained.
        gradient_bytes: bytes of their gradients on each chip, which the step computes.
    """

    argument_bytes: dict[str, int]
    num_params: int
    model_flops: int
    batch_size: int
    lower: Callable[[], jax.stages.Lowered]
    num_trainable: int = 0
    gradient_bytes: int = 0


def train_program(config: StageConfig, mesh: AnyMesh, encoder: TextEncoder) -> Program:
    """Returns the training step of a config. Raises ConfigError if the config does not fit the mesh."""
    size = config.training.batch_size
    check_batch_size(size, mesh, config.training.grad_accum_steps)
    objective: Objective
    networks: Any = {}
    vae_params: Any = {}
    if config.is_codec:  # which reads no text
        objective, inputs, encoder_params, frozen_cost = CodecObjective(CodecModel.of(config)), {}, {}, 0
    else:
        vae = open_low_res_vae(config, encoder)
        objective = make_objective(stages.build(config, encoder.width), encoder, vae)
        inputs, encoder_params = _text_inputs(size, encoder), sharding.with_shardings(encoder.shapes, mesh)
        networks, frozen_cost = encoder_params, encoder_flops(encoder)
        if vae is not None:
            vae_params = sharding.with_shardings(jax.eval_shape(vae.stage.init, jax.random.key(0)), mesh)
            networks = RefinementNetworks(encoder_params, vae_params)
            frozen_cost += forward_flops(vae.stage.config, encoder.width)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    abstract, frozen = abstract_parts(objective.init, optimizer, mesh, config.sharding_rules, trained_patterns(config))
    everything = merge(abstract.params, frozen)
    image_shape = (size, *config.training_hw, config.channels)
    image = jax.ShapeDtypeStruct(image_shape, image_dtype(config.data.bits, "config.data.bits"))
    objects = {"objects": image.update(shape=(*image_shape[:-1], 1))} if config.inpainting.needs_objects else {}
    keep = {"keep": jax.ShapeDtypeStruct((size,), jnp.bool_)} if config.diffusion.never_dropped else {}
    batch = _shard_batch({"image": image} | objects | inputs | keep, objective.batch_axes, mesh)

    def lower() -> jax.stages.Lowered:
        assert isinstance(mesh, Mesh)
        step = make_train_step(objective, config, optimizer, abstract, mesh)
        return step.lower(abstract, Frozen(networks, frozen), batch)

    return Program(
        argument_bytes={
            "parameters": bytes_per_chip(everything),
            "optimizer": bytes_per_chip(abstract.opt_state),
            "ema": bytes_per_chip(abstract.ema_params),
            "text encoder": bytes_per_chip(encoder_params),
            **({"low-res VAE": bytes_per_chip(vae_params)} if vae_params else {}),
            "batch": bytes_per_chip(batch),
        },
        num_params=count_params(everything),
        num_trainable=count_params(abstract.params),
        gradient_bytes=bytes_per_chip(abstract.params),
        model_flops=size * (stage_cost(config, encoder.width).training_flops + frozen_cost),
        batch_size=size,
        lower=lower,
    )


def sample_program(config: StageConfig, mesh: AnyMesh, encoder: TextEncoder, size: int) -> Program:
    """Returns the sampler of a stage for `size` prompts. Raises ConfigError if its settings are not valid.

    The text encoder runs before it, once for all stages; its weights stay in memory.
    """
    stage = stages.build(config, encoder.width)
    params = sharding.with_shardings(jax.eval_shape(stage.init, jax.random.key(0)), mesh)
    encoder_params = sharding.with_shardings(encoder.shapes, mesh)
    arguments = _shard_batch(_sample_arguments(stage, encoder, size), SAMPLING_AXES, mesh)
    sampler = jit_sample_fn(stage, mesh)
    return Program(
        argument_bytes={
            "parameters": bytes_per_chip(params),
            "text encoder": bytes_per_chip(encoder_params),
            "batch": bytes_per_chip(arguments),
        },
        num_params=count_params(params),
        model_flops=_sample_flops(stage, encoder, size),
        batch_size=size,
        lower=lambda: sampler.lower(params, *arguments),
    )


def _sample_arguments(stage: Stage, encoder: TextEncoder, size: int) -> list[Any]:
    """Returns the arguments of a stage's sampler but for the parameters, without sharding."""
    dtype = jax.tree.leaves(encoder.shapes)[0].dtype if encoder.shapes else jnp.bfloat16
    text = TextCondition(
        jax.ShapeDtypeStruct((size, encoder.length, encoder.width), dtype),  # type: ignore[arg-type]  # abstract
        jax.ShapeDtypeStruct((size, encoder.length), jnp.bool_),  # type: ignore[arg-type]
    )
    arguments: list[Any] = [text, text, jax.ShapeDtypeStruct((size,), jax.random.key(0).dtype)]
    if stage.is_super_resolution:
        arguments.append(jax.ShapeDtypeStruct((size, *stage.low_res_shape), jnp.float32))
    return arguments


def embed_program(mesh: AnyMesh, encoder: TextEncoder, size: int) -> Program:
    """Returns the text encoder for `size` captions."""
    params = sharding.with_shardings(encoder.shapes, mesh)
    batch = _shard_batch(_text_inputs(size, encoder), FEATURE_AXES, mesh)
    return Program(
        argument_bytes={"text encoder": bytes_per_chip(params), "batch": bytes_per_chip(batch)},
        num_params=count_params(params),
        model_flops=size * encoder_flops(encoder),
        batch_size=size,
        lower=lambda: jax.jit(encoder.encode, out_shardings=batching.batch_sharding(mesh, TEXT)).lower(
            params, batch["tokens"], batch["mask"]
        ),
    )


def _text_inputs(size: int, encoder: TextEncoder) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the text of a batch without sharding: tokens, or embeddings if the encoder has no parameters."""
    tokens = jax.ShapeDtypeStruct((size, encoder.length), jnp.int32)
    if not encoder.shapes:
        tokens = jax.ShapeDtypeStruct((*tokens.shape, encoder.width), jnp.bfloat16)
    return {"tokens": tokens, "mask": jax.ShapeDtypeStruct((size, encoder.length), jnp.bool_)}


def _shard_batch(batch: Any, axes: Any, mesh: AnyMesh) -> Any:
    """Returns a batch, a pytree of arrays with declared axes, with the shardings that the commands use."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        batch,
        batching.batch_shardings(batch, axes, mesh),
    )


def bytes_per_chip(tree: Any) -> int:
    """Returns the bytes of a tree of abstract arrays on each chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def count_params(tree: Any) -> int:
    """Returns the number of elements of a tree of abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def encoder_flops(encoder: TextEncoder) -> int:
    """Returns the operations of embedding one caption."""
    text = _text_inputs(1, encoder)
    return count_flops(jax.make_jaxpr(encoder.encode)(encoder.shapes, text["tokens"], text["mask"]))


def _sample_flops(stage: Stage, encoder: TextEncoder, size: int) -> int:
    """Returns the operations of sampling `size` images, in all steps of the sampler."""
    params = jax.eval_shape(stage.init, jax.random.key(0))
    sample = make_sample_fn(stage, stage.config.sampling)
    return size * count_flops(jax.make_jaxpr(sample)(params, *_sample_arguments(stage, encoder, 1)))
