"""How long a program takes at least: what its chips compute, read and write, and say to each other, at their peaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from imagen_jax.planning.chips import Chip
from imagen_jax.planning.work import Collective, Kernel


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


def bounds(kernels: Sequence[Kernel], collectives: Sequence[Collective], places: np.ndarray, chip: Chip) -> Bounds:
    """The bounds of a program.

    Args:
        kernels: what each chip does.
        collectives: what chips do together.
        places: of the chips along the mesh, as ``places_of`` gives them.
        chip: what each is.
    """
    seconds = [exchange_seconds(collective, places, chip) for collective in collectives]
    turns = [collective.times for collective in collectives]
    ici, network = np.array(turns, float) @ np.array(seconds, float).reshape(-1, 2) if seconds else (0.0, 0.0)
    return Bounds(
        compute=sum(kernel.times * kernel.flops for kernel in kernels) / chip.peak_flops,
        hbm=sum(kernel.times * kernel.bytes for kernel in kernels) / chip.hbm_bytes_per_s,
        ici=float(ici),
        network=float(network),
        kernels=sum(kernel.times * kernel_seconds(kernel, chip) for kernel in kernels),
    )


def kernel_seconds(kernel: Kernel, chip: Chip) -> float:
    """Of one run of a kernel alone."""
    return max(kernel.flops / chip.peak_flops, kernel.bytes / chip.hbm_bytes_per_s)


def places_of(devices: Sequence[jax.Device]) -> np.ndarray:
    """(slice, x, y, z) of each device, [devices, 4]."""
    return np.array([(getattr(device, "slice_index", 0), *device.coords) for device in devices])


def exchange_seconds(collective: Collective, places: np.ndarray, chip: Chip) -> tuple[float, float]:
    """(seconds on the links of a slice, seconds on the network between slices) of one run of a collective.

    Of the links of a chip those count that lead along axes in which its group extends: one if it is two chips wide
    there, else two. Between slices each chip has to send its share of what its group does.
    """
    group = places[collective.groups[0]]
    wide = [len(np.unique(axis)) for axis in group.T[1:]]
    slices = len(np.unique(group[:, 0]))
    links = sum(min(extent - 1, 2) for extent in wide)
    inside = dataclasses.replace(collective, groups=collective.groups[:, : collective.groups.shape[1] // slices])
    ici = inside.sent_bytes / (links * chip.link_bytes_per_s) if links else 0.0
    if slices == 1:
        return ici, 0.0
    both_ways = 2 if collective.kind == "all-reduce" else 1
    share = collective.bytes / inside.groups.shape[1]
    return ici, both_ways * share * (slices - 1) / slices / chip.network_bytes_per_s
