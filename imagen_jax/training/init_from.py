"""The parameters of a run's first step: random, or the weights of a trained stage as far as they fit.

A run that trains to inpaint starts from a stage that does not, too: what it has besides is 0, so that its first
predictions are those of that stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.changes import changes, flatten
from imagen_jax.models.unet_base import KNOWN_SKIP, KNOWN_STEM
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.stages.base import Base, Weights
from imagen_jax.stages.lora import is_adapter
from imagen_jax.stages.saved_arrays import describe
from imagen_jax.stages.stage_folder import open_weights, read_config
from imagen_jax.stages.trainable import merge, select
from imagen_jax.stages.weights import WeightsChoice
from imagen_jax.text.encoder import is_local_folder
from imagen_jax.training.state import InitFn, init_params

_MAX_LISTED = 5
# groups of keys that decide what a network's inputs and outputs are
_TEXT = ("text.model", "text.length", "text.padding", "text.cleaning")
_MEANING = ("image_size", "low_res_size", "channels", *_TEXT, "diffusion.", "inpainting.")
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
            least one; beside an adapter all of the network's.
        TrainingError: its files are damaged.
    """

    def __init__(self, config: StageConfig, everything: Any) -> None:
        self._config, self._everything = config, everything
        self._taken: set[str] = set()
        self._weights: Weights | None = None
        if config.training.init_from:
            self._open(config.training.init_from)

    def _open(self, name: str) -> None:
        """Compares the parameters of a stage to the network's."""
        training = self._config.training
        folder, self._source_config = _read_source(name)
        self._weights = open_weights(folder, WeightsChoice(kind=training.init_weights))
        self._stored, self._needed = describe(self._weights.shapes, ""), describe(self._everything, "")
        both = self._stored.keys() & self._needed.keys()
        self._taken = {path for path in both if self._stored[path] == self._needed[path]}
        new = () if self._config.adapter.enabled else _INPAINTING  # an adapter is beside what was trained
        missing = {
            path for path in self._needed.keys() - self._stored.keys() if not (path.startswith(new) or is_adapter(path))
        }
        fits = self._taken == self._stored.keys() and not missing
        if not fits and not training.init_partial:
            raise ConfigError(
                f"training.init_from {training.init_from!r} does not fit the network: {self._comparison()}; give a "
                "folder with the same network, or set training.init_partial to take what fits"
            )
        if not self._taken:
            raise ConfigError(
                f"training.init_from {training.init_from!r} has nothing that fits the network: {self._comparison()}; "
                "give a folder with a similar network, or leave it empty"
            )

    def load(self, init: InitFn, log: Callable[[str], None]) -> Any:
        """Returns all parameters, and logs where they are from.

        Args:
            init: returns random parameters for a key, for those that are not taken from a folder.
            log: takes messages.
        """
        new = select(self._everything, set(describe(self._everything, "")) - self._taken)
        params = init_params(init, self._config.seed, new)
        if self._weights is None:
            return params
        weights, training = self._weights, self._config.training
        loaded = weights.load(select(self._everything, self._taken), partial=True)
        log(
            f"started from the {training.init_weights} weights of {str(weights.workdir)!r} at step {weights.step}: "
            f"{self._comparison()}"
        )
        differences = config_differences(self._source_config, self._config)
        if differences:
            log(f"the weights were trained with another config: {'; '.join(differences)}")
        return merge(params, loaded)

    @property
    def base(self) -> Base | None:
        """The stage whose weights are taken, to be named beside an adapter; None for random ones."""
        return None if self._weights is None else Base.of(self._weights)

    def _comparison(self) -> str:
        """Returns what is taken from the folder, what is new in the network and what is left, counted and named."""
        stored, needed = self._stored, self._needed
        different = sorted(path for path in stored.keys() & needed.keys() if path not in self._taken)
        taken = select(self._everything, self._taken)
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(taken))
        new, left = sorted(needed.keys() - stored.keys()), sorted(stored.keys() - needed.keys())
        parts = [f"{len(self._taken)} of the network's {len(needed)} arrays are taken ({size:,} parameters)"]
        for text, paths in (
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


def _read_source(name: str) -> tuple[Path, StageConfig]:
    """Returns the folder of a stage to start from, and its config. Raises ConfigError that names the key."""
    try:
        folders = find_stages(name, text_encoder=False)
        if len(folders) > 1:
            names = ", ".join(f"{name}/{folder.name}" for folder in folders)
            raise ConfigError(f"{name!r} has {len(folders)} stages: give one of them: {names}")
        return folders[0], read_config(folders[0])
    except ConfigError as error:
        raise ConfigError(*(f"training.init_from: {problem}" for problem in error.problems)) from error
