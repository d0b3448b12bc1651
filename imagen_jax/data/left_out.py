"""What a source has found but does not use, counted and named, so that nothing is left out in silence."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

from imagen_jax.io.text import printable

logger = logging.getLogger(__name__)

_NAMES = 3  # names kept of each reason
_MAX_NAME = 4096  # characters of a name
_MAX_SHOWN = 120  # characters of a name in a message
_said: set[str] = set()  # messages that this process has logged


@dataclasses.dataclass(frozen=True)
class Finding:
    """Some things that a source found, and why it does not use them.

    Attributes:
        place: the folder or the shards.
        what: the things, such as "file(s) not used".
        reason: why, and what would change it.
        count: how many there are.
        names: the first of them.
    """

    place: str
    what: str
    reason: str
    count: int
    names: tuple[str, ...]

    def message(self) -> str:
        """Returns the finding as one line of text."""
        return printable(f"{self.place}: {self.count:,} {self.what}{_such_as(self.names)}: {self.reason}")


class LeftOut:
    """Counts and first names of what a source does not use, by reason; in order of first mention."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str, str], Finding] = {}

    def add(self, place: str, what: str, reason: str, names: Iterable[str], count: int = 0) -> None:
        """Adds things that are not used.

        Args:
            place: the folder or the shards.
            what: the things, such as "file(s) not used".
            reason: why, and what would change it.
            names: their names, or the first of them.
            count: how many there are; 0 for as many as there are names.
        """
        kept, named = [], 0
        for named, name in enumerate(names, 1):
            if named <= _NAMES:
                kept.append(name[:_MAX_NAME])
        if not (count or named):
            return
        key = place, what, reason
        known = self._findings.get(key, Finding(*key, 0, ()))
        self._findings[key] = Finding(*key, known.count + (count or named), (*known.names, *kept)[:_NAMES])

    def merge(self, others: Iterable[LeftOut], place: str = "") -> LeftOut:
        """Adds what others have. Returns this object.

        Args:
            others: what to add.
            place: the place of all of it; "" to keep their own.
        """
        for other in others:
            for finding in other.findings:
                self.add(place or finding.place, finding.what, finding.reason, finding.names, finding.count)
        return self

    @property
    def findings(self) -> list[Finding]:
        """All findings."""
        return list(self._findings.values())

    def messages(self) -> list[str]:
        """Returns a line of text for each finding."""
        return [finding.message() for finding in self.findings]

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the findings as JSON can hold them."""
        return [{**dataclasses.asdict(finding), "names": list(finding.names)} for finding in self.findings]


def left_out_of(source: Any) -> LeftOut:
    """Returns what a source does not use: its attribute `left_out`, nothing if it has none."""
    return getattr(source, "left_out", None) or LeftOut()


def warn_left_out(source: Any) -> None:
    """Logs what a source does not use; each line once in a process, however often the same place is opened."""
    for message in left_out_of(source).messages():
        if message not in _said:
            _said.add(message)
            logger.warning("%s", message)


def _such_as(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…") for name in names)
    return f", such as {shown}" if names else ""
