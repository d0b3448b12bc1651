"""The task of training a codec, the autoencoder whose latents another stage can be trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.data.record import Source
from imagen_jax.evaluation.codec_previews import make_codec_preview
from imagen_jax.images.array import to_float
from imagen_jax.parallel.axes import IMAGE
from imagen_jax.stages.codec_loss import CODEC_BATCH_AXES, CodecBatch, CodecLosses, CodecModel
from imagen_jax.training.objective import Batch, Metrics, Preview, SampleFigures


@dataclasses.dataclass(frozen=True)
class CodecObjective:
    """The training objective of a codec, an `Objective`; it has no frozen network, and no text.

    Attributes:
        model: the codec and its opponent.
    """

    batch_axes: ClassVar[Any] = {"image": IMAGE}
    example_axes: ClassVar[Any] = CODEC_BATCH_AXES

    model: CodecModel

    def with_mesh(self, mesh: Mesh) -> CodecObjective:
        """Returns the objective with a network that shards its activations."""
        return dataclasses.replace(self, model=self.model.with_mesh(mesh))

    def init(self, key: jax.Array) -> Any:
        """Returns random parameters of the codec and its opponent."""
        return self.model.init(key)

    def draw(self, networks: Any, batch: Batch, key: jax.Array, step: jax.Array) -> CodecBatch:
        """Returns the examples of a batch, with the noise of their latents."""
        x = to_float(batch["image"])
        plays = step >= self.model.config.reconstruction.disc_start
        return CodecBatch(x, jax.random.normal(key, self.model.latent_shape(x)), jnp.full(len(x), plays, jnp.float32))

    def loss(self, params: Any, networks: Any, examples: CodecBatch) -> CodecLosses:
        """Returns the losses of each example, see `CodecModel.loss`."""
        return self.model.loss(params, examples)

    def metrics(self, batch: Batch, losses: CodecLosses) -> Metrics:
        """Returns the means of the parts of the loss."""
        parts = losses._asdict()
        names = ["l1", "kl", *(["real", "fake", "hinge"] if self.model.discriminator else [])]
        return {name: jnp.mean(parts[name]) for name in names}


class CodecTask:
    """Trains the codec that a config describes; a `Task`.

    Args:
        config: the stage, whose network is `kl_vae`.
        mesh: the devices.
    """

    def __init__(self, config: StageConfig, mesh: Mesh) -> None:
        self._config, self._mesh = config, mesh
        self.objective = CodecObjective(CodecModel.of(config))

    def text_features(self, caption: str) -> dict[str, np.ndarray]:
        """Returns nothing: a codec reads no text."""
        return {}

    def check_sources(self, sources: Sequence[Source]) -> None:
        """Accepts all data."""

    def load_networks(self, workdir: Path) -> Any:
        """Returns nothing: there is no other network."""
        return {}

    def record_networks(self, workdir: Path) -> None:
        """Writes nothing."""

    def make_preview(self) -> Callable[[Any], Preview]:
        """Returns a function that reconstructs images, see `codec_previews`; it scores by the absolute error."""
        preview = make_codec_preview(self.objective.model, self._mesh)

        def scored(params: Any) -> Preview:
            image, metrics = preview(params)
            return Preview(image, metrics, metrics["reconstruction/l1"])

        return scored

    def make_evaluation(self, workdir: Path) -> Callable[[Any], SampleFigures] | None:
        """Returns None: a codec draws no samples."""
        return None
