"""What clients get of fine-tunings, as JSON."""

from __future__ import annotations

from pydantic import BaseModel, Field

from imagen_jax.serving.finetunings import Finetuning, FinetuningStatus
from imagen_jax.serving.service import Service
from imagen_jax.training.finetune_progress import Phase, StageProgress

_MAX_POINTS = 400  # of a loss curve


class PreviewView(BaseModel):
    """Samples at a step of a stage's run, of captions that it learns from."""

    step: int
    url: str = Field(description="Where the PNG is; as `url` of images.")


class StageRunView(BaseModel):
    """The run of a stage."""

    stage: int = Field(description="Its index, 0 for the base.")
    step: int = Field(description="The last one that was recorded: every 25th, or more often in short runs.")
    steps: int = Field(description="Of the run; 0 where it is not known yet.")
    losses: list[tuple[int, float]] = Field(description="Steps and losses that were recorded, at most 400 of them.")
    previews: list[PreviewView] = Field(description="The oldest first; none with a safety checker.")
    eta_seconds: float | None = Field(description="Seconds to the end of this stage, as far as that is known.")


class FinetuningProgressView(BaseModel):
    """Where a fine-tuning is."""

    phase: Phase = Field(
        description="`preparing` its images, `drawing` images of the class, `training`, `comparing` samples before and "
        "after, or `done`."
    )
    drawn: int = Field(description="Images of the class that exist.")
    prior_images: int = Field(description="Images of the class that are drawn in all; 0 without a class.")
    stages: int = Field(description="Stages that are trained in all.")
    runs: list[StageRunView] = Field(description="Those that have begun.")
    fraction: float = Field(description="Of the phase, from 0 to 1; of training, that of all stages.")


class FinetuningView(BaseModel):
    """A fine-tuning."""

    id: str
    name: str = Field(description="Of its adapter, for `lora` of a job.")
    status: FinetuningStatus = Field(description="`stopping` is until the step that runs is saved.")
    position: int | None = Field(description="Fine-tunings before it; null if it does not wait.")
    created: float = Field(description="Unix time.")
    started: float | None = Field(description="Unix time of its last start; null before.")
    finished: float | None = Field(description="Unix time; null before.")
    token: str
    class_name: str
    initializer: str = Field(description="As which the token begins, where it is learned; empty where it is not.")
    images: list[str] = Field(description="Where the images are that it learns from; as `url` of images.")
    steps: int = Field(description="Of each stage; 0 for a number that follows from that of the images.")
    rank: int
    learning_rate: float = Field(description="0 for one that follows from each stage's own.")
    seed: int
    progress: FinetuningProgressView
    usable: bool = Field(description="Whether jobs can ask for its adapter.")
    error: str | None = Field(
        description="Why it has failed or was not continued, or why its adapter cannot be used, one sentence."
    )
    before_after: str | None = Field(
        description="Where samples of the same prompts and noise are, before and after; as `url` of images."
    )
    adapter: str | None = Field(description="Where the adapter is, as a ZIP file; as `url` of images.")
    events: str = Field(description="Where its events are, server-sent.")


class FinetuningsView(BaseModel):
    """The fine-tunings of a client, the newest first."""

    finetunings: list[FinetuningView]


def finetuning_view(service: Service, one: Finetuning) -> FinetuningView:
    """Returns a fine-tuning as clients see it."""
    finetuner = service.finetuner
    assert finetuner is not None  # that it is of
    url, sign, is_done = f"/v1/finetunings/{one.id}", service.tokens.sign, one.status == "done"
    problem = finetuner.problem(one)
    is_shown = finetuner.before_after_path(one) is not None
    return FinetuningView(
        id=one.id,
        name=one.name,
        status=one.status,
        position=finetuner.position(one),
        created=one.created,
        started=one.started,
        finished=one.finished,
        token=one.settings.token,
        class_name=one.settings.class_name,
        initializer=one.settings.initializer,
        images=[sign(f"{url}/images/{index}.png") for index in range(one.images)],
        steps=one.settings.steps,
        rank=one.settings.rank,
        learning_rate=one.settings.learning_rate,
        seed=one.settings.seed,
        progress=_progress_view(service, one),
        usable=is_done and problem is None,
        error=one.error or problem,
        before_after=sign(f"{url}/before_after.png") if is_shown else None,
        adapter=sign(f"{url}/adapter.zip") if is_done else None,
        events=f"{url}/events",
    )


def _progress_view(service: Service, one: Finetuning) -> FinetuningProgressView:
    assert service.finetuner is not None
    progress = service.finetuner.progress(one)
    stages = len(one.settings.only) or len(service.pipeline.stages)
    wanted = one.settings.prior_images if one.settings.class_name else 0
    fraction = {"preparing": 0.0, "comparing": 1.0, "done": 1.0}.get(progress.phase, 0.0)
    if progress.phase == "drawing":
        fraction = progress.drawn / max(1, wanted)
    if progress.phase == "training":
        fraction = sum(run.step / run.steps for run in progress.stages if run.steps) / stages
    return FinetuningProgressView(
        phase=progress.phase,
        drawn=progress.drawn,
        prior_images=wanted,
        stages=stages,
        runs=[_run_view(service, one, run) for run in progress.stages],
        fraction=min(1.0, fraction),
    )


def _run_view(service: Service, one: Finetuning, run: StageProgress) -> StageRunView:
    every = -(-len(run.losses) // _MAX_POINTS) or 1
    folder = f"/v1/finetunings/{one.id}/previews/{run.index}"
    assert service.finetuner is not None
    previews = run.previews if service.finetuner.shows_samples else []
    return StageRunView(
        stage=run.index,
        step=run.step,
        steps=run.steps,
        losses=run.losses[::-1][::every][::-1],
        previews=[PreviewView(step=step, url=service.tokens.sign(f"{folder}/{step}.png")) for step in previews],
        eta_seconds=run.seconds_left if one.status == "running" else None,
    )
