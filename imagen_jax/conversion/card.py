"""The cards of converted folders: README.md, with the header of the Hugging Face Hub and the license of the source."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from imagen_jax.config.schema import StageConfig
from imagen_jax.conversion.pipeline_folder import CARD, PipelineFolder, license_files
from imagen_jax.images.array import format_height_width
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.text import printable
from imagen_jax.stages.published import SafetyCheckerEntry

_TAGS = ("imagen", "deepfloyd-if", "diffusion", "text-to-image")


def write_card(
    folder: Path,
    name: str,
    sources: Sequence[PipelineFolder],
    configs: Sequence[StageConfig],
    checker: SafetyCheckerEntry | None,
) -> None:
    """Writes the card of a cascade.

    Args:
        folder: of the cascade, with the texts of licenses.
        name: of the cascade.
        sources: the pipelines of its stages.
        configs: of its stages.
        checker: its safety checker.

    Raises:
        OSError: the card cannot be written.
    """
    license = next((source.license for source in sources if source.license), {})
    header = _header(license, "imagen_jax", [printable(source.short_name) for source in sources])
    sizes = " → ".join(format_height_width(config.image_hw) for config in configs)
    lines = [
        f"- stage {index}: `{printable(source.short_name)}`, {source.class_name}"
        for index, source in enumerate(sources)
    ]
    use = f"imagen sample --stages={shlex.quote(name)} --prompts='a photo of a red fox' --out=samples"
    what = "A text-to-image cascade" if not configs[0].is_super_resolution else "A super-resolution stage"
    parts = [
        f"---\n{header}\n---",
        f"# {printable(name)}",
        f"{what} of {sizes} pixels in the format of imagen_jax, converted by `imagen convert` from:",
        "\n".join(lines),
        f"The weights are those of the pipelines, unchanged. {_safety(checker)} The watermark is not converted.",
        f"## Use\n\n```\n{use}\n```",
        f"## License\n\n{_license(license, folder)}",
    ]
    atomic_write(folder / CARD, ("\n\n".join(parts) + "\n").encode())


def write_pipeline_card(folder: Path, license: Mapping[str, str], source: str, is_trained: bool) -> None:
    """Writes the card of a pipeline in the format of diffusers.

    Args:
        folder: of the pipeline, with the texts of licenses.
        license: see `PipelineFolder`; empty if it is not known.
        source: the name of the pipeline that the stage was converted from; "" if it is not known.
        is_trained: whether the stage has been trained since.

    Raises:
        OSError: the card cannot be written.
    """
    header = _header(license, "diffusers", [source] if source else [])
    change = "with weights that have been trained since" if is_trained else "without change"
    origin = f" It was converted from `{source}`, {change}." if source else ""
    parts = [
        f"---\n{header}\n---",
        f"# {printable(folder.name)}",
        f"A pipeline in the format of diffusers, written by `imagen convert`.{origin}",
        f"## License\n\n{_license(license, folder)}",
    ]
    atomic_write(folder / CARD, ("\n\n".join(parts) + "\n").encode())


def _header(license: Mapping[str, str], library: str, sources: Sequence[str]) -> str:
    """Returns the YAML header."""
    names = [name for name in sources if name.count("/") == 1 and not name.startswith(("/", "."))]
    fields: dict[str, Any] = dict(license)
    return ModelCardData(
        library_name=library,
        pipeline_tag="text-to-image",
        tags=list(_TAGS),
        base_model=names or None,
        **fields,
    ).to_yaml()


def _safety(checker: SafetyCheckerEntry | None) -> str:
    """Returns a sentence about the safety checker."""
    if checker is None:
        return "They have no safety checker."
    if checker.folder is None:
        return "Their safety checker was left out."
    return "Images that their safety checker flags are made black."


def _license(license: Mapping[str, str], folder: Path) -> str:
    texts = ", ".join(f"`{path.name}`" for path in license_files(folder))
    stated = ", ".join(f"{key}: {value}" for key, value in license.items())
    if not stated and not texts:
        return "The source states none: its authors' terms hold."
    return f"That of the source: {' '.join(filter(None, [stated, texts and f'({texts})']))}."
