"""The text encoders of a cascade that is published: each by name and fingerprint, or with its files inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imagen_jax.config.schema import TextConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.local_copy import copy_file
from imagen_jax.publishing.stage_files import portable_path
from imagen_jax.stages.published import TextEncoderEntry
from imagen_jax.stages.text import PromptEncoder
from imagen_jax.text.encoder import encoder_folder, is_local_folder
from imagen_jax.text.hub import encoder_files
from imagen_jax.text.learned_tokens import FILE as LEARNED
from imagen_jax.text.learned_tokens import Words, write_learned


class EncoderPlan(NamedTuple):
    """What is published of a stage's text encoder.

    Attributes:
        entry: its entry in the index.
        source: the folder to copy if it is inside.
        learned: words that are written into the copy.
    """

    entry: TextEncoderEntry
    source: Path | None
    learned: Words


def plan_encoders(
    texts: Sequence[TextConfig], encoders: Sequence[PromptEncoder | None], inside: bool | None
) -> list[EncoderPlan]:
    """Returns what to publish of the text encoder of each stage.

    Args:
        texts: of the stages' configs.
        encoders: of the stages; where one is None, the config has to have a fingerprint.
        inside: whether their files are copied; None for those that are in a folder of this machine, which a name would
            not lead others to.

    Raises:
        ConfigError: an encoder is known by neither fingerprint nor files, or is not to be inside and cannot be named.
    """
    folders: dict[str, str] = {}  # in the cascade, by fingerprint
    plans = []
    for text, encoder in zip(texts, encoders, strict=True):
        fingerprint = text.fingerprint if encoder is None else encoder.encoder.fingerprint()
        if not fingerprint:
            raise ConfigError(
                f"text encoder {text.model!r} is not open, and text.fingerprint is empty: load the pipeline with "
                "text_encoder=True"
            )
        is_place = is_local_folder(text.model)
        learned = {} if encoder is None else encoder.encoder.learned
        if learned and inside is False:
            raise ConfigError(
                f"text encoder {text.model!r} has learned tokens, which no name leads others to: publish it inside, "
                "with --text_encoder"
            )
        copied = is_place or bool(learned) if inside is None else inside
        if is_place and not copied:
            raise ConfigError(
                f"text encoder {text.model!r} is a folder of this machine, to which no name leads others: publish it "
                "inside, with --text_encoder"
            )
        source = encoder_folder(text.model) if copied else None
        if copied and source is None:
            raise ConfigError(f"text encoder {text.model!r} has no files: publish it by its name, --notext_encoder")
        folder = None
        if copied:
            number = folders.setdefault(fingerprint, f"_{len(folders)}" if folders else "")
            folder = f"text_encoder{number}"
        entry = TextEncoderEntry(
            model=portable_path(text.model) if is_place else text.model, fingerprint=fingerprint, folder=folder
        )
        plans.append(EncoderPlan(entry, source, learned))
    return plans


def copy_encoders(plans: Sequence[EncoderPlan], cascade: Path) -> None:
    """Copies the files of the encoders that are inside into the folder of a cascade. Raises ConfigError and OSError."""
    for folder, plan in {plan.entry.folder: plan for plan in plans}.items():
        if folder is not None and plan.source is not None:
            for name in encoder_files(plan.source):
                copy_file(plan.source / name, cascade / folder / name)
            if plan.learned:
                write_learned(cascade / folder / LEARNED, plan.learned, plan.entry.fingerprint)
