"""Metrics of a set of images by name, such as fid, kid and clip, updated batch by batch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.evaluation.clip_score import ClipScore
from imagen_jax.evaluation.encoder import FeatureEncoder
from imagen_jax.evaluation.feature_states import CAPACITY, FeatureMoments, FeatureSample
from imagen_jax.evaluation.frechet import frechet_distance
from imagen_jax.evaluation.inception_score import InceptionScore
from imagen_jax.evaluation.kernel_distances import KID_SUBSET_SIZE, cmmd, kernel_distance
from imagen_jax.evaluation.precision_recall import precision_recall
from imagen_jax.evaluation.state_files import State, load_states, merge_over_hosts, save_states
from imagen_jax.evaluation.statistics_files import Statistics
from imagen_jax.text.clip import CLIP

logger = logging.getLogger(__name__)

# name -> the states that it is computed from
METRICS = {
    "fid": "moments",
    "kid": "features",
    "precision_recall": "features",
    "inception_score": "inception_score",
    "clip": "clip_score",
    "cmmd": "embeddings",
}
_OF_CLIP = ("clip_score", "embeddings")
_COMPARED = ("kid", "precision_recall", "cmmd")  # with features of a reference; fid is with statistics


@dataclasses.dataclass(frozen=True)
class MetricNetworks:
    """The networks that metrics need.

    Attributes:
        encoder: for all but clip and cmmd.
        clip: for clip and cmmd.
        clip_name: of the CLIP, for the identity of what is computed.
        clip_score: the kind of the CLIP score, a name of `clip_score.SCORE_KINDS`.
    """

    encoder: FeatureEncoder | None = None
    clip: CLIP | None = None
    clip_name: str = ""
    clip_score: str = "cosine"

    def identity(self) -> dict[str, Any]:
        """Returns what decides their output for the same images, as JSON."""
        return {
            "network": self.encoder and self.encoder.network,
            "resizing": self.encoder and self.encoder.resizing,
            "clip": self.clip_name,
            "clip_score": self.clip_score,
        }


class ImageMetrics:
    """Metrics of a number of images that is known from the start.

    Args:
        names: of `METRICS`.
        num_images: of all.
        networks: that these metrics need.
        capacity: the most features that are kept, see `FeatureSample`.
        seed: of samples of features.

    Raises:
        ConfigError: a name is not known, or a network is missing.
    """

    def __init__(
        self,
        names: Sequence[str],
        num_images: int,
        networks: MetricNetworks,
        capacity: int = CAPACITY,
        seed: int = 0,
    ) -> None:
        for name in names:
            if name not in METRICS:
                raise unknown_name_error("metric", name, METRICS)
        self.names, self.num_images, self._networks = tuple(names), num_images, networks
        self._capacity, self._seed = capacity, seed
        self.states = self._new_states()

    def _new_states(self) -> dict[str, State]:
        """Returns the states of no images. Raises ConfigError if a network is missing."""
        return {name: self._new_state(name) for name in dict.fromkeys(METRICS[name] for name in self.names)}

    def _new_state(self, name: str) -> State:
        if name == "inception_score":
            self._encoder(name)
            return InceptionScore(self.num_images)
        if name == "clip_score":
            self._clip(name)
            return ClipScore(self._networks.clip_score)
        width = self._clip(name).width if name in _OF_CLIP else self._encoder(name).width
        return FeatureMoments(width) if name == "moments" else FeatureSample(width, self._capacity, self._seed)

    def _encoder(self, state: str) -> FeatureEncoder:
        if self._networks.encoder is None:
            raise ConfigError(f"{self._users(state)} needs a network of features: give its weights")
        return self._networks.encoder

    def _clip(self, state: str) -> CLIP:
        if self._networks.clip is None:
            raise ConfigError(f"{self._users(state)} needs a CLIP: give its folder, or its name on the Hub")
        return self._networks.clip

    def _users(self, state: str) -> str:
        return " and ".join(name for name in self.names if METRICS[name] == state)

    @property
    def images(self) -> int:
        """The number of images so far."""
        return min((state.images for state in self.states.values()), default=0)

    def identity(self) -> dict[str, Any]:
        """Returns what decides the states of the same images, as JSON."""
        own = {"num_images": self.num_images, "capacity": self._capacity, "seed": self._seed}
        return self._networks.identity() | own

    def update(self, first: int, images: Any, texts: Sequence[str] | None = None) -> None:
        """Adds a batch; all processes of a run give the same images, and have the same states.

        Args:
            first: the index of its first image.
            images: see `FeatureEncoder`.
            texts: of the images, for clip.

        Raises:
            ConfigError: images or features are not valid, or texts are missing.
        """
        if set(self.states) - set(_OF_CLIP):
            output = self._encoder("moments")(images)
            for name, values in (
                ("moments", output.features),
                ("features", output.features),
                ("inception_score", output.logits),
            ):
                if name in self.states:
                    self.states[name].update(first, values)
        if set(self.states) & set(_OF_CLIP):
            self._update_clip(first, images, texts)

    def _update_clip(self, first: int, images: Any, texts: Sequence[str] | None) -> None:
        clip = self._clip("clip_score")
        embeddings, score = clip.encode_images(images), self.states.get("clip_score")
        if "embeddings" in self.states:
            self.states["embeddings"].update(first, embeddings)
        if isinstance(score, ClipScore):
            if texts is None or len(texts) != len(images):
                count = 0 if texts is None else len(texts)
                raise ConfigError(f"a CLIP score of {len(images)} images has {count} texts: give the text of each")
            score.update(first, embeddings, clip.encode_text(score.prompts(texts)))

    def merge_over_hosts(self) -> None:
        """Adds the images of all other processes, where each has updated its own with others; all have to call it."""
        merge_over_hosts(self.states, self._new_states())

    def save(self, path: Path) -> None:
        """Writes the states to a file, see `state_files.save_states`."""
        save_states(path, self.identity(), self.states)

    def load(self, path: Path) -> bool:
        """Replaces the states by those of a file, and returns whether there are any; see `state_files.load_states`."""
        return load_states(path, self.identity(), self.states)

    def statistics(self) -> Statistics:
        """Returns mean and covariance of the features, as a reference for fid. Raises ConfigError without fid."""
        moments = self.states.get("moments")
        if not isinstance(moments, FeatureMoments):
            raise ConfigError(f"metrics {', '.join(self.names)} have no statistics: add fid")
        encoder = self._encoder("moments")
        return Statistics(moments.gaussian(), encoder.network, encoder.resizing, moments.images)

    def result(self, reference: ImageMetrics | None = None, statistics: Statistics | None = None) -> dict[str, float]:
        """Returns the metrics by name.

        Those of another network than Inception-v3 have its name in theirs, and the Frechet distance is not called fid.

        Args:
            reference: metrics of real images, of the same networks; not needed for inception_score and clip.
            statistics: in its place for fid, from `statistics_files.read_statistics`.

        Raises:
            ConfigError: images or a reference are missing, or the reference is of other networks.
        """
        if self.images != self.num_images:
            raise ConfigError(f"{self.images} of {self.num_images} images have been measured: add the others")
        self._check_reference(reference, statistics)
        result: dict[str, float] = {}
        for name in self.names:
            result |= self._one(name, reference, statistics)
        return result

    def _check_reference(self, reference: ImageMetrics | None, statistics: Statistics | None) -> None:
        """Raises ConfigError if a reference is missing, or is of other networks."""
        for name in self.names:
            has_states = reference is not None and METRICS[name] in reference.states
            if name in _COMPARED and not has_states:
                raise ConfigError(f"{name} compares with features of real images: measure them too, with {name}")
            if name == "fid" and not has_states and statistics is None:
                raise ConfigError("fid compares with real images: measure them too, or give statistics of them")
        ours, others = self.identity(), [] if reference is None else [reference.identity()]
        if statistics is not None:
            others.append({"network": statistics.network, "resizing": statistics.resizing})
        for theirs in others:
            for what in ("network", "resizing", "clip"):
                # statistics may not say what they are of
                if theirs.get(what) and theirs[what] != ours[what]:
                    raise ConfigError(
                        f"the {what} of the reference is {theirs[what]}, and that of the images {ours[what]}: "
                        "distances between them mean nothing; measure both with one"
                    )

    def _one(self, name: str, reference: ImageMetrics | None, statistics: Statistics | None) -> dict[str, float]:
        """Returns the numbers of a metric by name."""
        state, encoder = self.states[METRICS[name]], self._networks.encoder
        suffix = "" if encoder is None else encoder.suffix
        if isinstance(state, FeatureMoments):
            gaussian = (statistics or _given(reference).statistics()).gaussian
            return {"fd" + suffix if suffix else "fid": frechet_distance(state.gaussian(), gaussian)}
        if isinstance(state, ClipScore):
            return {"clip_score": state.result().mean, "clip_score_error": state.result().standard_error}
        if isinstance(state, InceptionScore):
            return {f"inception_score{suffix}": state.result().mean, f"inception_score{suffix}_std": state.result().std}
        assert isinstance(state, FeatureSample)
        real = _given(reference).states[METRICS[name]]
        assert isinstance(real, FeatureSample)
        return _compared(name, suffix, state.features(), real.features())


def _given(reference: ImageMetrics | None) -> ImageMetrics:
    assert reference is not None  # `_check_reference`
    return reference


def _compared(name: str, suffix: str, features: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Returns the numbers of a metric that compares features with real ones."""
    if name == "cmmd":
        return {"cmmd": cmmd(features, real)}
    if name == "precision_recall":
        near = precision_recall(features, real)
        return {f"precision{suffix}": near.precision, f"recall{suffix}": near.recall}
    size = min(KID_SUBSET_SIZE, len(features), len(real))
    if size < KID_SUBSET_SIZE:
        logger.warning("kid is of subsets of %s images, as there are no more; published numbers are of 1,000", size)
    distance = kernel_distance(features, real, subset_size=size)
    return {f"kid{suffix}": distance.mean, f"kid{suffix}_std": distance.std}
