"""What the files of the commands that evaluate have in them, as far as a report shows it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Rate(_Part):
    """A rate with its 95% interval."""

    total: int
    rate: float
    low: float
    high: float


class Mean(_Part):
    """A mean with its 95% interval; None for one group."""

    mean: float
    low: float | None
    high: float | None


class ImagesOf(_Part):
    """Images, a reference or captions that a figure depends on."""

    name: str = ""
    checksum: str = ""
    num_images: int = 0


class FigureRow(_Part):
    """A figure of a metric with all that it depends on, or the alignment of a sweep's point with its interval."""

    model_config = ConfigDict(frozen=True, extra="allow")
    value: float
    std: float | None = None
    error: float | None = None
    low: float | None = None
    high: float | None = None
    total: int | None = None
    images: ImagesOf | None = None
    reference: ImagesOf | None = None
    captions: ImagesOf | None = None

    @property
    def details(self) -> dict[str, Any]:
        """What is beside the value."""
        return self.model_dump(exclude={"value"}, exclude_none=True)


class Prompts(_Part):
    """The prompts of a benchmark."""

    name: str
    count: int
    sha256: str
    images_of_each: int | list[int]


class Overall(_Part):
    """The mean of the rates of categories, with its 95% interval."""

    mean: float
    low: float
    high: float


class Questions(_Part):
    """Answers to GenEval's questions."""

    judge: str
    overall: Overall
    categories: dict[str, Rate]
    challenges: dict[str, Rate] = {}
    all: Rate


class ClipScores(_Part):
    """CLIP scores of a benchmark's images."""

    model: str
    kind: str
    categories: dict[str, Mean]
    challenges: dict[str, Mean] = {}
    all: Mean


class Benchmark(_Part):
    """scores.json of `imagen benchmark_prompts`."""

    prompts: Prompts
    geneval: Questions | None = None
    clip: ClipScores | None = None


class Stage(_Part):
    """A stage in diagnostics.json."""

    image_size: int | list[int]
    step: int
    metrics: dict[str, float]


class Point(_Part):
    """A point of a sweep."""

    name: str
    settings: dict[str, Any]
    metrics: dict[str, FigureRow]


class Sweep(_Part):
    """sweep.json."""

    stage: int
    axes: dict[str, list[Any]]
    captions: ImagesOf
    points: list[Point]


class Share(Rate):
    """The share of a group."""

    target: float


class Unjudged(_Part):
    """Images that belong to no group."""

    images: int
    of: int


class Fairness(_Part):
    """fairness.json."""

    judge: str
    groups: dict[str, Share]
    none: Unjudged
    prompts: dict[str, dict[str, int]]
    distance_to_target: float
    distance_by_chance: float | None = None
    distance_to_training: float | None = None


class VoteRow(_Part):
    """The shares of votes in a category; None without votes."""

    a: Rate
    tie: Rate
    b: Rate
    a_of_decided: Rate | None


class Agreement(_Part):
    """Krippendorff's alpha; None where it is not defined."""

    alpha: float | None
    pairs: int


class Question(_Part):
    """The votes on a question."""

    rows: dict[str, VoteRow]
    left: Rate | None
    agreement: Agreement


class Votes(_Part):
    """What `imagen votes --out` writes."""

    models: dict[str, str]
    pairs: int
    raters: dict[str, int]
    questions: dict[str, Question]


class Origin(_Part):
    """What an evaluation was of, from its evaluation.json."""

    captions: str = ""
    judge: str = ""
