"""Figures: the value of a metric with all that it depends on, so that nobody compares what cannot be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from imagen_jax.evaluation.clip_score import SCORE_KINDS
from imagen_jax.evaluation.image_metrics import MetricNetworks
from imagen_jax.evaluation.inception_score import SPLITS
from imagen_jax.evaluation.kernel_distances import CMMD_SCALE, CMMD_SIGMA, KID_SUBSET_SIZE, KID_SUBSETS
from imagen_jax.evaluation.precision_recall import NEIGHBORS

_SPREADS = ("std", "error")  # what follows a metric's name in that of its deviation, or of its mean's standard error
# metrics of which less is better; of the others more is
LOWER_IS_BETTER = ("fid", "fd_lite0", "kid", "kid_lite0", "cmmd")


class ImagesOrigin(NamedTuple):
    """Images that are measured: their number, and the checksum of their pixels, see `ImageChecksum`."""

    num_images: int
    checksum: str


class ReferenceOrigin(NamedTuple):
    """A reference: its name, the checksum of its pixels or of its file, and its number of images, 0 if not known."""

    name: str
    checksum: str
    num_images: int


class CaptionsOrigin(NamedTuple):
    """Captions that images are sampled for: the name of their file or data, and a checksum of it or of them."""

    name: str
    checksum: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """The value of a metric.

    Attributes:
        value: of the metric.
        spreads: by name: `std`, the deviation over subsets or splits, or `error`, the standard error of the mean.
        details: what it depends on: network, weights, resizing, settings, images and reference.
    """

    value: float
    spreads: dict[str, float]
    details: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns the figure as a row of scores.json."""
        return {"value": self.value, **self.spreads, **self.details}


def make_figures(
    values: Mapping[str, float],
    networks: MetricNetworks,
    images: ImagesOrigin,
    reference: ReferenceOrigin | None,
    captions: CaptionsOrigin | None = None,
) -> dict[str, Figure]:
    """Returns figures of the numbers of `ImageMetrics.result`.

    Args:
        values: the numbers by name.
        networks: that they are of.
        images: that are measured.
        reference: what they are compared with; None for nothing.
        captions: that they were sampled for; None if that is not known.
    """
    figures = {}
    for name, value in values.items():
        if name.rpartition("_")[2] in _SPREADS and name.rpartition("_")[0] in values:
            continue
        spreads = {spread: values[f"{name}_{spread}"] for spread in _SPREADS if f"{name}_{spread}" in values}
        base = name.removesuffix(networks.encoder.suffix if networks.encoder else "")
        details = _network_details(networks) | _settings(base, networks, images, reference)
        details["images"] = images._asdict()
        if base not in ("clip_score", "inception_score") and reference is not None:
            details["reference"] = reference._asdict()
        if captions is not None:
            details["captions"] = captions._asdict()
        figures[name] = Figure(value, spreads, details)
    return figures


def _network_details(networks: MetricNetworks) -> dict[str, Any]:
    """Returns network, weights and resizing."""
    encoder = networks.encoder
    name, _, digest = (encoder.network if encoder else networks.clip_name).rpartition("/")
    return {"network": name, "weights": digest, "resizing": encoder.resizing if encoder else "clip"}


def _settings(
    base: str, networks: MetricNetworks, images: ImagesOrigin, reference: ReferenceOrigin | None
) -> dict[str, Any]:
    """Returns the settings of a metric, by its name without that of its network."""
    if base == "kid":
        least = min(images.num_images, reference.num_images) if reference else images.num_images
        return {"subsets": KID_SUBSETS, "subset_size": min(KID_SUBSET_SIZE, least)}
    if base == "clip_score":
        kind = SCORE_KINDS[networks.clip_score]
        return {"kind": networks.clip_score, "prefix": kind.prefix, "scale": kind.scale, "clips": kind.clips}
    settings: dict[str, dict[str, Any]] = {
        "precision": {"neighbors": NEIGHBORS},
        "recall": {"neighbors": NEIGHBORS},
        "inception_score": {"splits": SPLITS},
        "cmmd": {"sigma": CMMD_SIGMA, "scale": CMMD_SCALE},
    }
    return settings.get(base, {})


def format_figures(figures: Mapping[str, Figure]) -> str:
    """Returns a table of figures with their networks, and below it what images they are of."""
    width = max(len(name) for name in figures)
    lines, notes = [f"{'':{width}}       value{'':13} network and weights"], []
    for name, figure in figures.items():
        details = figure.details
        spread = next((f"± {value:.4g}" for value in figure.spreads.values()), "")
        network = f"{details['network']}/{details['weights']}, resizing {details['resizing']}"
        if "kind" in details:
            network += f", {details['kind']}: prefix {details['prefix']!r}, scale {details['scale']:g}"
        lines.append(f"{name:{width}}  {figure.value:10.5g} {spread:<12} {network}")
        notes.append(_format_origins(details))
    return "\n".join([*lines, *dict.fromkeys(notes)])


def _format_origins(details: Mapping[str, Any]) -> str:
    """Returns what a figure is of, with the first digits of checksums."""
    images, note = details["images"], ""
    if "reference" in details:
        reference = details["reference"]
        count = f"{reference['num_images']:,} images of " if reference["num_images"] else ""
        note = f", against {count}{reference['name']} ({reference['checksum'][:12]})"
    return f"of {images['num_images']:,} images ({images['checksum'][:12]}){note}"
