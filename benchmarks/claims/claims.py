"""The claims by name."""

from __future__ import annotations

from typing import Protocol

from matplotlib.figure import Figure

from benchmarks.claims import augmentation, guidance, networks, objectives, text_encoders
from benchmarks.claims.experiment import Figures, Workplace


class Claim(Protocol):
    """A module of this package that measures a claim.

    Attributes:
        TITLE: heading of what is told of it.
        CLAIM: what the paper says, in our words.
    """

    TITLE: str
    CLAIM: str

    def measure(self, work: Workplace) -> Figures:
        """Trains and draws what is needed; the figures."""
        ...

    def find(self, figures: Figures) -> str:
        """What was found, in a sentence or two."""
        ...

    def tell(self, figures: Figures) -> str:
        """What was done, and the tables of what was found, as Markdown."""
        ...

    def plot(self, figures: Figures) -> Figure:
        """The tables as a plot."""
        ...


CLAIMS: dict[str, Claim] = {
    "guidance": guidance,
    "augmentation": augmentation,
    "networks": networks,
    "text_encoders": text_encoders,
    "objectives": objectives,
}
