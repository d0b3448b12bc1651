"""What the engine takes and returns: requests, jobs, their images and events, and its errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

EditKind = Literal["image_to_image", "inpaint", "outpaint", "variations", "upscale", "edit", "interpolate"]
Status = Literal["queued", "running", "done", "canceled", "failed"]
ACTIVE: tuple[Status, ...] = ("queued", "running")
FINAL: tuple[Status, ...] = ("done", "canceled", "failed")
STOP_RETRY_SECONDS = 30  # after which a server that stops may have started again


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """How the images of a job are made from another one, see `ImagenEditor`.

    Attributes:
        kind: the method of the editor.
        image: SHA-256 of the file of the image, as it was given; None where images are between `ends`.
        mask: likewise of the mask; None for none.
        strength: for each stage.
        resample: how often each step is taken.
        feather: pixels over which new parts are faded in; None for the editor's own choice.
        position: (top, left) of the image on the canvas of an outpainting; None for the middle.
        source_prompt: what the image shows, where a changed prompt says what changes; None otherwise.
        ends: two seeds or two prompts, between which the images of a prompt are; None otherwise.
    """

    kind: EditKind
    image: str | None
    mask: str | None = None
    strength: list[float] = dataclasses.field(default_factory=list)
    resample: int = 1
    feather: int | None = None
    position: list[int] | None = None
    source_prompt: str | None = None
    ends: list[Any] | None = None


@dataclasses.dataclass(frozen=True)
class LoraChoice:
    """An adapter of a fine-tuning of this server that a job asks for.

    Attributes:
        id: of the fine-tuning.
        name: of the adapter, which the records of images have.
        scale: of its changes.
    """

    id: str
    name: str
    scale: float


@dataclasses.dataclass(frozen=True)
class EditInputs:
    """The image and the mask of an edit, as PNG files; they are kept with the job."""

    image: bytes
    mask: bytes | None = None


@dataclasses.dataclass(frozen=True)
class JobRequest:
    """What a client asks for: `count` images for each prompt, those of a prompt one after the other.

    Attributes:
        prompts: of the images.
        negative_prompt: what no image should show; None for nothing.
        count: images for each prompt.
        seeds: of each image, in [0, 2^64).
        settings: for each stage, sampling settings in the place of the cascade's.
        height: of the images in pixels; None for the cascade's.
        width: likewise.
        priority: of a client's jobs, those of a higher one begin first.
        idempotency_key: a name of the request within its client; the same one twice is one job. None for none.
        seeds_are_random: whether they were chosen by the server; a request that is sent again then has others.
        edit: how the images are made from another one; None for images from prompts alone.
        lora: adapters besides those that the cascade always has, in the order in which they are added.
    """

    prompts: list[str]
    negative_prompt: str | None
    count: int
    seeds: list[int]
    settings: list[dict[str, Any]]
    height: int | None = None
    width: int | None = None
    priority: int = 0
    idempotency_key: str | None = None
    seeds_are_random: bool = False
    edit: EditRequest | None = None
    lora: list[LoraChoice] = dataclasses.field(default_factory=list)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> JobRequest:
        """Returns the request of which `dataclasses.asdict` has made a tree."""
        edit = None if tree.get("edit") is None else EditRequest(**tree["edit"])
        return cls(**{**tree, "edit": edit, "lora": [LoraChoice(**choice) for choice in tree.get("lora", [])]})

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.prompts) * self.count

    def prompt(self, index: int) -> str:
        """Returns the prompt of an image."""
        return self.prompts[index // self.count]


@dataclasses.dataclass(frozen=True)
class JobImage:
    """An image of a job.

    Attributes:
        index: of the image in its job.
        prompt: of the image.
        seed: of its noise; its sample has the index 0.
        file: name of the PNG file, `ID-INDEX.png`; None until it is sampled.
        width: in pixels.
        height: in pixels.
        flagged: whether the safety checker has made it black.
    """

    index: int
    prompt: str
    seed: int
    file: str | None
    width: int
    height: int
    flagged: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """A job as it is at a moment.

    Attributes:
        id: 16 characters of [A-Za-z0-9_-], random.
        client: whose job it is.
        status: where it is.
        created: Unix time.
        started: Unix time of its first step; None before.
        finished: Unix time of its end; None before.
        request: what was asked for.
        images: one for each seed.
        error: why it has failed, one sentence; None otherwise.
    """

    id: str
    client: str
    status: Status
    created: float
    started: float | None
    finished: float | None
    request: JobRequest
    images: list[JobImage]
    error: str | None


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that has happened to a job.

    Attributes:
        name: "queued", "step", "preview", "image", or the job's status when it has ended.
        data: {"position"}, the progress, {"stage", "step", "images": [{"index", "png"}]}, a `JobImage`, or the `Job`.
    """

    name: str
    data: Any


class QueueFullError(Exception):
    """The queue has no room for a job.

    Attributes:
        retry_after: seconds until it may have.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageError(Exception):
    """A job cannot be kept, such as on a full disk; the text is one sentence."""
