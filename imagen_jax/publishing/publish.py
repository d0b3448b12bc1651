"""Publishes a cascade: one folder with all that others need to sample from it, see `stages/published.py`.

The folder is written beside its place and renamed when it is complete, or uploaded with its index last: a process that
is killed leaves nothing that loads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax

from imagen_jax.datasets.captions import FirstCaptions, SourceCaptions
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.io.atomic import atomic_write, commit_folder
from imagen_jax.io.bucket import BucketPath
from imagen_jax.io.local_copy import local_folder
from imagen_jax.io.paths import as_path, bucket_path, file_sizes
from imagen_jax.io.version import VERSION
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.pipelines.origin import find_origin, license_fields, license_texts
from imagen_jax.pipelines.safety_checker import copy_checker
from imagen_jax.publishing.card import CardFacts, license_header, model_card
from imagen_jax.publishing.evaluation import Evaluation, find_evaluation
from imagen_jax.publishing.push import check_push, push
from imagen_jax.publishing.stage_files import portable_config, write_stage
from imagen_jax.publishing.text_encoders import EncoderPlan, copy_encoders, plan_encoders
from imagen_jax.stages.cascade_folder import check_out, new_folder, weights_checksum, write_index
from imagen_jax.stages.published import INDEX, SAFETY_CHECKER, SafetyCheckerEntry, StageEntry

CARD = "README.md"
GRID = "samples.png"
MAX_SHARD_SIZE = 4 * 10**9  # bytes
_NUM_SAMPLES = 16  # of the grid
_MAX_PROMPTS = 100
_SEED = 0  # of the grid


@dataclasses.dataclass(frozen=True)
class PublishSettings:
    """How a cascade is published.

    Attributes:
        name: of the cascade; "" for that of its folder.
        license: of the weights, by its identifier on the Hub, such as "apache-2.0", its name, or its address; "" for
            that of the pipelines that stages were converted from, or none.
        text_encoder: whether the files of the text encoder are inside; None for those that no name leads others to.
        max_shard_size: bytes of tensors in a file.
        evaluation: folder or scores.json of `imagen evaluate` of the same weights, for the model card; None to look
            for it beside the stage folders.
        prompts: of the sample grid; () for the first captions of the evaluation, or of the validation split.
        overwrite: whether a published cascade in the folder, or on the Hub, is replaced.
        push: ORG/NAME on the Hugging Face Hub to push to; "" for none.
        private: whether a new repository there is private.
    """

    name: str = ""
    license: str = ""
    text_encoder: bool | None = None
    max_shard_size: int = MAX_SHARD_SIZE
    evaluation: str | Path | None = None
    prompts: Sequence[str] = ()
    overwrite: bool = False
    push: str = ""
    private: bool = False


@dataclasses.dataclass(frozen=True)
class PublishedCascade:
    """What `publish` has written: `files`, their `size` in bytes, and the address of the commit on the Hub, or ""."""

    out: Path
    files: int
    size: int
    url: str = ""

    def summary(self) -> str:
        """Returns the result as lines of text."""
        lines = [f"{self.out}: {self.files} files, {self.size:,} bytes; {CARD} describes the cascade"]
        return "\n".join([*lines, f"pushed: {self.url}"] if self.url else lines)


def publish(
    pipeline: ImagenPipeline, out: str | Path, settings: PublishSettings = PublishSettings()
) -> PublishedCascade:
    """Writes a published cascade.

    Args:
        pipeline: the cascade; its sampling settings become the defaults.
        out: the folder, also in a bucket.
        settings: see `PublishSettings`.

    Raises:
        ConfigError: a setting cannot work, the folder has other files, or the evaluation is of other weights.
        TrainingError: the push failed; the folder is complete.
        OSError: a file cannot be written.
    """
    folder = as_path(out)
    check_settings(settings)
    check_out(folder, settings.overwrite, [trained.folder for trained in pipeline.stages])
    target = check_push(settings.push, settings.private, settings.overwrite) if settings.push else None
    evaluation = find_evaluation(pipeline.stages, settings.evaluation)
    origins = [find_origin(trained.folder, trained.stage.config) for trained in pipeline.stages]
    texts = [trained.stage.config.text for trained in pipeline.stages]
    encoders = plan_encoders(texts, pipeline.text_encoders, settings.text_encoder)
    prompts = list(settings.prompts) or _default_prompts(pipeline.stages, evaluation)
    name = settings.name or folder.name
    with new_folder(folder) as temporary:
        _write_stages(temporary, pipeline.stages, encoders, origins, settings)
        copy_encoders(encoders, temporary)
        checker = None
        if pipeline.safety_checker is not None:
            checker = copy_checker(pipeline.safety_checker, temporary, f"{name}/{SAFETY_CHECKER}")
        _write_grid(temporary / GRID, pipeline, prompts)
        facts = CardFacts(
            name=name,
            loads_as=folder.name if target is None else target.repo,
            license=_license(settings.license, origins),
            stages=pipeline.stages,
            encoders=[plan.entry for plan in encoders],
            evaluation=evaluation,
            prompts=prompts,
            seed=_SEED,
            software=VERSION,
        )
        atomic_write(temporary / CARD, model_card(facts).encode())
        _write_index(temporary, name, pipeline.stages, encoders, checker)
        sizes = file_sizes(temporary)
        _put(temporary, folder)
    url = "" if target is None else push(local_folder(folder), target, settings.private)
    return PublishedCascade(folder, len(sizes), sum(sizes.values()), url)


def check_settings(settings: PublishSettings) -> None:
    """Raises ConfigError for settings that cannot work, whatever the cascade is."""
    if settings.max_shard_size < 1:
        raise ConfigError(f"max_shard_size {settings.max_shard_size} is not at least 1 byte: give for example 4GB")
    if len(settings.prompts) > _MAX_PROMPTS:
        raise ConfigError(f"there are {len(settings.prompts)} prompts, and the sample grid has at most {_MAX_PROMPTS}")
    if "\n" in settings.license or "\n" in settings.name:
        raise ConfigError("the name and the license are single lines: give the address of the license's text")
    if jax.process_count() > 1:
        raise ConfigError(f"there are {jax.process_count()} processes, and publishing runs in one: start it once")
    if settings.private and not settings.push:
        raise ConfigError("--private is for --push alone: give --push=ORG/NAME, or leave it out")


def _default_prompts(stages: Sequence[TrainedStage], evaluation: Evaluation | None) -> list[str]:
    """Returns the first captions of the evaluation's data or, without one, of the last stage's validation split."""
    config = stages[-1].stage.config
    data, split = config.data, config.data.validation_split
    if evaluation is not None:
        data, split = evaluation.config.data, evaluation.config.data.split
    try:
        source = SourceCaptions([make_source(data, split, config.image_hw)])
        return list(FirstCaptions(source, _NUM_SAMPLES))
    except (ConfigError, OSError) as error:
        raise ConfigError(
            f"the data set of the stages cannot be read for captions of the sample grid ({error}): give --prompts="
            "'FIRST PROMPT; SECOND PROMPT'"
        ) from error


def _license(license: str, origins: Sequence[Any]) -> dict[str, str]:
    """Returns the fields of the card about the license: what was given, else those of a pipeline of the stages."""
    if license:
        return license_header(license)
    return next((fields for fields in map(license_fields, origins) if fields), {})


def _write_stages(
    folder: Path,
    stages: Sequence[TrainedStage],
    encoders: Sequence[EncoderPlan],
    origins: Sequence[Any],
    settings: PublishSettings,
) -> None:
    """Writes the folder of each stage, and the licenses of pipelines that they come from."""
    for index, (trained, encoder, origin) in enumerate(zip(stages, encoders, origins, strict=True)):
        config = portable_config(trained.stage.config, encoder.entry)
        write_stage(folder / f"stage_{index}", config, trained.params, settings.max_shard_size, origin)
        for name, text in license_texts(origin).items():
            atomic_write(folder / name, text.encode())


def _write_grid(path: Path, pipeline: ImagenPipeline, prompts: Sequence[str]) -> None:
    images = pipeline(prompts, seed=_SEED).images
    save_png(image_grid(images, prompts, math.ceil(math.sqrt(len(prompts)))), path)


def _write_index(
    folder: Path,
    name: str,
    stages: Sequence[TrainedStage],
    encoders: Sequence[EncoderPlan],
    checker: SafetyCheckerEntry | None,
) -> None:
    """Writes the index, and the checksums of all files, which complete the folder."""
    entries = [
        StageEntry(
            folder=f"stage_{index}",
            step=trained.step,
            weights="raw" if trained.weights == "raw" else "ema",
            checkpoint=trained.checksum or weights_checksum(folder / f"stage_{index}"),
            config=trained.config_digest,
            text_encoder=encoder.entry,
        )
        for index, (trained, encoder) in enumerate(zip(stages, encoders, strict=True))
    ]
    write_index(folder, name, entries, checker)


def _put(temporary: Path, folder: Path) -> None:
    """Puts a complete folder in its place; a cascade that is there is removed."""
    bucket = bucket_path(folder)
    if bucket is None:
        commit_folder(temporary, folder.absolute())
        return
    names = list(file_sizes(temporary))
    cast(BucketPath, folder / INDEX).unlink(missing_ok=True)  # from now on, the old one does not load
    for old in bucket.tree():
        if old not in names:
            (bucket / old).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: name == INDEX):
        (bucket / name).upload(str(temporary / name))
