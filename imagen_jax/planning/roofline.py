"""How long a program takes at least: what its chips compute, read and write, and say to each other, at their peaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from imagen_jax.planning.hardware import Chip
from imagen_jax.planning.hlo_cost import Collective, Kernel


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds of one run of a program, none of which can be less.

    Attributes:
        compute: products and convolutions at peak.
        hbm: all traffic with the main memory at its peak.
        ici: what goes over links to neighbours, at theirs.
        network: what goes between slices.
        kernels: one kernel after another, as a core runs them, each at the peak that holds it back.
    """

    compute: float
    hbm: float
    ici: float
    network: float
    kernels: float

    @property
    def step(self) -> float:
        """If all that can go on at once does."""
        return max(self.compute, self.hbm, self.ici, self.network)


def bounds(
    kernels: Sequence[Kernel], collectives: Sequence[Collective], network_bytes: int, places: np.ndarray, chip: Chip
) -> Bounds:
    """The bounds of a program.

    Args:
        kernels: what each chip does.
        collectives: what chips of a slice do together.
        network_bytes: what each chip sends to other slices.
        places: of the chips along the mesh, as ``places_of`` gives them.
        chip: what each is.
    """
    return Bounds(
        compute=sum(kernel.times * kernel.flops for kernel in kernels) / chip.peak_flops,
        hbm=sum(kernel.times * kernel.bytes for kernel in kernels) / chip.hbm_bytes_per_s,
        ici=sum(collective.times * exchange_seconds(collective, places, chip) for collective in collectives),
        network=network_bytes / chip.network_bytes_per_s,
        kernels=sum(kernel.times * kernel_seconds(kernel, chip) for kernel in kernels),
    )


def kernel_seconds(kernel: Kernel, chip: Chip) -> float:
    """Of one run of a kernel alone."""
    return max(kernel.flops / chip.peak_flops, kernel.bytes / chip.hbm_bytes_per_s)


def places_of(devices: Sequence[jax.Device]) -> np.ndarray:
    """(x, y) or (x, y, z) of each device in its slice, [devices, axes]."""
    return np.array([device.coords for device in devices])


def exchange_seconds(collective: Collective, places: np.ndarray, chip: Chip) -> float:
    """Of one run of a collective, on the links of a slice.

    Those links of a chip count that lead along axes in which its group extends: one if it is two chips wide there, else
    two.
    """
    group = places[collective.groups[0]]
    links = sum(min(len(np.unique(axis)) - 1, 2) for axis in group.T)
    return collective.sent_bytes / (links * chip.link_bytes_per_s)
