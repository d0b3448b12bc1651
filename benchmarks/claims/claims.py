"""The claims by name."""

from __future__ import annotations

from typing import Protocol

from matplotlib.figure import Figure

from benchmarks.claims import augmentation, guidance, networks, objectives, text_encoders
from benchmarks.claims.experiment import Figures, Workspace


class Claim(Protocol):
    """A module of this package that measures a claim.

    Attributes:
        TITLE: heading of its section.
        CLAIM: the claim in our words.
    """

    TITLE: str
    CLAIM: str

    def measure(self, work: Workspace) -> Figures:
        """Trains and samples what is needed; returns the figures."""
        ...

    def summarize(self, figures: Figures) -> str:
        """Returns the result in a sentence or two."""
        ...

    def describe(self, figures: Figures) -> str:
        """Returns the setup and the tables of the results as Markdown."""
        ...

    def plot(self, figures: Figures) -> Figure:
        """Returns the tables as a plot."""
        ...


CLAIMS: dict[str, Claim] = {
    "guidance": guidance,
    "augmentation": augmentation,
    "networks": networks,
    "text_encoders": text_encoders,
    "objectives": objectives,
}
