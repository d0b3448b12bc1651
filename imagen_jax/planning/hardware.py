"""TPU chips and the machines that they are put together to, from the makers' public figures.

Peaks, memories and interconnects are those of the pages of v4, v5e, v5p and v6e in Cloud TPU's documentation
(cloud.google.com/tpu/docs), read in November 2026. An interconnect's figure is the sum of a chip's links in one
direction: where a page gives both directions together, half of it.
"""

from __future__ import annotations

import dataclasses
import math
import re

from imagen_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        peak_flops: bfloat16 operations a second.
        hbm_bytes: of its memory.
        hbm_bytes_per_s: between it and its memory.
        links: to neighbours; two for each axis of the torus that chips form.
        link_bytes_per_s: over one of them, one way.
        network_bytes_per_s: its share of its host's network, one way: the way between slices.
        cores_are_one: whether its two cores have to be asked to work as one device.
    """

    peak_flops: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    links: int
    link_bytes_per_s: float
    network_bytes_per_s: float
    cores_are_one: bool = False


GIB = 2**30
CHIPS = {
    # 2,400 Gbit/s over 6 links; the share of the network is taken to be that of v5p: its page has none
    "v4": Chip(275e12, 32 * GIB, 1.2e12, 6, 50e9, 6.25e9, cores_are_one=True),
    # 1,600 Gbit/s over 4 links; a host of 8 chips has 200 Gbit/s
    "v5e": Chip(197e12, 16 * GIB, 0.819e12, 4, 50e9, 3.125e9),
    # 1,200 GB/s both ways over 6 links; 50 Gbit/s a chip
    "v5p": Chip(459e12, 95 * GIB, 2.765e12, 6, 100e9, 6.25e9, cores_are_one=True),
    # 3,200 Gbit/s over 4 links; a host of 8 chips has 800 Gbit/s
    "v6e": Chip(918e12, 32 * GIB, 1.6e12, 4, 100e9, 12.5e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of a kind in one or more slices: ``v4:8x8x4``, or ``v4:8x8x4*2`` for two of them.

    Attributes:
        kind: a key of CHIPS.
        shape: chips along each axis of a slice.
        slices: their number.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """What each of them is."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def slice_name(self) -> str:
        """One slice, as libtpu names it."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.slice_name + (f"*{self.slices}" if self.slices > 1 else "")


def parse_topology(text: str) -> Topology:
    """The topology that a text names. Raises UsageError for another form, kind, or number of axes."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", text)
    if match is None:
        raise ConfigError(
            f"topology {text!r} is not KIND:CHIPSxCHIPS…: give for example v4:8x8x4, v5e:16x16, or v5p:4x4x8*2 for two "
            "slices"
        )
    kind, sides, slices = match[1], tuple(map(int, match[2].split("x"))), int(match[3] or 1)
    if kind not in CHIPS:
        raise ConfigError(f"topology {text!r} is of chips {kind!r}, which are not known: choose {', '.join(CHIPS)}")
    axes = CHIPS[kind].links // 2
    if len(sides) != axes or min(sides) < 1 or slices < 1:
        example = "x".join("4" * axes)
        raise ConfigError(
            f"topology {text!r} does not name {axes} sides, as {kind} has: give for example {kind}:{example}"
        )
    return Topology(kind, sides, slices)
