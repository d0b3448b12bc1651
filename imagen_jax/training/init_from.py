"""The parameters of a run's first step: random, or the weights of a trained stage as far as they fit.

A run that trains to inpaint starts from a stage that does not, too: what it has besides is 0, so that its first
predictions are those of that stage. For another number of image channels, the kernels that read and write images are
averaged over those of the stage and repeated: gray images are seen and drawn as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_leaves_with_path as leaves_with_path

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.changes import changes, flatten
from imagen_jax.models.unet_base import KNOWN_SKIP, KNOWN_STEM
from imagen_jax.parallel.sharding import key_path, replicated
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.stages.adapter import is_adapter
from imagen_jax.stages.base import Base, Weights
from imagen_jax.stages.codec import CODEC
from imagen_jax.stages.saved_arrays import describe
from imagen_jax.stages.stage_folder import open_weights, read_config
from imagen_jax.stages.trainable import merge, select
from imagen_jax.stages.weights import WeightsChoice
from imagen_jax.text.encoder import is_local_folder
from imagen_jax.training.state import InitFn, init_params

_MAX_LISTED = 5
# groups of keys that decide what a network's inputs and outputs are
_TEXT = ("text.model", "text.length", "text.padding", "text.cleaning")
_MEANING = ("image_size", "low_res_size", "channels", *_TEXT, "diffusion.", "inpainting.", "codec.kind", "codec.model.")
# parameters that start at 0, see `UNetBase`
_INPAINTING = (f"{KNOWN_STEM}/", f"{KNOWN_SKIP}/")


class StartingPoint:
    """Where a new run starts from; compared to the network when it is made, before anything is loaded or written.

    Args:
        config: the run's config; its `training.init_from` is read, if it has one.
        everything: all parameters of its network, as abstract arrays with shardings.

    Raises:
        ConfigError: the folder is not that of a trained stage, or has other parameters than the network:
            all of them have to be there but what `inpainting` adds and the adapter, or with `training.init_partial` at
            least one; beside an adapter all of the network's. Another number of image channels fits.
        TrainingError: its files are damaged.
    """

    def __init__(self, config: StageConfig, everything: Any) -> None:
        self._config, self._everything = config, everything
        self._taken: set[str] = set()
        self._averaged: dict[str, int] = {}  # arrays of another number of channels, and the axis of these
        self._weights: Weights | None = None
        if config.training.init_from:
            self._open(config.training.init_from)

    def _open(self, name: str) -> None:
        """Compares the parameters of a stage to the network's."""
        training = self._config.training
        folder, self._source_config = read_source(name, "training.init_from")
        kind = "raw" if training.init_weights == "both" else training.init_weights
        self._weights = open_weights(folder, WeightsChoice(kind=kind))
        self._stored, self._needed = (describe(tree, "") for tree in self._trees())
        both = self._stored.keys() & self._needed.keys()
        self._taken = {path for path in both if self._stored[path] == self._needed[path]}
        new = () if self._config.adapter.enabled else _INPAINTING  # an adapter is beside what was trained
        missing = {
            path for path in self._needed.keys() - self._stored.keys() if not (path.startswith(new) or is_adapter(path))
        }
        self._averaged = self._channel_axes(both - self._taken)
        fits = {*self._taken, *self._averaged} == self._stored.keys() and not missing
        if not fits and not training.init_partial:
            raise ConfigError(
                f"training.init_from {training.init_from!r} does not fit the network: {self._comparison()}; give a "
                "folder with the same network, or set training.init_partial to take what fits"
            )
        if not self._taken and not self._averaged:
            raise ConfigError(
                f"training.init_from {training.init_from!r} has nothing that fits the network: {self._comparison()}; "
                "give a folder with a similar network, or leave it empty"
            )

    def _trees(self) -> tuple[Any, Any]:
        """Returns the parameters of the folder and of the network, without values."""
        assert self._weights is not None
        return self._weights.shapes, self._everything

    def _channel_axes(self, paths: set[str]) -> dict[str, int]:
        """Returns the arrays that differ by the number of image channels alone, and the axis that has these."""
        source, config = self._source_config, self._config
        old, new = source.channels, config.channels
        # an adapter is beside the weights as they are
        if old == new or source.model != config.model or config.adapter.enabled:
            return {}
        shapes = [{key_path(path): leaf.shape for path, leaf in leaves_with_path(tree)} for tree in self._trees()]
        axes = {}
        for path in paths:
            before, after = (by_path[path] for by_path in shapes)
            differ = [axis for axis, sizes in enumerate(zip(before, after, strict=False)) if sizes[0] != sizes[1]]
            if len(before) == len(after) and len(differ) == 1 and before[differ[0]] * new == after[differ[0]] * old:
                axes[path] = differ[0]
        return axes

    def _load_averaged(self, weights: Weights) -> Any:
        """Returns arrays with the mean over the channels that they had in the place of each that they have.

        Kernels that read images are scaled by old / new: what they make of gray images is the same.
        """
        if not self._averaged:
            return {}
        old, new = self._source_config.channels, self._config.channels
        paths = set(self._averaged)
        stored, needed = select(weights.shapes, paths), select(self._everything, paths)
        mesh = jax.tree.leaves(needed)[0].sharding.mesh
        whole = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), stored
        )

        def average(path: Any, array: jax.Array, target: Any) -> jax.Array:
            axis = self._averaged[key_path(path)]
            split = (*array.shape[:axis], -1, old, *array.shape[axis + 1 :])  # channels are the innermost
            mean = array.reshape(split).mean(axis=axis + 1, keepdims=True)
            is_input = key_path(path).endswith("/kernel") and axis == array.ndim - 2
            repeated = jnp.repeat(mean * (old / new if is_input else 1.0), new, axis=axis + 1)
            return jax.device_put(repeated.reshape(target.shape), target.sharding)

        return jax.tree_util.tree_map_with_path(average, weights.load(whole, partial=True), needed)

    def load_ema(self) -> Any:
        """Returns the EMA of the stage's parameters, in full, for a run that continues it.

        Raises ConfigError if they do not all fit the network.
        """
        assert self._weights is not None
        step = self._weights.step
        ema = open_weights(self._weights.workdir, WeightsChoice(step, "ema"))
        return ema.load(self._everything)

    def load(self, init: InitFn, log: Callable[[str], None]) -> Any:
        """Returns all parameters, and logs where they are from.

        Args:
            init: returns random parameters for a key, for those that are not taken from a folder.
            log: takes messages.
        """
        new = select(self._everything, set(describe(self._everything, "")) - self._taken - self._averaged.keys())
        params = init_params(init, self._config.seed, new)
        if self._weights is None:
            return params
        weights, training = self._weights, self._config.training
        loaded = weights.load(select(self._everything, self._taken), partial=True)
        loaded = merge(loaded, self._load_averaged(weights))
        log(
            f"started from the {training.init_weights} weights of {str(weights.workdir)!r} at step {weights.step}: "
            f"{self._comparison()}"
        )
        differences = config_differences(self._source_config, self._config)
        if differences:
            log(f"the weights were trained with another config: {'; '.join(differences)}")
        return merge(params, loaded)

    @property
    def has_codec(self) -> bool:
        """Whether the parameters of a codec are among those that are taken."""
        return any(path.startswith(f"{CODEC}/") for path in self._taken)

    @property
    def base(self) -> Base | None:
        """The stage whose weights are taken, to be named beside an adapter; None for random ones."""
        return None if self._weights is None else Base.of(self._weights)

    def _comparison(self) -> str:
        """Returns what is taken from the folder, what is new in the network and what is left, counted and named."""
        stored, needed = self._stored, self._needed
        fitting = self._taken | self._averaged.keys()
        different = sorted(path for path in stored.keys() & needed.keys() if path not in fitting)
        taken = select(self._everything, self._taken)
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(taken))
        new, left = sorted(needed.keys() - stored.keys()), sorted(stored.keys() - needed.keys())
        parts = [f"{len(self._taken)} of the network's {len(needed)} arrays are taken ({size:,} parameters)"]
        channels = (
            f"averaged over {self._source_config.channels} image channels and repeated for {self._config.channels}"
        )
        for text, paths in (
            (channels, sorted(self._averaged)),
            ("new in the network", new),
            ("left in the folder", left),
            ("of another shape or type", [f"{path} ({stored[path]}, not {needed[path]})" for path in different]),
        ):
            if paths:
                more = ", …" if len(paths) > _MAX_LISTED else ""
                parts.append(f"{len(paths)} {text}: {', '.join(paths[:_MAX_LISTED])}{more}")
        return "; ".join(parts)


def config_differences(before: StageConfig, now: StageConfig) -> list[str]:
    """Returns how a config differs from an earlier one in what the network's inputs and outputs are."""
    trees = [flatten(to_json(config)) for config in (before, now)]
    for tree in trees:  # the same folder by another path is no other encoder
        if is_local_folder(tree["text.model"]):
            tree["text.model"] = str(Path(tree["text.model"]).resolve())
    return [change for key, change in changes(*trees).items() if key.startswith(_MEANING)]


def read_source(name: str, key: str) -> tuple[Path, StageConfig]:
    """Returns the folder of a stage to start from, and its config. Raises ConfigError that names the key."""
    try:
        folders = find_stages(name, text_encoder=False)
        if len(folders) > 1:
            names = ", ".join(f"{name}/{folder.name}" for folder in folders)
            raise ConfigError(f"{name!r} has {len(folders)} stages: give one of them: {names}")
        return folders[0], read_config(folders[0])
    except ConfigError as error:
        raise ConfigError(*(f"{key}: {problem}" for problem in error.problems)) from error
