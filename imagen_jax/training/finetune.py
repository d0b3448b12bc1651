"""Fine-tuning a cascade on a few images of a subject: DreamBooth (arXiv:2208.12242), by adapters or in full.

The word for the subject may be learned, too (textual inversion, arXiv:2208.01618), alone or with adapters.

OUT/finetune.json     what was asked for; the same call continues after a kill
OUT/inspection/       the report on the images
OUT/subject/          the images with the captions that they are trained with
OUT/varied/           copies of them, zoomed, moved and in other hues, for super-resolution stages
OUT/prior/            images of the class, drawn by the cascade before it is changed
OUT/stage_N/          the run of each stage
OUT/words/            the word that the first stage has learned, for the others
OUT/adapter/          adapters and words as files, with a card; not for the methods that train all weights
OUT/before_after.png  samples of the same prompts and noise, before and after

A stage trains on images of the subject and of the class in equal numbers: those of the class keep what it knew, with
the weight 1 of the paper's prior-preservation loss. Each super-resolution stage sees low-resolution images of its own
images, with noise, as in its training. Captions with the token are never dropped: what is drawn without text would
become the subject, and guidance would then lead away from it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from imagen_jax.config.data_schema import FileKeys
from imagen_jax.config.load import default_config
from imagen_jax.config.schema import StageConfig
from imagen_jax.data.record import CorruptRecordError
from imagen_jax.datasets.captions import no_captions_reason
from imagen_jax.datasets.from_config import make_transform
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.images.variations import vary
from imagen_jax.inspection.inspect import inspect
from imagen_jax.io.atomic import atomic_write, read_json, write_json
from imagen_jax.io.changes import changes
from imagen_jax.io.paths import as_path
from imagen_jax.io.text import printable
from imagen_jax.pipelines import output_dir
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.sample_to_folder import sample_to_folder
from imagen_jax.pipelines.texts import make_texts
from imagen_jax.stages.stage_folder import read_config
from imagen_jax.stages.text import make_encoder
from imagen_jax.text.learned_tokens import FILE as LEARNED
from imagen_jax.text.learned_tokens import MAX_ROWS
from imagen_jax.training.adapter_card import adapter_card
from imagen_jax.training.finetune_progress import ADAPTER, BEFORE_AFTER, METADATA, PRIOR
from imagen_jax.training.loop import train
from imagen_jax.training.preemption import StoppedError, StopRequest
from imagen_jax.training.to_lora import to_lora

Method = Literal["lora", "dreambooth", "textual_inversion", "full"]
METHODS: tuple[str, ...] = get_args(Method)
_SETTINGS, _SUBJECT, _VARIED, _WORDS = "finetune.json", "subject", "varied", "words"
_MAX_SHOWN = 8  # prompts before and after
_SEED = 0  # of samples
# of the stage's own learning rate, which fits its optimizer, its width and its data
_RATES = {"lora": 1.0, "textual_inversion": 1.0, "dreambooth": 0.1, "full": 0.1}
_RANKS = {False: 8, True: 32}  # of adapters, by whether the stage is one of super-resolution
# what draws; attention, which says where and what of a caption it is, keeps that for the subject if it stays as it is
_TARGETS = {
    "unet": ("_res_", "^out$"),
    "efficient_unet": ("_res_", "^out$"),
    # those of diffusers' scripts
    "if_unet": ("to_[qkv]", "to_out_0", "add_[kv]_proj"),
}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """How a cascade is fine-tuned.

    Attributes:
        token: what names the subject in prompts, such as "sks star": a rare word, and what it is.
        class_name: what the subject is one of, such as "star": the stages keep how they draw it. "" for no images of
            the class.
        method: "lora" trains adapters, "dreambooth" all weights with images of the class, "textual_inversion" the token
            alone, "full" all weights on the captions of the images, as for another domain.
        initializer: a word that the text encoder knows, as which the token starts to be learned, beside adapters or
            alone; "" leaves the text encoder as it is, or starts textual inversion at the mean of its tokens.
        prior_prompts: of the images of the class; () for "a CLASS".
        prior_images: how many are drawn.
        class_images: a folder of images of the class with captions, such as OUT/prior/images of an earlier fine-tuning,
            that are trained on in place of ones to be drawn; "" draws them.
        prompts: to show before and after; () for the subject, and captions of its images.
        only: indices of the stages to train; () for all.
        steps: of each stage; 0 for a number that follows from that of the images.
        learning_rate: 0 for a part of each stage's own.
        batch_size: 0 for 8, or a multiple of the devices above it.
        rank: of the adapters; 0 for 8, and 32 in super-resolution stages, which draw what the subject looks like.
        varied: how many copies of the images, zoomed, moved and in other hues, super-resolution stages see, together as
            often as the images themselves; 0 for none. Methods without a token have none.
        targets: modules to adapt, as `adapter.targets`; () for residual blocks and the output, or in DeepFloyd IF's
            network attention.
        seed: of training and of the images of the class.
    """

    token: str = ""
    class_name: str = ""
    method: Method = "lora"
    initializer: str = ""
    prior_prompts: Sequence[str] = ()
    prior_images: int = 200
    class_images: str = ""
    prompts: Sequence[str] = ()
    only: Sequence[int] = ()
    steps: int = 0
    learning_rate: float = 0.0
    batch_size: int = 0
    rank: int = 0
    varied: int = 100
    targets: Sequence[str] = ()
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What `finetune` has made.

    Attributes:
        out: its folder.
        stages: the folders of the cascade's stages: those that were trained, and the others as they were.
        adapter: the folder of the adapters; None for other methods.
        stopped_by: what asked it to stop before the end; "" if it is complete.
    """

    out: Path
    stages: list[Path]
    adapter: Path | None
    stopped_by: str = ""

    def summary(self) -> str:
        """Returns the result as lines of text."""
        if self.stopped_by:
            return f"{self.out}: stopped by {self.stopped_by}; the same command continues"
        names = ",".join(map(str, self.stages))
        lines = [f"{self.out / BEFORE_AFTER} shows samples before and after", f"--stages={names} samples from it"]
        if self.adapter is not None:
            lines.append(f"{self.adapter} has the adapter, for --lora and ImagenPipeline.load_lora")
        return "\n".join(lines)


def finetune(
    stages: str | Path | Sequence[str | Path],
    images: str | Path,
    out: str | Path,
    settings: FinetuneSettings = FinetuneSettings(),
    *,
    stop: StopRequest | None = None,
    log: Callable[[str], None] = logger.info,
) -> Finetuned:
    """Fine-tunes a cascade on a folder of images; called again with the same arguments, it continues.

    Args:
        stages: the cascade, see `find_stages`.
        images: a folder of images of the subject; captions in text files beside them, or in a metadata file, are those
            that they are trained with, and "a TOKEN" for images without.
        out: the folder to write to.
        settings: see `FinetuneSettings`.
        stop: asks it to save and to return.
        log: takes messages.

    Raises:
        ConfigError: a setting cannot work, no image can be read, or the folder is that of other settings.
        TrainingError: a run cannot continue.
    """
    folder, source = as_path(out), as_path(images)
    _check_settings(settings)
    found = find_stages(stages)
    configs = [read_config(path) for path in found]
    # a word is learned by the base, which reads it most
    only = settings.only or range(1 if settings.method == "textual_inversion" else len(found))
    if not all(0 <= index < len(found) for index in only):
        raise ConfigError(f"stages {list(only)} are to be trained, and the cascade has {len(found)}, counted from 0")
    vaes = [str(found[index]) for index in only if configs[index].is_vae]
    if vaes:
        raise ConfigError(
            f"{vaes[0]!r} is a VAE, and fine-tuning adapts diffusion models: give other stages, or train it with "
            "training.init_from"
        )
    _check_same(folder, _described(found, source, settings))
    subject = _prepare_subject(source, folder, configs[-1], settings, log)
    # no safety checker: black images would be trained on
    pipeline = ImagenPipeline.from_pretrained(list(found), safety_checker=None)
    tuned, stop = list(found), stop or StopRequest()
    try:
        prior = _prepare_prior(pipeline, folder, settings, stop, log)
    except StoppedError as stopped:
        return Finetuned(folder, tuned, None, str(stopped))
    varied = None
    if any(configs[index].is_super_resolution for index in only):
        varied = _prepare_varied(folder, configs[-1], settings)  # of the largest size, and smaller stages reduce it
    for index in only:
        copies = varied if configs[index].is_super_resolution else None
        config = stage_config(configs[index], found[index], folder, len(subject), settings, prior, copies)
        if config.refines:  # the VAE that the stage was trained with may be elsewhere, and is the one before it
            config = config.with_changes({"diffusion.low_res_vae": str(found[index - 1])})
        if _learns(settings):
            config = _with_word(config, folder, settings, first=index == only[0])
        tuned[index] = folder / f"stage_{index}"
        log(f"stage {index}: {config.training.steps} steps on {len(subject)} images")
        result = train(config, tuned[index], stop=stop)
        if result.stopped_by:
            return Finetuned(folder, tuned, None, result.stopped_by)
        if _learns(settings) and index == only[0]:
            to_lora(tuned[index], folder / _WORDS, overwrite=True, kind="embedding")
    adapter = None
    if settings.method in ("lora", "textual_inversion"):
        adapter = folder / ADAPTER
        _write_adapter(adapter, [tuned[index] for index in only], list(only), settings, len(subject))
    _save_before_after(pipeline, tuned, folder, settings, subject)
    return Finetuned(folder, tuned, adapter)


def _check_settings(settings: FinetuneSettings) -> None:
    """Raises ConfigError for settings that cannot work, whatever the cascade is."""
    problems = []
    if settings.method not in METHODS:
        problems.append(f"the method {printable(settings.method)!r} is not one of {', '.join(METHODS)}")
    if settings.method != "full" and not settings.token.strip():
        problems.append("there is no token that names the subject: give a rare word and its class, such as 'sks dog'")
    has_class = settings.class_name or settings.prior_prompts or settings.class_images
    if settings.method == "dreambooth" and not has_class:
        problems.append(
            "the method 'dreambooth' trains all weights and keeps what they know by images of a class: give its name, "
            "such as 'dog', or take the method 'full'"
        )
    if settings.prior_prompts and settings.class_images:
        problems.append(
            f"images of the class are in {settings.class_images!r}, and there are prompts to draw others: leave either "
            "out"
        )
    if settings.initializer and settings.method not in ("lora", "textual_inversion"):
        problems.append(
            f"the method {settings.method!r} leaves the text encoder as it is: leave the initializer out, or take "
            "'lora'"
        )
    if settings.method == "full" and has_class:
        problems.append("the method 'full' has no images of a class: leave the class out, or take 'dreambooth'")
    for name, least in (
        ("prior_images", 1),
        ("steps", 0),
        ("learning_rate", 0),
        ("batch_size", 0),
        ("rank", 0),
        ("varied", 0),
    ):
        if getattr(settings, name) < least:
            problems.append(f"{name} {getattr(settings, name)} is below {least}")
    if problems:
        raise ConfigError(*problems)


def _described(stages: Sequence[Path], images: Path, settings: FinetuneSettings) -> dict[str, Any]:
    """Returns what decides the result, as JSON."""
    described = {"stages": [str(path) for path in stages], "images": str(images), **dataclasses.asdict(settings)}
    if not settings.class_images:  # as folders have it that were begun before there was this setting
        del described["class_images"]
    tree: dict[str, Any] = json.loads(json.dumps(described))
    return tree


def _check_same(folder: Path, described: dict[str, Any]) -> None:
    """Writes what was asked for into a new folder. Raises ConfigError if the folder is that of another call."""
    path = folder / _SETTINGS
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} has files that are not those of a fine-tuning: give a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, described)
        return
    try:
        different = changes(read_json(path), described)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): give a new folder") from error
    if different:
        raise ConfigError(f"{folder} is of other settings: {'; '.join(different.values())}; give a new folder")


# images


def _prepare_subject(
    source: Path, folder: Path, config: StageConfig, settings: FinetuneSettings, log: Callable[[str], None]
) -> list[str]:
    """Copies the images that can be read, and returns the first caption of each."""
    target = folder / _SUBJECT
    if not target.is_dir():
        temporary = folder / f".{_SUBJECT}.unfinished"
        shutil.rmtree(temporary, ignore_errors=True)
        _copy_subject(source, folder, temporary, config, settings, log)
        temporary.rename(target)
    return [path.read_text(encoding="utf-8").splitlines()[0] for path in sorted(target.glob("*.txt"))]


def _copy_subject(
    source: Path,
    folder: Path,
    target: Path,
    config: StageConfig,
    settings: FinetuneSettings,
    log: Callable[[str], None],
) -> None:
    """Writes the images that can be read, and beside each a text file with its captions, one on each line."""
    looked_at = _reading(config, source)
    report = inspect(looked_at, folder / "inspection")
    for entry in report["unreadable_files"]:
        log(f"left out: {printable(entry['name'])}: {printable(entry['reason'])}")
    if report["unreadable"] == report["records"]:
        raise ConfigError(f"--images {str(source)!r} cannot be used: {report['unusable']}")
    unreadable = {entry["name"] for entry in report["unreadable_files"]}
    records = make_source(looked_at.data, "train", looked_at.image_hw)
    target.mkdir(parents=True)
    texts: list[str] = []
    for index in range(len(records)):
        try:
            record = records[index]
        except CorruptRecordError:
            continue
        if record.name in unreadable:
            continue
        assert isinstance(record.image, bytes)  # a file of the folder
        name = f"{len(texts):04d}"
        captions = [" ".join(caption.split()) for caption in record.captions] or [f"a {settings.token}"]
        atomic_write(target / f"{name}{Path(record.name).suffix.lower()}", record.image)
        atomic_write(target / f"{name}.txt", "\n".join(captions).encode())
        texts.append("\n".join(captions))
    missing = [text.splitlines()[0] for text in texts if settings.token and settings.token not in text]
    if missing:
        log(
            f"{len(missing)} of {len(texts)} captions do not name {settings.token!r}, such as {missing[0]!r}: "
            "prompts with it will not mean what is in these images"
        )


def _reading(config: StageConfig, folder: Path) -> StageConfig:
    """Returns the config of a stage whose data are the images of a folder."""
    data = default_config(source="folder").data
    data.update(path=str(folder), validation_fraction=0.0, max_corrupt=1.0, allow_no_captions=True)
    return config.with_changes(
        {"data": data.to_dict(), "low_res_size": 0, "diffusion.low_res_vae": "", "text.cache": ""}
    )


def _prepare_varied(folder: Path, config: StageConfig, settings: FinetuneSettings) -> Path | None:
    """Writes the varied copies of the subject, and returns their folder; None if none are wanted.

    Their caption is the token alone: the captions of the images no longer say what the copies show.
    """
    if not settings.varied or not settings.token:
        return None
    target = folder / _VARIED
    if (target / METADATA).exists():
        return target
    data = _reading(config, folder / _SUBJECT).data
    records = make_source(data, "train", config.image_hw)
    transform = make_transform(data, config.image_hw, config.channels)
    assert transform is not None  # of files
    rng = np.random.default_rng(settings.seed)
    names = [f"{index:04d}.png" for index in range(settings.varied)]
    for index, name in enumerate(names):
        record = records[index % len(records)]
        assert isinstance(record.image, bytes)
        save_png(vary(transform.fit(transform.decode(record.image, record.name)), rng), target / name)
    _write_metadata(target, [{"file_name": name, "text": f"a {settings.token}"} for name in names])
    return target


def _write_metadata(folder: Path, entries: Sequence[Mapping[str, str]]) -> None:
    """Writes the captions of a folder's images, which complete it."""
    atomic_write(folder / METADATA, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def _prepare_prior(
    pipeline: ImagenPipeline, folder: Path, settings: FinetuneSettings, stop: StopRequest, log: Callable[[str], None]
) -> Path | None:
    """Returns the folder of the images of the class, of which it draws those that are missing; None without any."""
    if settings.class_images:
        given = as_path(settings.class_images)
        config = pipeline.stages[-1].stage.config
        found = make_source(_reading(config, given).data, "train", config.image_hw)
        reason = no_captions_reason(found)
        if reason:
            raise ConfigError(
                f"{settings.class_images!r} cannot be the images of the class: {reason}; write what each shows into a "
                "text file beside it"
            )
        log(f"{len(found)} images of what the cascade is to keep are in {given}")
        return given
    if not settings.class_name and not settings.prior_prompts:
        return None
    out, prompts = folder / PRIOR, list(settings.prior_prompts) or [f"a {settings.class_name}"]
    images = out / output_dir.IMAGES
    if (images / METADATA).exists():
        return images
    prompts = [prompts[index % len(prompts)] for index in range(settings.prior_images)]
    log(f"drawing {len(prompts)} images of what the cascade is to keep, such as {prompts[0]!r}")
    request = SampleRequest(make_texts(prompts), seed=settings.seed, batch_size=16)
    sample_to_folder(pipeline, request, out, callback=stop.check)
    names = [output_dir.image_path(out, index).name for index in range(len(prompts))]
    _write_metadata(images, [{"file_name": name, "text": text} for name, text in zip(names, prompts, strict=True)])
    return images


# the run of a stage


def stage_config(
    config: StageConfig,
    stage: Path,
    folder: Path,
    images: int,
    settings: FinetuneSettings,
    prior: Path | None,
    varied: Path | None = None,
) -> StageConfig:
    """Returns the config of the run that fine-tunes a stage.

    Args:
        config: of the stage.
        stage: its folder.
        folder: of the fine-tuning.
        images: number of images of the subject.
        settings: see `FinetuneSettings`.
        prior: the folder of the images of the class; None without any.
        varied: the folder of varied copies of the subject; None without any.

    Raises:
        ConfigError: a setting does not fit the stage.
    """
    steps = settings.steps or _steps(images, settings.method)
    devices = max(jax.device_count(), 1)
    batch_size = settings.batch_size or devices * math.ceil(8 / devices)
    parts = {"subject": _part(folder / _SUBJECT, 0.5 if varied else 1.0)}
    parts |= {"varied": _part(varied, 0.5)} if varied else {}
    parts |= {"prior": _part(prior, 1.0)} if prior else {}
    optimizer = default_config().optimizer.to_dict() | {
        "name": config.optimizer.name,
        "b1": config.optimizer.b1,
        "learning_rate": settings.learning_rate or _RATES[settings.method] * config.optimizer.learning_rate,
        "warmup_steps": min(100, steps // 10),
        "ema_decay": 0.99,
    }
    training = {
        "init_from": str(stage),
        "init_weights": "ema",
        "init_partial": False,
        "trainable": (),
        "batch_size": batch_size,
        "grad_accum_steps": 1,
        "steps": steps,
        "log_every": max(1, min(25, steps // 10)),
        "save_every": max(1, steps // 4),
        "preview_every": max(1, steps // 4),
        "preview_count": 8,
        "keep_checkpoints": 1,
    }
    adapter: dict[str, Any] = {}
    if settings.method == "lora":
        targets = tuple(settings.targets) or _TARGETS[config.model.network]
        rank = settings.rank or _RANKS[config.is_super_resolution]
        adapter = {"kind": "lora", "rank": rank, "targets": targets}
    elif settings.method == "textual_inversion":
        adapter = {"kind": "textual_inversion", "token": settings.token}
    data: dict[str, Any] = {"source": "mixture", "parts": parts, "bits": config.data.bits, "threads": 4}
    data |= {"crop_size": config.data.crop_size, "max_corrupt": 0.0}
    if isinstance(config.data, FileKeys):
        data["transform"] = config.data.transform.to_dict()
    return config.with_changes(
        {
            "seed": settings.seed,
            "data": data,
            "text.cache": "",
            "diffusion.never_dropped": settings.token,
            "optimizer": optimizer,
            **{f"training.{key}": value for key, value in training.items()},
            **{f"adapter.{key}": value for key, value in adapter.items()},
        }
    )


def _learns(settings: FinetuneSettings) -> bool:
    """Returns whether the token is learned, beside adapters or alone."""
    return bool(settings.initializer) or settings.method == "textual_inversion"


def _with_word(config: StageConfig, folder: Path, settings: FinetuneSettings, first: bool) -> StageConfig:
    """Returns a stage's config with the token: the first stage learns it, and the others know it from its file."""
    if not first:
        return config.with_changes({"text.learned": (*config.text.learned, str(folder / _WORDS))})
    vectors = 1
    if settings.initializer:
        _, mask = make_encoder(config.text).tokenize([settings.initializer])
        vectors = max(1, int(mask.sum()) - 1)  # without the end of the sequence
    changes = {"token": settings.token, "initializer": settings.initializer, "vectors": min(vectors, MAX_ROWS)}
    return config.with_changes({f"adapter.{key}": value for key, value in changes.items()})


def _part(path: Path, weight: float) -> dict[str, Any]:
    """Returns a part of a mixture: a folder, of which every image is trained on."""
    return {"source": "folder", "path": str(path), "weight": weight, "validation_fraction": 0.0}


def _steps(images: int, method: str) -> int:
    """Returns the steps for a number of images: DreamBooth's 800 to 1,200 for a handful, more for many."""
    return min(20_000, max(800, (40 if method == "full" else 100) * images))


# what a user sees


def _write_adapter(
    out: Path, runs: Sequence[Path], indices: Sequence[int], settings: FinetuneSettings, images: int
) -> None:
    """Writes the adapters of the runs, each as that of its stage, and a card."""
    shutil.rmtree(out, ignore_errors=True)
    temporary = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    for run, index in zip(runs, indices, strict=True):
        part = temporary / f"stage_{index}"
        to_lora(run, part, kind="embedding" if settings.method == "textual_inversion" else "lora")
        if (part / LEARNED).is_file():  # the words of all stages are the same
            (part / LEARNED).replace(temporary / LEARNED)
        if settings.method == "textual_inversion":
            part.rmdir()
    card = adapter_card(temporary, runs, indices, settings.token, settings.prompts, images)
    atomic_write(temporary / "README.md", card.encode())
    temporary.rename(out)


def _save_before_after(
    pipeline: ImagenPipeline, tuned: Sequence[Path], folder: Path, settings: FinetuneSettings, subject: Sequence[str]
) -> None:
    """Writes samples of the same prompts and noise before and after."""
    prompts = list(settings.prompts)
    if not prompts:
        prompts = list(dict.fromkeys([*([f"a {settings.token}"] if settings.token else []), *subject]))
    prompts = prompts[:_MAX_SHOWN]
    before = pipeline(prompts, seed=_SEED).images
    after = ImagenPipeline.from_pretrained(list(tuned))(prompts, seed=_SEED).images
    images = np.concatenate([before, after])
    labels = [f"before: {text}" for text in prompts] + [f"after: {text}" for text in prompts]
    save_png(image_grid(images, labels, columns=len(prompts)), folder / BEFORE_AFTER)
