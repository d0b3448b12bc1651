"""The compiled sampler of a stage that is a VAE: it samples the prior in one step, reconstructs and decodes latents.

Beside a `StageSampler` it serves pipelines as one: a walk of a single step, with the same requests, keys and programs
that are shared among equal stages.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.schema import SamplingConfig
from imagen_jax.diffusion.samplers import SamplerState
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, image_dtype, to_uint
from imagen_jax.parallel import multihost, runtime
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.parallel.batching import batch_sharding, shard_host_batch
from imagen_jax.parallel.mesh import num_batch_shards
from imagen_jax.parallel.sharding import replicate_conv_kernels
from imagen_jax.stages.stage import Stage, check_rows, enlarged_size
from imagen_jax.stages.stage_sampler import (
    STEPS_PER_CALL,
    StageRequest,
    StageWalk,
    finish_program,
    in_parts,
    static_settings,
)
from imagen_jax.stages.vae import (
    LATENT_AXES,
    VAEInputs,
    decode_inputs,
    encode_inputs,
    prior_latents,
    reconstruct_inputs,
)


@functools.lru_cache(64)
def _compile(
    stage: Stage, mesh: Mesh | AbstractMesh, size: Size, isolated: bool, what: Callable[..., jax.Array]
) -> jax.stages.Wrapped:
    """Returns the program `(params, inputs)` of `decode_inputs`, or `(params, inputs, images)` of another function."""
    stage = stage.with_mesh(mesh)
    function = functools.partial(what, stage, size)

    def run(params: Any, *batch: Any) -> Any:
        params = replicate_conv_kernels(params, mesh)
        if isolated:
            return in_parts(num_batch_shards(mesh), 1, functools.partial(function, params), *batch)
        return function(params, *batch)

    axes = LATENT_AXES if what is encode_inputs else IMAGE
    return jax.jit(run, out_shardings=batch_sharding(mesh, axes), compiler_options=runtime.compiler_options(mesh))


@functools.lru_cache(64)
def _latents_program(stage: Stage, size: Size) -> jax.stages.Wrapped:
    return jax.jit(functools.partial(prior_latents, stage, size))


class VAESampler:
    """The sampler of one VAE on a mesh, with the methods of a `StageSampler`.

    Args:
        stage: the stage to sample from, with its settings.
        mesh: batches are split over all its devices.

    Raises:
        ConfigError: the rows of the images cannot be sharded as the mesh says.
    """

    remembers = False

    def __init__(self, stage: Stage, mesh: Mesh) -> None:
        check_rows(stage.config, mesh.shape["spatial"])
        self._settings: SamplingConfig = stage.config.sampling
        self._stage, self._mesh = stage, mesh
        # equal stages share their programs, whatever those of their settings are that programs take as arguments
        config = stage.config.with_changes({"training": type(stage.config.training)().to_dict()})
        config = config.model_copy(update={"sampling": static_settings(self._settings)})
        self._key = dataclasses.replace(stage, config=config)

    def as_inversion(self, params: Any, request: StageRequest) -> StageRequest:
        """Returns the request that encodes a request's images."""
        return dataclasses.replace(request, inverts=True)

    def start_noise(self, keys: jax.Array, size: Size) -> jax.Array:
        """Returns the latents [B, D] of the prior for keys [B], at the temperature, for images of (height, width)."""
        return _latents_program(self._key, size)(keys, np.float32(self._settings.temperature))

    def walk(self, params: Any, request: StageRequest, steps_per_call: int = STEPS_PER_CALL) -> Iterator[StageWalk]:
        """Samples a batch in one step; the state's z are the images. See `StageSampler.walk`.

        The images are those of the request's `z`, or of random latents. If the request inverts, the state's z are the
        latents [B, D] of its images.

        Raises:
            ConfigError: the request begins with an image, or has a guidance scale besides 0 and 1.
        """
        del steps_per_call
        size, inputs = self._size(request), self._inputs(request)
        what = encode_inputs if request.inverts else decode_inputs
        program = _compile(self._key, self._mesh, size, request.isolated, what)
        if request.inverts:
            assert request.image is not None
            yield StageWalk(1, 1, SamplerState(program(params, inputs, request.image), request.image))
            return
        _check(request)
        images = program(params, inputs)
        yield StageWalk(1, 1, SamplerState(images, images))

    def reconstruct(self, params: Any, request: StageRequest) -> jax.Array:
        """Returns the images of a request as the VAE gives them back, see `reconstruct_inputs`, on the device."""
        assert request.image is not None
        size = self._size(request)
        program = _compile(self._key, self._mesh, size, request.isolated, reconstruct_inputs)
        return program(params, self._inputs(request), request.image)

    def _size(self, request: StageRequest) -> Size:
        if request.low_res is not None:
            return enlarged_size(self._stage, request.low_res)
        return self._stage.image_shape[:2] if request.size is None else request.size

    def _inputs(self, request: StageRequest) -> VAEInputs:
        batch = len(request.keys)
        scales = request.guidance_scale
        scales = np.full(batch, self._settings.guidance_scale) if scales is None else np.asarray(scales)
        if not np.isin(scales, (0, 1)).all():
            raise ConfigError(
                f"guidance_scale {np.max(scales):g} is of diffusion, and a VAE has no guidance: give 1 for its stage, "
                "or 0 to sample without text"
            )
        numbers = {
            "uses_text": scales,
            "temperature": np.full(batch, self._settings.temperature),
            "aug_level": np.full(batch, self._settings.aug_level),
        }
        numbers = {name: values.astype(np.float32) for name, values in numbers.items()}
        return VAEInputs(
            text=request.text,
            null_text=request.null_text,
            keys=request.keys,
            low_res=request.low_res,
            z=request.z,
            **shard_host_batch(numbers, VECTOR, self._mesh),
        )

    def decode(self, params: Any, z: jax.Array, isolated: bool = False) -> jax.Array:
        """Returns predictions as images: they are, see `StageSampler.decode`."""
        return z

    def finish(self, params: Any, state: SamplerState, isolated: bool = False) -> jax.Array:
        """Returns the images of a state, float32 [B, H, W, C] in [-1, 1], on the device; see `StageSampler.finish`."""
        return finish_program(batch_sharding(self._mesh, IMAGE))(state.z)

    def sample(self, params: Any, request: StageRequest) -> jax.Array:
        """Returns images, float32 [B, H, W, C] in [-1, 1], on the device."""
        (walk,) = self.walk(params, request)
        return self.finish(params, walk.state)

    def sample_uint(self, params: Any, request: StageRequest, count: int) -> np.ndarray:
        """Returns the first `count` images, uint8 or uint16 [count, H, W, C] as the settings' `bits` says."""
        images = to_uint(self.sample(params, request), image_dtype(self._settings.bits, "sampling.bits"))
        return multihost.all_gather(images)[:count]


def _check(request: StageRequest) -> None:
    """Raises ConfigError for what only diffusion can begin with."""
    given = {
        "an image": request.image is not None and (request.strength < 1 or request.mask is not None),
        "edits": request.pairs is not None,
        "other times": request.times is not None,
    }
    for what, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"a VAE samples its prior in one step, and {what} to begin with is given: edit with a cascade whose "
                "stages are diffusion, or reconstruct the image"
            )
