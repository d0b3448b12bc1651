"""What a run trains: an objective, which the step minimizes, and a task, which gives the loop all that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from imagen_jax.data.record import Source

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class ExampleLosses(Protocol):
    """A pytree of arrays [B, ...]."""

    @property
    def loss(self) -> jax.Array:
        """The losses [B], whose mean is minimized."""


class Objective(Protocol):
    """What the training step minimizes: pure functions of parameters and batch, in two parts.

    `draw` has all the randomness and `loss` none, so that a step does not depend on how many micro-batches the examples
    are split into. `networks` are the parameters of other networks that stay as they are, such as a text encoder's.
    """

    @property
    def batch_axes(self) -> Any:
        """The names of the axes of a batch's arrays, see `parallel.axes`."""

    @property
    def example_axes(self) -> Any:
        """The names of the axes of what `draw` returns."""

    def with_mesh(self, mesh: Mesh) -> Objective:
        """Returns the objective for a step on a mesh, for example with a network that shards its activations."""

    def init(self, key: jax.Array) -> Any:
        """Returns random parameters of the network to train, nested dicts."""

    def draw(self, networks: Any, batch: Batch, key: jax.Array, step: jax.Array) -> Any:
        """Returns the examples of a batch, a pytree of arrays [B, ...]; `step` is the number of finished steps."""

    def loss(self, params: Any, networks: Any, examples: Any) -> ExampleLosses:
        """Returns the losses of the examples."""

    def metrics(self, batch: Batch, losses: Any) -> Metrics:
        """Returns what to log beside the mean loss; `band_losses` and `band_counts` [bins] become means by bin."""


class Preview(NamedTuple):
    """What a run shows now and then.

    Attributes:
        image: written to `previews/`.
        metrics: scalars to log.
        score: by which `training.keep_best` compares checkpoints; lower is better.
    """

    image: Image.Image
    metrics: dict[str, float]
    score: float


class SampleFigures(NamedTuple):
    """Metrics of samples that a run computes now and then.

    Attributes:
        rows: each figure with what it depends on, by name; written to `evaluations/`, and the values are logged.
        score: by which `training.keep_best` compares checkpoints, lower is better; None if it compares by previews.
    """

    rows: dict[str, dict[str, Any]]
    score: float | None


class Task(Protocol):
    """A run's objective, and what the loop needs beside it."""

    @property
    def objective(self) -> Objective:
        """What is minimized."""

    def text_features(self, caption: str) -> dict[str, np.ndarray]:
        """Returns the arrays that represent a caption in a batch, by name; none if the objective reads no text."""

    def check_sources(self, sources: Sequence[Source]) -> None:
        """Checks that the task can be trained on the data. Raises ConfigError otherwise."""

    def load_networks(self, workdir: Path) -> Any:
        """Returns the parameters of the objective's other networks on the mesh, as the run in a folder began with them.

        Raises ConfigError.
        """

    def record_networks(self, workdir: Path) -> None:
        """Names those networks in the folder of a run that starts, before its first checkpoint, if they may change."""

    def make_preview(self) -> Callable[[Any], Preview] | None:
        """Returns a function of the EMA parameters; None for no previews."""

    def make_evaluation(self, workdir: Path) -> Callable[[Any], SampleFigures] | None:
        """Returns a function of the EMA parameters, which may keep files in a run's folder; None for no metrics.

        Raises ConfigError if metrics cannot be computed.
        """
