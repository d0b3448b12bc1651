"""The codec that a new stage of latents takes from the codec's own run, and how its latents are normalized."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.images.array import to_float
from imagen_jax.parallel import runtime
from imagen_jax.parallel.axes import IMAGE
from imagen_jax.parallel.batching import shard_local_batch
from imagen_jax.parallel.sharding import device_put_global, replicate_conv_kernels, replicated
from imagen_jax.stages.codec import CODEC, LATENTS, NETWORK_PARTS, Codec
from imagen_jax.stages.saved_arrays import describe
from imagen_jax.stages.stage_folder import open_weights
from imagen_jax.training.init_from import StartingPoint, read_source

_MIN_DEVIATION = 1e-6  # below it, a channel of latents is the same for all images


class CodecStart:
    """The codec of `codec.path`; compared to the stage's when it is made, before anything is loaded or written.

    Args:
        config: of the stage.
        abstract: the codec's parameters, as abstract arrays with shardings.

    Raises:
        ConfigError: no codec is named, the folder is not that of one, or it is another codec than the config's.
        TrainingError: its files are damaged.
    """

    def __init__(self, config: StageConfig, abstract: Any) -> None:
        self._config, path = config, config.codec.path
        if not path:
            raise ConfigError(
                "codec.path is '', and codec.kind 'kl_vae' needs the weights of a codec: give the --workdir of a run "
                "with model.network='kl_vae', such as configs/shapes_codec.py"
            )
        folder, source = read_source(path, "codec.path")
        if not source.is_codec:
            raise ConfigError(
                f"codec.path {path!r} is a stage with the network {source.model.network!r}: give a run with "
                "model.network='kl_vae'"
            )
        theirs, ours = source.model.to_dict(), config.codec.model.to_dict()
        different = [
            f"codec.model.{name} is {ours[name]!r} and there {theirs[name]!r}"
            for name in ours
            if ours[name] != theirs[name] and name != "dtype"
        ]
        if source.channels != config.channels:
            different.append(f"channels is {config.channels} and there {source.channels}")
        if different:
            raise ConfigError(f"codec.path {path!r} has another codec: {'; '.join(different)}: give its values")
        self._weights = open_weights(folder)
        self._abstract = {name: abstract[name] for name in NETWORK_PARTS}
        stored, needed = describe(self._weights.shapes, ""), describe(self._abstract, "")
        if needed.items() - stored.items():
            raise ConfigError(f"codec.path {path!r} lacks parameters of its network: train it again")

    def load(self, mesh: Mesh, batches: Iterator[Any], log: Callable[[str], None]) -> Any:
        """Returns the parameters of the codec, with mean and deviation of its latents for training images.

        Args:
            mesh: the devices.
            batches: this process's part of the batches of training.
            log: takes a message.

        Raises:
            TrainingError: a channel of the latents is the same for all images.
        """
        config, weights = self._config, self._weights
        params = weights.load(self._abstract, partial=True)
        count = -(-config.codec.scale_images // config.training.batch_size)
        codec = Codec.of(config.codec.model, config.channels)
        mean, std = measure_latents(codec, params, mesh, itertools.islice(batches, count))
        if not np.all(np.isfinite(std)) or std.min() < _MIN_DEVIATION:
            raise TrainingError(
                f"codec.path {config.codec.path!r} has latents without deviation in a channel (from {std.min():.3g} to "
                f"{std.max():.3g}): lower its reconstruction.kl_weight, or train it longer"
            )
        log(
            f"the codec is that of {str(weights.workdir)!r} at step {weights.step}; over {count} batches its latents "
            f"have deviations from {std.min():.3g} to {std.max():.3g}, which become 1"
        )
        values = {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
        return {**params, LATENTS: device_put_global(values, {name: replicated(mesh) for name in values})}


def measure_latents(
    codec: Codec, params: Any, mesh: Mesh, batches: Iterator[dict[str, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation [c] of each channel of the latents of images, float64.

    Args:
        codec: the codec.
        params: of its network.
        mesh: the devices.
        batches: this process's part of batches, with `image` uint8 or uint16 [rows, H, W, C].
    """
    codec, channels = codec.with_mesh(mesh), codec.network.latent_channels
    identity = {"mean": jnp.zeros((channels,)), "std": jnp.ones((channels,))}

    def moments(params: Any, images: jax.Array) -> jax.Array:
        params = {**replicate_conv_kernels(params, mesh), LATENTS: identity}
        latents = codec.encode(params, to_float(images))
        return jnp.stack([jnp.mean(latents, axis=(0, 1, 2)), jnp.mean(jnp.square(latents), axis=(0, 1, 2))])

    program = jax.jit(moments, out_shardings=replicated(mesh), compiler_options=runtime.compiler_options(mesh))
    parts = []
    for batch in batches:
        image = shard_local_batch({"image": batch["image"]}, IMAGE, mesh)["image"]
        parts.append(np.asarray(program(params, image), np.float64))
    mean, square = np.mean(parts, axis=0)
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def open_codec(config: StageConfig, start: StartingPoint, everything: Any) -> CodecStart | None:
    """Returns where a new run's codec is from; None without one, or where the weights to start from have it.

    Args:
        config: of the run.
        start: where its other weights are from.
        everything: all its parameters, as abstract arrays.

    Raises:
        ConfigError: as `CodecStart`.
    """
    if not config.codec.has_latents or start.has_codec:
        return None
    return CodecStart(config, everything[CODEC])
