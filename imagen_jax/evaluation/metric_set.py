"""Metrics of images by names, such as fid, clip and fd_lite0: their networks, loaded once, and streams of images.

metrics = MetricSet.load(config)
stream = metrics.stream(num_images)
stream.update(first, images, texts)  # for each batch
figures = metrics.result(stream, reference)  # see `references.py`
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.evaluation.clip_score import SCORE_KINDS
from imagen_jax.evaluation.encoder import FeatureEncoder
from imagen_jax.evaluation.figures import CaptionsOrigin, Figure, ImagesOrigin, ReferenceOrigin, make_figures
from imagen_jax.evaluation.image_checksum import ImageChecksum
from imagen_jax.evaluation.image_metrics import ImageMetrics, MetricNetworks
from imagen_jax.evaluation.networks import INCEPTION, LITE0, get_network
from imagen_jax.evaluation.state_files import State, load_states, save_states
from imagen_jax.evaluation.statistics_files import Statistics
from imagen_jax.io.paths import as_path
from imagen_jax.text.clip import CLIP

WEIGHTS = Path(".cache/metrics")  # where `make metrics` writes
_CLIP, _CMMD = "clip", "cmmd"


class _Metric(NamedTuple):
    """A metric: the network that it is of, its name in `image_metrics.METRICS`, and whether it needs a reference."""

    network: str
    name: str
    is_compared: bool = True


METRICS = {
    "fid": _Metric(INCEPTION.name, "fid"),
    "kid": _Metric(INCEPTION.name, "kid"),
    "precision_recall": _Metric(INCEPTION.name, "precision_recall"),
    "inception_score": _Metric(INCEPTION.name, "inception_score", is_compared=False),
    "fd_lite0": _Metric(LITE0.name, "fid"),
    "kid_lite0": _Metric(LITE0.name, "kid"),
    "precision_recall_lite0": _Metric(LITE0.name, "precision_recall"),
    "inception_score_lite0": _Metric(LITE0.name, "inception_score", is_compared=False),
    "clip": _Metric(_CLIP, "clip", is_compared=False),
    "cmmd": _Metric(_CMMD, "cmmd"),
}


class Reference(NamedTuple):
    """What images are compared with.

    Attributes:
        origin: its name, checksum and number of images.
        stream: the metrics of its images; None for statistics.
        statistics: by network, from a file; none for images.
    """

    origin: ReferenceOrigin
    stream: MetricStream | None = None
    statistics: Mapping[str, Statistics] = {}


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError for the first name that is not one of `METRICS`, and for those that are given twice."""
    for name in names:
        if name not in METRICS:
            raise unknown_name_error("metric", name, METRICS)
        if names.count(name) > 1:
            raise ConfigError(f"metric {name!r} is given twice: give each once")


class MetricSet:
    """Metrics by name, with the networks that they need.

    Args:
        names: of `METRICS`.
        networks: by network, the names of `networks.NETWORKS`, "clip" and "cmmd".

    Raises:
        ConfigError: a name is not known, or none is given.
    """

    def __init__(self, names: Sequence[str], networks: Mapping[str, MetricNetworks]) -> None:
        if not names:
            raise ConfigError(f"there are no metrics: give some of {', '.join(METRICS)}")
        check_names(names)
        self.names, self.networks = tuple(names), networks

    @classmethod
    def load(cls, config: MetricsConfig, mesh: Mesh | None = None) -> MetricSet:
        """Loads the networks that a config's metrics need.

        Args:
            config: names, weights and resizing.
            mesh: the devices that images are split over; by default all.

        Raises:
            ConfigError: weights are missing or of another network; a name is not known.
        """
        check_names(config.names)
        networks: dict[str, MetricNetworks] = {}
        load_clip = functools.cache(lambda name: CLIP.from_pretrained(name, mesh))
        for network in dict.fromkeys(METRICS[name].network for name in config.names):
            if network == _CLIP:
                networks[network] = _clip_networks(load_clip, config.clip, config.clip_score)
            elif network == _CMMD:
                networks[network] = _clip_networks(load_clip, config.cmmd_clip)
            else:
                given = config.inception if network == INCEPTION.name else config.lite0
                encoder = FeatureEncoder.from_pretrained(network, find_weights(network, given), config.resizing, mesh)
                networks[network] = MetricNetworks(encoder)
        return cls(config.names, networks)

    @property
    def needs_reference(self) -> bool:
        """Whether any metric compares with real images."""
        return any(METRICS[name].is_compared for name in self.names)

    @property
    def needs_texts(self) -> bool:
        """Whether any metric reads the texts of images."""
        return any(METRICS[name].network == _CLIP for name in self.names)

    def identity(self) -> dict[str, Any]:
        """Returns what decides the figures of the same images, as JSON: names, networks, weights and resizing."""
        parts = {name: networks.identity() for name, networks in self.networks.items()}
        return {"names": list(self.names), "networks": parts}

    def stream(self, num_images: int) -> MetricStream:
        """Returns a stream of a number of images. Raises ConfigError if they are too few for a metric."""
        if num_images < 2 and self.needs_reference:
            raise ConfigError(
                f"{num_images} image has no covariance and no distance: give at least 2, and for a Frechet distance "
                "that means something more than the network has dimensions"
            )
        return MetricStream(self, self.names, num_images)

    def reference_stream(self, num_images: int) -> MetricStream:
        """Returns a stream of real images, with the metrics that are compared. Raises ConfigError for fewer than 2."""
        if num_images < 2:
            raise ConfigError(f"a reference of {num_images} image has no covariance and no distance: give at least 2")
        return MetricStream(self, [name for name in self.names if METRICS[name].is_compared], num_images)

    def result(
        self, stream: MetricStream, reference: Reference | None = None, captions: CaptionsOrigin | None = None
    ) -> dict[str, Figure]:
        """Returns the figures of a complete stream by name, with all that they depend on.

        Args:
            stream: of the images.
            reference: of real ones; not needed for metrics that compare with none.
            captions: that the images were sampled for; None if that is not known.

        Raises:
            ConfigError: images or the reference are missing.
        """
        figures: dict[str, Figure] = {}
        for network, part in stream.parts.items():
            real, statistics, origin = None, None, None
            if reference is not None:
                real = None if reference.stream is None else reference.stream.parts.get(network)
                statistics, origin = reference.statistics.get(network), reference.origin
            values = part.result(real, statistics)
            figures |= make_figures(values, self.networks[network], stream.origin, origin, captions)
        return figures


class MetricStream:
    """The metrics of a number of images, updated batch by batch; see `MetricSet`.

    Args:
        metrics: with the networks.
        names: of the metrics, some of those of `metrics`.
        num_images: of all.
    """

    def __init__(self, metrics: MetricSet, names: Sequence[str], num_images: int) -> None:
        self.num_images, self._metrics = num_images, metrics
        self.parts: dict[str, ImageMetrics] = {}
        for network in dict.fromkeys(METRICS[name].network for name in names):
            own = [METRICS[name].name for name in names if METRICS[name].network == network]
            self.parts[network] = ImageMetrics(own, num_images, metrics.networks[network])
        self._checksum = ImageChecksum()

    @property
    def images(self) -> int:
        """The number of images so far."""
        return self._checksum.images

    @property
    def origin(self) -> ImagesOrigin:
        """The number of images so far, and their checksum."""
        return ImagesOrigin(self.images, self._checksum.hexdigest())

    def update(self, first: int, images: Any, texts: Sequence[str] | None = None) -> None:
        """Adds a batch; all processes of a run give the same images.

        Args:
            first: the index of its first image.
            images: an array [N, H, W, C] or a sequence of such [H, W, C], of any sizes, see `FeatureEncoder`.
            texts: of the images, for clip.

        Raises:
            ConfigError: images or features are not valid, or texts are missing.
        """
        for part in self.parts.values():
            part.update(first, images, texts)
        self._checksum.update(first, images)

    def identity(self) -> dict[str, Any]:
        """Returns what decides the states of the same images, as JSON."""
        parts = {name: part.identity() for name, part in self.parts.items()}
        return {"num_images": self.num_images, "states": sorted(self.states()), **parts}

    def save(self, path: Path, more: Mapping[str, Any] | None = None) -> None:
        """Writes the states to a file, atomically; `more` is what identifies the images, as JSON. Raises OSError."""
        save_states(path, {**self.identity(), **(more or {})}, self.states())

    def load(self, path: Path, more: Mapping[str, Any] | None = None) -> bool:
        """Replaces the states by those of a file, and returns whether there are any; see `state_files.load_states`."""
        return load_states(path, {**self.identity(), **(more or {})}, self.states())

    def states(self) -> dict[str, State]:
        """Returns the states by name, to save them in one file with others."""
        states: dict[str, State] = {"checksum": self._checksum}
        for network, part in self.parts.items():
            states |= {f"{network}.{name}": state for name, state in part.states.items()}
        return states


def find_weights(network: str, given: str) -> Path:
    """Returns the file of a network's weights: the given one, or that in `WEIGHTS`.

    Args:
        network: a name of `networks.NETWORKS`.
        given: the path that a user gives; empty for none.

    Raises:
        ConfigError: none is given, and none is there.
    """
    if given:
        return as_path(given)
    path, spec = WEIGHTS / f"{network}.safetensors", get_network(network)
    if not path.is_file():
        flag = "inception" if network == INCEPTION.name else "lite0"
        make = "run `make metrics`" if network == LITE0.name else f"get {spec.published}, as docs/metrics.md says"
        raise ConfigError(
            f"the weights of {spec.title} are not in {path}: {make}, or give their file, --{flag}=FILE.safetensors"
        )
    return path


def _clip_networks(load: Any, name: str, kind: str = "cosine") -> MetricNetworks:
    """Returns the networks of a CLIP, named with its weights. Raises ConfigError."""
    if kind not in SCORE_KINDS:
        raise unknown_name_error("CLIP score", kind, SCORE_KINDS)
    clip = load(name)
    return MetricNetworks(None, clip, f"{as_path(name).name if as_path(name).is_dir() else name}/{clip.digest}", kind)
