"""Mean and covariance of features in .npz files, in the form of pytorch-fid and clean-fid: `mu` and `sigma`.

Ours also say which network and resizing they are of, and of how many images, in fields that others do not read. Files
of clean-fid say both in their names, such as cifar10_clean_train_32.npz.
"""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.frechet import Gaussian
from imagen_jax.evaluation.state_files import DAMAGES
from imagen_jax.images.measured_inputs import RESIZINGS
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.paths import as_path

_MAX_BYTES = 2**30  # of an array: that of 2048 dimensions has 32 MiB
_OTHER_NETWORKS = ("clip_vit_b_32",)  # in names of clean-fid

logger = logging.getLogger(__name__)


class Statistics(NamedTuple):
    """Mean and covariance of features.

    Attributes:
        gaussian: both.
        network: names the network and its weights, such as `FeatureEncoder.network`; "" if it is not known.
        resizing: a name of `images.measured_inputs.RESIZINGS`, or "".
        images: the number of images; 0 if it is not known.
    """

    gaussian: Gaussian
    network: str = ""
    resizing: str = ""
    images: int = 0


def write_statistics(path: str | Path, statistics: Statistics) -> None:
    """Writes statistics to a .npz file, atomically. Raises OSError."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        allow_pickle=False,
        mu=statistics.gaussian.mean,
        sigma=statistics.gaussian.covariance,
        network=np.array(statistics.network),
        resizing=np.array(statistics.resizing),
        images=np.array(statistics.images),
    )
    atomic_write(as_path(path), file.getvalue())


def read_statistics(path: str | Path, network: str, resizing: str, width: int) -> Statistics:
    """Reads statistics to compare with.

    Args:
        path: a .npz file of ours, of pytorch-fid or of clean-fid.
        network: that of the features they are compared with.
        resizing: likewise.
        width: number of dimensions of these features.

    Returns:
        The statistics; if the file does not say its network or its resizing, that is logged, and they are "".

    Raises:
        ConfigError: the file is missing or damaged, or says that it is of another network or resizing.
    """
    path = as_path(path)
    statistics = _read(path)
    if statistics.gaussian.mean.shape != (width,) or statistics.gaussian.covariance.shape != (width, width):
        shapes = [list(array.shape) for array in statistics.gaussian]
        raise ConfigError(
            f"{path} has mu {shapes[0]} and sigma {shapes[1]}, expected [{width}] and [{width}, {width}]: give "
            f"statistics of {network}"
        )
    if not all(np.isfinite(array).all() for array in statistics.gaussian):
        raise ConfigError(f"{path} has values that are not finite: compute the statistics again")
    for what, given, expected in (
        ("network", statistics.network, network),
        ("resizing", statistics.resizing, resizing),
    ):
        if given and given != expected:
            raise ConfigError(
                f"{path} is of the {what} {given}, and the images are measured with {expected}: distances between them "
                f"mean nothing; give statistics of {expected}"
            )
    unknown = [name for name in ("network", "resizing") if not getattr(statistics, name)]
    if unknown:
        logger.warning(
            "%s does not say its %s: make sure that it is of %s with the resizing %s",
            path,
            " and its ".join(unknown),
            network,
            resizing,
        )
    return statistics


def _read(path: Path) -> Statistics:
    """Returns the statistics of a file. Raises ConfigError if it is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or error}): give a .npz file of statistics"
        ) from error
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(info.file_size > _MAX_BYTES for info in archive.infolist()):
                raise ValueError(f"an array has more than {_MAX_BYTES:,} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            gaussian = Gaussian(*(np.asarray(file[name], np.float64) for name in ("mu", "sigma")))
            network, resizing = (str(file[name]) if name in file.files else "" for name in ("network", "resizing"))
            images = int(file["images"]) if "images" in file.files else 0
            statistics = Statistics(gaussian, network, resizing, images)
    except DAMAGES as error:
        raise ConfigError(
            f"{path} is not a .npz file of statistics, with mu and sigma ({type(error).__name__}: {error}): copy it "
            "again, or compute it"
        ) from error
    from_name = _from_name(path.stem)
    return statistics._replace(
        network=statistics.network or from_name.network, resizing=statistics.resizing or from_name.resizing
    )


def _from_name(stem: str) -> Statistics:
    """Returns what the name of clean-fid's files says: DATASET_MODE[_MODEL]_SPLIT_RESOLUTION."""
    padded, nothing = f"_{stem.lower()}_", Gaussian(np.zeros(0), np.zeros((0, 0)))
    resizing = next((name for name in RESIZINGS if f"_{name}_" in padded), "")
    network = next((name for name in _OTHER_NETWORKS if resizing and f"_{name}_" in padded), "")
    return Statistics(nothing, network, resizing)
