"""A pipeline of DeepFloyd IF in the format of diffusers: a folder, here or from the Hub, opened and checked.

FOLDER/model_index.json                       the class of the pipeline and of its components
FOLDER/unet/config.json, FOLDER/unet/*.safetensors
FOLDER/scheduler/scheduler_config.json
FOLDER/image_noising_scheduler/scheduler_config.json    of a super-resolution stage
FOLDER/text_encoder/, FOLDER/tokenizer/       a T5 and its tokenizer
FOLDER/safety_checker/, FOLDER/feature_extractor/    the safety checker, and how it is given images
FOLDER/README.md, FOLDER/LICENSE              the license of the weights
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import metadata_load

from imagen_jax.conversion import hub, schedulers, unet_config, weight_files
from imagen_jax.conversion.download import downloaded_files, verify_download
from imagen_jax.conversion.hub import FetchedPipeline, RemoteFile
from imagen_jax.conversion.weight_files import WeightFiles
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import read_json
from imagen_jax.io.bucket import is_bucket
from imagen_jax.io.hub import HubName, parse_name
from imagen_jax.io.local_copy import local_folder
from imagen_jax.io.paths import as_path
from imagen_jax.io.text import printable
from imagen_jax.pipelines.origin import LICENSE_FILE, LICENSE_KEYS
from imagen_jax.stages.published import CLASS_NAME, INDEX, SAFETY_CHECKER
from imagen_jax.text.null_text import FILE as NULL_TEXT
from imagen_jax.text.tokenizer import FILES as TOKENIZER_FILES

# the classes of pipelines, whose U-Nets are alike -> whether they enlarge images
CLASSES = {
    "IFPipeline": False,
    "IFImg2ImgPipeline": False,
    "IFInpaintingPipeline": False,
    "IFSuperResolutionPipeline": True,
    "IFImg2ImgSuperResolutionPipeline": True,
    "IFInpaintingSuperResolutionPipeline": True,
}
# components without tensors whose configs are kept
SMALL_COMPONENTS = ("scheduler", "image_noising_scheduler", "feature_extractor")
SCHEDULER_FILE = "scheduler_config.json"
CARD = "README.md"
_MAX_TEXT = 2**20  # bytes of a card or license


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline in the format of diffusers.

    Attributes:
        name: as it was given.
        folder: on a disk.
        class_name: of the pipeline, one of `CLASSES`.
        index: the content of model_index.json.
        unet: that of unet/config.json.
        scheduler: that of scheduler/scheduler_config.json.
        weights: of the U-Net.
        text_encoder: the weights of the text encoder; None without one.
        safety_checker: likewise of the safety checker.
        license: the fields about it in the header of the card.
        remote: what the Hub lists of its files; empty for a folder, or without a network.
    """

    name: str
    folder: Path
    class_name: str
    index: dict[str, Any]
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    weights: WeightFiles
    text_encoder: WeightFiles | None
    safety_checker: WeightFiles | None
    license: dict[str, str]
    remote: dict[str, RemoteFile]

    @property
    def is_super_resolution(self) -> bool:
        """Whether it enlarges images."""
        return CLASSES[self.class_name]

    @property
    def short_name(self) -> str:
        """Its name on the Hub, or that of its folder, without what only this machine knows."""
        return self.folder.name if as_path(self.name).is_dir() else self.name

    def file(self, name: str) -> str:
        """Returns what errors call a file."""
        return str(self.folder / name)


def open_pipeline(
    name: str, variant: str = "", text_encoder: bool = True, safety_checker: bool = True
) -> PipelineFolder:
    """Opens a pipeline: reads its configs, and which files have its weights.

    Args:
        name: its folder, or ORG/NAME or ORG/NAME@REVISION on the Hugging Face Hub.
        variant: of the weights, see `weight_files.choose`.
        text_encoder: whether the text encoder is needed; if not, that of a pipeline on the Hub is left there.
        safety_checker: likewise for the safety checker.

    Raises:
        ConfigError: there is no such pipeline, a file is missing or damaged, or differs from the checksum of its
            download, or the pipeline is not one of DeepFloyd IF.
    """
    folder, remote = _find(name, variant, text_encoder, safety_checker)
    index = _read_index(folder)
    class_name = index["_class_name"]
    unet = _read(folder, "unet/config.json")
    scheduler = _read(folder, f"scheduler/{SCHEDULER_FILE}")
    if CLASSES[class_name]:
        noising = f"image_noising_scheduler/{SCHEDULER_FILE}"
        schedulers.check_noising(_read(folder, noising), str(folder / noising))
    kind = unet.get("_class_name", unet_config.CLASS)
    if kind != unet_config.CLASS:
        raise ConfigError(
            f"{folder / 'unet/config.json'} is of a {printable(str(kind))[:80]}, and {unet_config.CLASS} is supported"
        )
    weights = _choose(folder / "unet", weight_files.UNET, variant)
    is_here = as_path(name).is_dir()
    checker = None
    if component(index, SAFETY_CHECKER) and (safety_checker or is_here):
        checker = _safety_checker(folder, None if is_here else parse_name(name), weights.variant)
    source = PipelineFolder(
        name=name,
        folder=folder,
        class_name=class_name,
        index=index,
        unet=unet,
        scheduler=scheduler,
        weights=weights,
        text_encoder=_text_encoder(folder, index, variant) if text_encoder or is_here else None,
        safety_checker=checker,
        license=_read_license(folder),
        remote=remote,
    )
    verify_download(folder, _files(source))
    return source


def _find(name: str, variant: str, text_encoder: bool, safety_checker: bool) -> FetchedPipeline:
    """Returns the folder of a pipeline on a disk, and what the Hub lists of it. Raises ConfigError."""
    path = as_path(name)
    if path.is_file():
        raise ConfigError(f"{printable(name)!r} is a file: give the folder of a diffusers pipeline, with {INDEX}")
    if path.is_dir():
        return FetchedPipeline(local_folder(path), {})
    repository = None if is_bucket(name) else parse_name(name)
    if repository is None:
        raise ConfigError(
            f"{printable(name)!r} is neither a folder nor ORG/NAME, a name on the Hugging Face Hub: give the folder of "
            "a diffusers pipeline, or for example DeepFloyd/IF-I-M-v1.0"
        )
    return hub.fetch_pipeline(repository, variant, text_encoder, safety_checker)


def _read_index(folder: Path) -> dict[str, Any]:
    """Returns the content of model_index.json. Raises ConfigError if it is not of a pipeline of DeepFloyd IF."""
    if not (folder / INDEX).is_file():
        hint = ": it is one part of a pipeline, whose folder is needed" if (folder / "config.json").is_file() else ""
        raise ConfigError(f"{folder} has no {INDEX}, which every folder of a diffusers pipeline has{hint}")
    index = _read(folder, INDEX)
    kind = index.get("_class_name")
    if kind == CLASS_NAME:
        raise ConfigError(f"{folder} is a cascade of imagen_jax already: give it to --stages of any command")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ConfigError(
            f"{folder / INDEX} is of a {printable(str(kind))[:80]}, and only pipelines of DeepFloyd IF can be "
            "converted: IFPipeline and IFSuperResolutionPipeline, or their forms for image to image and inpainting"
        )
    return index


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises ConfigError."""
    path = folder / name
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} has no {name}: copy it there") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not JSON ({error}): copy it again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a JSON object: copy it again")
    return content


def _choose(folder: Path, stem: str, variant: str) -> WeightFiles:
    """Returns the weights in a component's folder, whose files are all there. Raises ConfigError."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    chosen = weight_files.choose(names, stem, variant, folder.name, str(folder.parent))
    weight_files.parts(folder, chosen)
    return chosen


def _text_encoder(folder: Path, index: Mapping[str, Any], variant: str) -> WeightFiles | None:
    """Returns the weights of the text encoder; None if the pipeline, or the part of it that is here, has none."""
    encoder = folder / "text_encoder"
    names = {path.name for path in encoder.iterdir()} if encoder.is_dir() else set()
    if not component(index, "text_encoder") or not names - {"config.json", NULL_TEXT}:
        return None
    return _choose(encoder, weight_files.TEXT_ENCODER, variant)


def _safety_checker(folder: Path, repository: HubName | None, variant: str) -> WeightFiles | None:
    """Returns the weights of the safety checker; None if they are neither here nor in a repository on the Hub."""
    if repository is not None:
        hub.fetch_safety_checker(repository, folder, variant)
    where = folder / SAFETY_CHECKER
    names = [path.name for path in where.iterdir()] if where.is_dir() else []
    chosen = weight_files.choose_near(names, weight_files.SAFETY_CHECKER, variant)
    if chosen is not None:
        weight_files.parts(where, chosen)
    return chosen


def _files(source: PipelineFolder) -> Iterator[str]:
    """Yields the paths of the files that a conversion reads, some of which may be absent; not the card, for people."""
    yield INDEX
    for name in SMALL_COMPONENTS:
        yield f"{name}/{'preprocessor_config.json' if name == 'feature_extractor' else SCHEDULER_FILE}"
        yield from (f"{name}/{path.name}" for path in (source.folder / name).glob("*.json"))
    components = {"unet": source.weights, "text_encoder": source.text_encoder, SAFETY_CHECKER: source.safety_checker}
    for name, weights in components.items():
        if weights is not None:
            parts = weight_files.parts(source.folder / name, weights)
            yield from (f"{name}/{file}" for file in ("config.json", weights.file, *(path.name for path in parts)))
    if source.text_encoder is not None:
        yield from (f"tokenizer/{file}" for file in TOKENIZER_FILES)
    else:  # it is missing if it was downloaded
        yield from downloaded_files(source.folder, "text_encoder")
    yield from (path.name for path in license_files(source.folder))


def component(index: Mapping[str, Any], name: str) -> str | None:
    """Returns the class of a component in a model_index.json; None if the pipeline does not have it."""
    entry = index.get(name)
    has_class = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    return entry[1] if has_class and isinstance(entry, list) else None


def license_files(folder: Path) -> list[Path]:
    """Returns the texts of licenses in a folder, such as LICENSE.md."""
    files = [path for path in folder.iterdir() if LICENSE_FILE.fullmatch(path.name)]
    return sorted(path for path in files if path.is_file() and path.stat().st_size <= _MAX_TEXT)


def _read_license(folder: Path) -> dict[str, str]:
    """Returns what the header of a card says of the license; nothing if there is no card, or none in it."""
    card = folder / CARD
    if not card.is_file() or card.stat().st_size > _MAX_TEXT:
        return {}
    try:
        header = metadata_load(card)
    except Exception:  # whatever a parser of YAML raises: the card is for people
        return {}
    fields = header if isinstance(header, dict) else {}
    return {key: printable(str(fields[key]))[:500] for key in LICENSE_KEYS if isinstance(fields.get(key), str)}
