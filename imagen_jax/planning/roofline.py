"""Lower bounds of a program's time: compute, memory traffic and communication at the chips' peaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from imagen_jax.planning.hardware import Chip
from imagen_jax.planning.hlo_cost import Collective, Kernel


@dataclasses.dataclass(frozen=True)
class TimeBounds:
    """Lower bounds of the seconds of one run of a program.

    Attributes:
        compute: matrix products and convolutions at peak FLOP/s.
        hbm: memory traffic at peak bandwidth.
        ici: communication within a slice, at the bandwidth of its links.
        dcn: communication between slices.
        kernels: all kernels one after the other, each at its own roofline.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float
    kernels: float

    @property
    def step(self) -> float:
        """Returns the bound with full overlap of compute, memory traffic and communication."""
        return max(self.compute, self.hbm, self.ici, self.dcn)


def time_bounds(
    kernels: Sequence[Kernel], collectives: Sequence[Collective], dcn_bytes: int, coordinates: np.ndarray, chip: Chip
) -> TimeBounds:
    """Returns the lower bounds of a program's time.

    Args:
        kernels: of each chip.
        collectives: of the chips of a slice.
        dcn_bytes: that each chip sends to other slices.
        coordinates: of the mesh's chips, from `chip_coordinates`.
        chip: specifications of a chip.
    """
    return TimeBounds(
        compute=sum(kernel.count * kernel.flops for kernel in kernels) / chip.peak_flops,
        hbm=sum(kernel.count * kernel.bytes for kernel in kernels) / chip.hbm_bytes_per_s,
        ici=sum(collective.count * collective_seconds(collective, coordinates, chip) for collective in collectives),
        dcn=dcn_bytes / chip.dcn_bytes_per_s,
        kernels=sum(kernel.count * kernel_seconds(kernel, chip) for kernel in kernels),
    )


def kernel_seconds(kernel: Kernel, chip: Chip) -> float:
    """Returns the bound of one run of a kernel."""
    return max(kernel.flops / chip.peak_flops, kernel.bytes / chip.hbm_bytes_per_s)


def chip_coordinates(devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the coordinates of each device in its slice, int [devices, axes]."""
    return np.array([device.coords for device in devices])


def collective_seconds(collective: Collective, coordinates: np.ndarray, chip: Chip) -> float:
    """Returns the bound of one run of a collective on the links of a slice.

    A chip can use the links along those axes in which its group extends: one link if the group is two chips wide along
    an axis, else two. What a chip sends to itself, as some do in a permutation, takes no link.
    """
    for members in collective.groups:
        links = sum(min(len(np.unique(axis)) - 1, 2) for axis in coordinates[members].T)
        if links:
            return collective.sent_bytes / (links * chip.ici_link_bytes_per_s)
    return 0.0
