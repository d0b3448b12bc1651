"""The compiled sampler of a stage: starts a walk, takes steps of it, and ends it.

The programs depend on what changes their operations: the network, the sampler, whether there is guidance. Steps, times,
guidance scales, seeds and augmentation levels are arguments. Loading the same stage again compiles nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import SamplingConfig
from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.inpainting import resample
from imagen_jax.diffusion.keys import MAX_INDEX, keys_from_seeds
from imagen_jax.diffusion.process import add_noise
from imagen_jax.diffusion.samplers import SamplerState, StepInputs
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.images.array import Size, image_dtype, to_float, to_uint
from imagen_jax.parallel import multihost, runtime
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import num_batch_shards
from imagen_jax.parallel.sharding import replicate_conv_kernels, replicated
from imagen_jax.stages.codec import CODEC
from imagen_jax.stages.conditions import split_keys, start_condition
from imagen_jax.stages.sampling import (
    Conditions,
    Pairs,
    is_guided,
    make_denoise_fn,
    make_sampler,
)
from imagen_jax.stages.stage import Stage, check_rows, enlarged_size
from imagen_jax.stages.text import PromptEncoder, repeat_text
from imagen_jax.text.encoder import TEXT_CONDITION_AXES, TextCondition

STEPS_PER_CALL = 8  # what a caller waits for, at most, before it hears of a walk or can end it
_STEP_BLOCK = 1024  # numbers of steps are padded to a multiple, so that programs take any number of steps
_MAX_PROGRAMS = 64  # that are kept for stages and settings used before
# settings that the times of a walk, and the numbers of its steps, do not depend on
_OF_NO_WALK: dict[str, Any] = {
    "aug_level": 0.0,
    "bits": 8,
    "guidance_scale": 1.0,
    "temperature": 1.0,
    "draft": "",
    "draft_strength": 1.0,
}
# settings that are arguments of the programs, with the values that stand for all others
_DYNAMIC = {"num_inference_steps": 1, "timestep_spacing": "uniform", **_OF_NO_WALK}


@dataclasses.dataclass(frozen=True)
class StageRequest:
    """A batch to sample from a stage; arrays are [B, ...], on the stage's mesh.

    Attributes:
        text: the prompts.
        null_text: the null text, or negative prompts.
        keys: from `stage_keys`.
        low_res: the images that a super-resolution stage enlarges, float in [-1, 1]; None for a base stage.
        guidance_scale: float [B] in place of the settings' scale.
        size: (height, width) of the images, by default those of the config, or of `low_res` scaled.
        image: images [B, H, W, C] in [-1, 1] to begin with, with noise as `strength` says, and whose pixels outside of
            `mask` are kept; None to begin with noise alone.
        mask: [B, H, W, 1] in [0, 1]: 1 where pixels of `image` are drawn anew; None for everywhere. A stage that is
            trained to inpaint sees the image outside of it.
        strength: the time in (0, 1] at which the walk begins; it takes this share of the steps. At 1 it begins with
            noise alone.
        resample: how often each step is taken, see `inpainting.resample`.
        times: [steps + 1], in place of those of the settings and of `strength`.
        z: [B, H, W, C] at the first time, or latents [B, h, w, c], in place of standard Gaussian noise; for a VAE its
            latents [B, D], see `vae.flatten_noise`.
        before: for `bdia`, z at the second time, if it is known; see `samplers.continue_pair`.
        pairs: how images are edited, each beside its source; None for no editing.
        positions: `row_positions` [B, H] and `column_positions` [B, W], where pixels are in images as they were in
            training, in [0, 1]; None to spread them evenly.
        isolated: whether each device computes its images one after the other, each by the same operations: an image is
            then equal to the bit in any batch. In one batch together, its rounding depends on its place. An image that
            is edited and its source are computed together.
        inverts: for a VAE, whether `image` is encoded: the walk ends with its latents. Diffusion is given `times`.
    """

    text: TextCondition
    null_text: TextCondition
    keys: jax.Array
    low_res: jax.Array | None = None
    guidance_scale: np.ndarray | None = None
    size: Size | None = None
    image: jax.Array | None = None
    mask: jax.Array | None = None
    strength: float = 1.0
    resample: int = 1
    times: np.ndarray | None = None
    z: jax.Array | None = None
    before: jax.Array | None = None
    pairs: Pairs | None = None
    positions: dict[str, jax.Array] | None = None
    isolated: bool = False
    inverts: bool = False

    @property
    def known(self) -> dict[str, jax.Array] | None:
        """See `Conditions`."""
        return None if self.image is None or self.mask is None else {"image": self.image, "mask": self.mask}


@jax.jit
def _fold_in_indices(roots: jax.Array, indices: jax.Array, stage_index: jax.Array) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in)(roots, indices)
    return jax.random.key_data(jax.vmap(lambda key: jax.random.fold_in(key, stage_index))(keys))


def stage_keys(seeds: Sequence[int], indices: Sequence[int], stage_index: int, mesh: Mesh) -> jax.Array:
    """Returns the keys [B] of samples in the stage with an index in the cascade, on a mesh.

    Args:
        seeds: of each sample.
        indices: of each sample among those of its seed, modulo 2^32.
        stage_index: of the stage.
        mesh: the devices.
    """
    wrapped = np.asarray([index & MAX_INDEX for index in indices], np.uint32)
    data = np.asarray(_fold_in_indices(keys_from_seeds(seeds), wrapped, np.int32(stage_index)))
    return jax.random.wrap_key_data(shard_host_batch({"keys": data}, "batch ...", mesh)["keys"])


@functools.partial(jax.jit, static_argnums=1)
def start_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the noise [B, *shape] that walks with keys [B] from `stage_keys` begin with."""
    return samplers.gaussian_noise(split_keys(keys)[0], 0, shape)


def strength_steps(num_inference_steps: int, strength: float) -> int:
    """Returns how many of a sampler's steps are taken at a strength in (0, 1], see `StageRequest`; at least one."""
    return max(1, round(num_inference_steps * strength))


class NoiseSource(NamedTuple):
    """What the noise of a batch is a function of, apart from the position in it.

    Attributes:
        seed: of all samples.
        first_index: index of the batch's first sample.
        stage_index: index of the stage in its cascade.
    """

    seed: int = 0
    first_index: int = 0
    stage_index: int = 0


def make_request(
    stage: Stage,
    encoder: PromptEncoder,
    prompts: Sequence[str] | TextCondition,
    noise: NoiseSource,
    low_res: np.ndarray | None = None,
    guidance_scale: np.ndarray | None = None,
) -> StageRequest:
    """Returns the request for one batch of one stage, padded to full batch shards.

    Args:
        stage: the stage.
        encoder: its text encoder; the batch goes to its mesh.
        prompts: B prompts, or their text from `PromptEncoder.on_host`.
        noise: of the batch.
        low_res: [B, h, w, C], uint8, uint16, or float in [-1, 1]; None for a base stage.
        guidance_scale: float [B] in place of the config's.
    """
    mesh = encoder.mesh
    size = padded_size(len(prompts.mask if isinstance(prompts, TextCondition) else prompts), num_batch_shards(mesh))
    if isinstance(prompts, TextCondition):
        padded = {name: pad_batch(np.asarray(array), size) for name, array in prompts._asdict().items()}
        text = TextCondition(**shard_host_batch(padded, TEXT_CONDITION_AXES._asdict(), mesh))
    else:
        text = encoder(pad_batch(list(prompts), size, ""))
    images = None
    if low_res is not None:
        images = shard_host_batch({"low_res": pad_batch(low_res, size)}, IMAGE, mesh)["low_res"]
        images = to_float(images) if np.issubdtype(low_res.dtype, np.integer) else images
    return StageRequest(
        text,
        repeat_text(encoder.null_text(stage.config.diffusion.null_text), size, mesh),
        stage_keys([noise.seed] * size, range(noise.first_index, noise.first_index + size), noise.stage_index, mesh),
        images,
        None if guidance_scale is None else pad_batch(np.asarray(guidance_scale, np.float32), size, 1),
    )


def program_key(settings: SamplingConfig) -> Hashable:
    """Returns what sampling settings are compiled for: those with equal keys share the programs of a stage."""
    return static_settings(settings), is_guided(settings, settings.guidance_scale)


class _Variant(NamedTuple):
    """What the programs of a stage are compiled for besides its settings.

    Attributes:
        guided: whether there is guidance.
        isolated: see `StageRequest`.
        resample: see `StageRequest`.
        size: (height, width) of the images; for each, programs are kept or forgotten by themselves.
    """

    guided: bool
    isolated: bool
    resample: int
    size: Size


class _Given(NamedTuple):
    """The arrays [B, ...] that a walk starts from, see `StageRequest`.

    An image is given if noise is added to it, and what is known if the stage is trained to inpaint.
    """

    keys: jax.Array
    low_res: jax.Array | None
    z: jax.Array | None
    image: jax.Array | None
    before: jax.Array | None
    known: dict[str, jax.Array] | None
    positions: dict[str, jax.Array] | None


class _Programs(NamedTuple):
    """The compiled parts of a walk: its start, and steps of it; between pixels and latents, before it and after it."""

    start: jax.stages.Wrapped
    advance: jax.stages.Wrapped
    encode: jax.stages.Wrapped
    decode: jax.stages.Wrapped


def static_settings(settings: SamplingConfig) -> SamplingConfig:
    """Returns settings with those that are arguments of programs alike, as a key of programs."""
    return settings.model_copy(update=_DYNAMIC)


def _compile_programs(stage: Stage, settings: SamplingConfig, mesh: Mesh, variant: _Variant) -> _Programs:
    stage = stage.with_mesh(mesh)
    sampler, images = make_sampler(settings, stage.schedule), batch_sharding(mesh, IMAGE)
    if variant.resample > 1:
        sampler = resample(sampler, variant.resample)

    def of_batch(function: Any, *batch: Any, together: int = 1) -> Any:
        if not variant.isolated:
            return function(*batch)
        return in_parts(num_batch_shards(mesh), together, function, *batch)

    def start(given: _Given, level: jax.Array, time: jax.Array, size: Size) -> Any:
        def start_images(given: _Given) -> Any:
            start_keys, step_keys, aug_keys = split_keys(given.keys)
            z = given.z
            if z is None:
                z = samplers.gaussian_noise(start_keys, 0, stage.z_shape(size))
            condition = start_condition(stage, z.shape, given.low_res, level, aug_keys, given.known)
            condition |= given.positions or {}
            if given.image is not None:
                z = add_noise(given.image, z, stage.schedule.alpha(time), stage.schedule.sigma(time))
            return sampler.start(z, given.before), condition, step_keys

        state, condition, step_keys = of_batch(start_images, given)
        # both arrays: the first steps take over their memory
        return jax.lax.with_sharding_constraint(state, images), condition, step_keys

    def advance(
        params: Any, state: SamplerState, conditions: Conditions, numbers: StepInputs, span: jax.Array
    ) -> tuple[SamplerState, jax.Array]:
        first, last, steps = span
        params = replicate_conv_kernels(params, mesh)
        ends = jnp.stack([numbers["t"][0], numbers["s"][steps - 1]])

        def advance_images(state: SamplerState, conditions: Conditions) -> SamplerState:
            denoise = make_denoise_fn(stage, settings, variant.guided, params, conditions, ends, steps)
            return samplers.walk(sampler, denoise, state, numbers, conditions.keys, span=(first, last))

        # an edited image takes over from its source, which is in the row before it
        together = 1 if conditions.pairs is None else 2
        return of_batch(advance_images, state, conditions, together=together), last

    def encode(params: Any, pixels: _Pixels) -> _Pixels:
        params = replicate_conv_kernels(params, mesh)
        together = 1 if pixels.source is None else 2
        return of_batch(lambda pixels: _encode(stage, params, pixels), pixels, together=together)

    def decode(params: Any, z: jax.Array) -> jax.Array:
        params = replicate_conv_kernels(params, mesh)
        return of_batch(lambda z: stage.decode(params, z), z)

    options = runtime.compiler_options(mesh)
    before = images if sampler.remembers else ()
    state: Any = SamplerState(images, images, before)  # type: ignore[arg-type]  # shardings in the place of arrays
    return _Programs(
        jax.jit(start, static_argnames="size"),
        jax.jit(advance, donate_argnums=1, out_shardings=(state, replicated(mesh)), compiler_options=options),
        jax.jit(encode, compiler_options=options),
        jax.jit(decode, out_shardings=images, compiler_options=options),
    )


class _Pixels(NamedTuple):
    """The parts of a request that are of pixels, [B, ...] each, or None, see `StageRequest`; encoded, of latents.

    Attributes:
        image: to begin with.
        known: see `Conditions`.
        source: the image of `pairs`.
        positions: see `StageRequest`.
    """

    image: jax.Array | None
    known: dict[str, jax.Array] | None
    source: jax.Array | None
    positions: dict[str, jax.Array] | None


def _encode(stage: Stage, params: Any, pixels: _Pixels) -> _Pixels:
    """Returns what is of pixels in a request as it is for latents."""
    assert stage.codec is not None
    codec, known, positions = params[CODEC], pixels.known, pixels.positions
    if known is not None:
        latents, mask = stage.codec.encode_known(codec, known["image"], known["mask"])
        known = {"image": latents, "mask": mask}
    if positions is not None:
        factor = stage.codec.factor
        positions = {name: axis.reshape(len(axis), -1, factor).mean(axis=-1) for name, axis in positions.items()}
    image, source = (
        None if image is None else stage.codec.encode(codec, image) for image in (pixels.image, pixels.source)
    )
    return _Pixels(image, known, source, positions)


def in_parts(shards: int, together: int, function: Any, *batch: Any) -> Any:
    """Returns a function of a batch, computed in parts of so many examples of each of the mesh's batch shards."""

    def split(array: jax.Array) -> jax.Array:
        rest = array.shape[1:]
        parts = array.reshape(shards, -1, together, *rest).swapaxes(0, 1)
        return parts.reshape(len(parts), shards * together, *rest)

    def join(array: jax.Array) -> jax.Array:
        rest = array.shape[2:]
        return array.reshape(-1, shards, together, *rest).swapaxes(0, 1).reshape(-1, *rest)

    parts = jax.tree.map(split, batch)
    return jax.tree.map(join, jax.lax.map(lambda part: function(*part), parts))


def _make_walk(sampler: samplers.Sampler, times: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns times, and the numbers of their steps, padded so that another number of steps needs no other program."""
    samplers.check_times(times, sampler.deterministic)
    numbers = jax.jit(sampler.inputs)(times)
    padding = -(len(times) - 1) % _STEP_BLOCK
    return times, {name: np.pad(np.asarray(values), (0, padding)) for name, values in numbers.items()}


@functools.lru_cache(_MAX_PROGRAMS)
def _default_walk(settings: SamplingConfig, schedule: Schedule) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the times of settings, and the numbers of their steps: once for all that differ in `_OF_NO_WALK`."""
    sampler = make_sampler(settings, schedule)
    times = jax.jit(sampler.times, static_argnums=(0, 1))
    return _make_walk(sampler, np.asarray(times(settings.num_inference_steps, settings.timestep_spacing)))


_programs: collections.OrderedDict[Any, _Programs] = collections.OrderedDict()
_programs_lock = threading.Lock()


def _get_programs(stage: Stage, mesh: Mesh, variant: _Variant) -> _Programs:
    """Returns the programs of a stage with its settings, shared with every equal stage of this process."""
    settings = static_settings(stage.config.sampling)
    config = to_json(stage.config)
    keys = ("image_size", "low_res_size", "channels", "diffusion", "inpainting")
    described = json.dumps({name: config[name] for name in keys})
    key = (stage.network, stage.codec, stage.schedule.name, described, stage.text_width, settings, mesh, variant)
    with _programs_lock:
        if key not in _programs:
            _programs[key] = _compile_programs(stage, settings, mesh, variant)
        _programs.move_to_end(key)
        while len(_programs) > _MAX_PROGRAMS:
            _programs.popitem(last=False)
        return _programs[key]


class StageWalk(NamedTuple):
    """A batch on its way from noise to images.

    Attributes:
        step: steps taken.
        steps: steps in all.
        state: z and x_hat after them, on the device; valid until the next step is asked for.
    """

    step: int
    steps: int
    state: SamplerState


class StageSampler:
    """The sampler of one stage on a mesh.

    Args:
        stage: the stage to sample from, with its settings.
        mesh: batches are split over all its devices.

    Raises:
        ConfigError: the rows of the images cannot be sharded as the mesh says.
    """

    def __init__(self, stage: Stage, mesh: Mesh) -> None:
        check_rows(stage.config, mesh.shape["spatial"])
        self._stage, self._mesh, self._settings = stage, mesh, stage.config.sampling
        self._sampler = make_sampler(self._settings, stage.schedule)
        self._own_programs: dict[_Variant, _Programs] = {}

    @property
    def remembers(self) -> bool:
        """Whether states have z at the time before, see `samplers.SamplerState`."""
        return self._sampler.remembers

    @property
    def times(self) -> np.ndarray:
        """The times of the settings, [steps + 1]."""
        return self._default_walk[0]

    @functools.cached_property
    def _default_walk(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The times of the settings, and the numbers of their steps."""
        return _default_walk(self._settings.model_copy(update=_OF_NO_WALK), self._stage.schedule)

    def as_inversion(self, params: Any, request: StageRequest) -> StageRequest:
        """Returns the request of a walk from a request's images up to their noise; `params` have a codec's."""
        z = None if request.image is None else self.encode(params, request.image)
        return dataclasses.replace(request, image=None, z=z, times=self.times[::-1])

    def start_noise(self, keys: jax.Array, size: Size) -> jax.Array:
        """Returns the noise [B, H, W, C] that walks with keys [B] begin with, for images of (height, width)."""
        return start_noise(keys, self._stage.z_shape(size))

    def _times_of(self, request: StageRequest) -> np.ndarray:
        """Returns the times of a request that are not those of the settings."""
        if request.times is not None:
            return np.asarray(request.times, np.float32)
        steps = strength_steps(self._settings.num_inference_steps, request.strength)
        return np.asarray(self._sampler.times(steps, self._settings.timestep_spacing, request.strength))

    def walk(self, params: Any, request: StageRequest, steps_per_call: int = STEPS_PER_CALL) -> Iterator[StageWalk]:
        """Samples a batch, some steps at a time; the last state's z are the images.

        The images do not depend on `steps_per_call`, to the bit.

        Args:
            params: weights of the network.
            request: the batch.
            steps_per_call: steps between two yields.

        Raises:
            ConfigError: the request's times are not monotone.
        """
        default = request.times is None and request.strength == 1
        times, numbers = self._default_walk if default else _make_walk(self._sampler, self._times_of(request))
        batch, steps = len(request.keys), len(times) - 1
        scales = request.guidance_scale
        if scales is None:
            scales = np.full(batch, self._settings.guidance_scale, np.float32)
        size = self._stage.image_shape[:2] if request.size is None else request.size
        if request.low_res is not None:
            size = enlarged_size(self._stage, request.low_res)
        guided = is_guided(self._settings, scales)
        programs = self._get_programs(_Variant(guided, request.isolated, request.resample, size))
        pixels = self._encoded(params, request, size)
        known, pairs = pixels.known, request.pairs
        if pairs is not None and pixels.source is not None:
            pairs = pairs._replace(image=pixels.source)
        image = pixels.image if request.strength < 1 else None
        seen = known if self._stage.masks is not None else None
        given = _Given(request.keys, request.low_res, request.z, image, request.before, seen, pixels.positions)
        if request.before is not None:
            numbers = samplers.continue_pair(numbers)
        state, condition, keys = programs.start(given, np.float32(self._settings.aug_level), times[0], size=size)
        scale = shard_host_batch({"scale": np.asarray(scales, np.float32)}, VECTOR, self._mesh)["scale"]
        conditions = Conditions(request.text, request.null_text, condition, scale, keys, known, pairs)
        pending = None
        for first in range(0, steps, steps_per_call):
            last = min(first + steps_per_call, steps)
            span = np.array([first, last, steps], np.int32)
            state, done = programs.advance(params, state, conditions, numbers, span)
            # at most one call ahead: whoever watches hears of steps that are taken
            if pending is not None:
                pending.block_until_ready()
            pending = done
            yield StageWalk(last, steps, state)

    def _encoded(self, params: Any, request: StageRequest, size: Size) -> _Pixels:
        """Returns what is of pixels in a request, as it is for what the network sees."""
        source = None if request.pairs is None else request.pairs.image
        pixels = _Pixels(request.image, request.known, source, request.positions)
        if self._stage.codec is None or all(part is None for part in pixels):
            return pixels
        if request.strength == 1:  # the image itself is not seen
            pixels = pixels._replace(image=None)
        return self._codec_programs(size, request.isolated).encode(_codec_params(params), pixels)

    def encode(self, params: Any, images: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] in [-1, 1] as the network sees them, see `Stage.encode`."""
        if self._stage.codec is None:
            return images
        height, width = images.shape[1:3]
        pixels = _Pixels(images, None, None, None)
        return self._codec_programs((height, width), False).encode(_codec_params(params), pixels).image

    def decode(self, params: Any, z: jax.Array, isolated: bool = False) -> jax.Array:
        """Returns predictions, such as the x_hat of a walk's states, as images [B, H, W, C], on the device.

        Args:
            params: weights of the network, and of a codec.
            z: [B, H, W, C], or latents [B, h, w, c].
            isolated: see `StageRequest`.
        """
        if self._stage.codec is None:
            return z
        height, width = (side * self._stage.codec.factor for side in z.shape[1:3])
        return self._codec_programs((height, width), isolated).decode(_codec_params(params), z)

    def _codec_programs(self, size: Size, isolated: bool) -> _Programs:
        """Returns the programs whose codec is used for images of a size; it does not depend on other settings."""
        return self._get_programs(_Variant(False, isolated, 1, size))

    def _get_programs(self, variant: _Variant) -> _Programs:
        """Returns the programs; those for the stage's own size are kept as long as this sampler is."""
        if variant in self._own_programs:
            return self._own_programs[variant]
        programs = _get_programs(self._stage, self._mesh, variant)
        if variant.size == self._stage.image_shape[:2]:
            self._own_programs[variant] = programs
        return programs

    def finish(self, params: Any, state: SamplerState, isolated: bool = False) -> jax.Array:
        """Returns the images of a state, float32 [B, H, W, C] in [-1, 1], on the device; arguments as `decode`."""
        if self._stage.codec is not None:
            return self.decode(params, state.z, isolated)
        return finish_program(batch_sharding(self._mesh, IMAGE))(state.z)

    def sample(self, params: Any, request: StageRequest) -> jax.Array:
        """Returns images, float32 [B, H, W, C] in [-1, 1], on the device; as `walk`."""
        for walk in self.walk(params, request, steps_per_call=2**30):
            state = walk.state
        return self.finish(params, state, request.isolated)

    def sample_uint(self, params: Any, request: StageRequest, count: int) -> np.ndarray:
        """Returns the first `count` images, uint8 or uint16 [count, H, W, C] as the settings' `bits` says."""
        images = to_uint(self.sample(params, request), image_dtype(self._settings.bits, "sampling.bits"))
        return multihost.all_gather(images)[:count]


def _codec_params(params: Any) -> Any:
    """Returns the part of a stage's parameters that its codec needs."""
    return {CODEC: params[CODEC]}


@functools.cache
def finish_program(sharding: jax.sharding.Sharding) -> jax.stages.Wrapped:
    """Returns the program that clips images to [-1, 1]."""
    return jax.jit(lambda z: jnp.clip(z, -1.0, 1.0), out_shardings=sharding)
