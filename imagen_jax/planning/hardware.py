"""TPU chips and topologies, from the makers' public figures.

Peaks, memory and interconnect are from the pages of v4, v5e, v5p and v6e in Cloud TPU's documentation
(cloud.google.com/tpu/docs), as of November 2026. Interconnect figures are the sum of a chip's links in one direction:
half of the figure where a page adds up both directions.
"""

from __future__ import annotations

import dataclasses
import math
import re

from imagen_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specifications of a TPU chip.

    Attributes:
        peak_flops: bfloat16 FLOP/s.
        hbm_bytes: size of its memory.
        hbm_bytes_per_s: memory bandwidth.
        ici_links: links to neighbors, two for each axis of the torus.
        ici_link_bytes_per_s: bandwidth of a link, in one direction.
        dcn_bytes_per_s: its share of the bandwidth of its host's network, which connects slices, in one direction.
        megacore: whether its two cores have to be configured to work as one device.
    """

    peak_flops: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    ici_links: int
    ici_link_bytes_per_s: float
    dcn_bytes_per_s: float
    megacore: bool = False


GIB = 2**30
CHIPS = {
    # 2,400 Gbit/s over 6 links; the page has no figure for the network, v5p's is used
    "v4": Chip(275e12, 32 * GIB, 1.2e12, 6, 50e9, 6.25e9, megacore=True),
    # 1,600 Gbit/s over 4 links; a host of 8 chips has 200 Gbit/s
    "v5e": Chip(197e12, 16 * GIB, 0.819e12, 4, 50e9, 3.125e9),
    # 1,200 GB/s in both directions over 6 links; 50 Gbit/s per chip
    "v5p": Chip(459e12, 95 * GIB, 2.765e12, 6, 100e9, 6.25e9, megacore=True),
    # 3,200 Gbit/s over 4 links; a host of 8 chips has 800 Gbit/s
    "v6e": Chip(918e12, 32 * GIB, 1.6e12, 4, 100e9, 12.5e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips in one or more slices: `v4:8x8x4`, or `v4:8x8x4*2` for two slices.

    Attributes:
        generation: a key of CHIPS.
        shape: chips along each axis of a slice.
        num_slices: number of slices.
    """

    generation: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chip(self) -> Chip:
        """Returns the specifications of a chip."""
        return CHIPS[self.generation]

    @property
    def num_chips(self) -> int:
        """Returns the number of chips of all slices."""
        return math.prod(self.shape) * self.num_slices

    @property
    def slice_name(self) -> str:
        """Returns the name of one slice, as libtpu knows it."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.slice_name + (f"*{self.num_slices}" if self.num_slices > 1 else "")


def parse_topology(text: str) -> Topology:
    """Returns the topology of a text such as `v4:8x8x4*2`.

    Raises:
        ConfigError: the text has another form, or names an unknown generation or a wrong number of axes.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", text)
    if match is None:
        raise ConfigError(
            f"topology {text!r} is not GENERATION:CHIPSxCHIPS…: use for example v4:8x8x4, v5e:16x16, or v5p:4x4x8*2 "
            "for two slices"
        )
    generation, shape, num_slices = match[1], tuple(map(int, match[2].split("x"))), int(match[3] or 1)
    if generation not in CHIPS:
        raise ConfigError(f"topology {text!r} has the unknown generation {generation!r}: choose {', '.join(CHIPS)}")
    axes = CHIPS[generation].ici_links // 2
    if len(shape) != axes or min(shape) < 1 or num_slices < 1:
        example = "x".join("4" * axes)
        raise ConfigError(
            f"topology {text!r} does not have {axes} positive sizes, as {generation} needs: use for example "
            f"{generation}:{example}"
        )
    return Topology(generation, shape, num_slices)
