"""What a command would find on the Internet or among the packages of the system, made when it is first asked for.

Text encoders of the Hub are copies of the encoder of `shapes`, pipelines of DeepFloyd IF are tiny ones with random
weights; the font of emoji has a disc for each symbol.
"""

import importlib
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

from imagen_jax.cli.flags import CommandFlags
from imagen_jax.config.load import load_config
from imagen_jax.datasets.builders import emoji
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.blind.page import QUESTIONS
from imagen_jax.evaluation.blind.votes import VOTES_FORMAT, read_key
from imagen_jax.text.encoder import SHAPES_ENCODER
from tests.goldens.if_pipelines.cases import FIRST, SECOND
from tests.helpers.font import bitmap, write_font

COMMIT = "0" * 40
SYMBOLS = 620  # more than the configs of emoji read


def provide_encoders(module, arguments):
    """Puts the encoder that a command's config names into the cache, if it is a name of the Hub."""
    args = CommandFlags(importlib.import_module(module))
    try:
        if not args.parse(arguments) and getattr(args, "config", None):
            provide(load_config(args.config, args.overrides).text.model)
    except ConfigError:  # of another schema, or wrong, as the command itself will say
        pass


def provide(name):
    """Puts an encoder into the cache under a name, if it is one of the Hub."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists():
        repository = Path(os.environ["HF_HOME"], "hub", f"models--{name.replace('/', '--')}")
        if not repository.exists():
            shutil.copytree(SHAPES_ENCODER, repository / "snapshots" / COMMIT)
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text(COMMIT)


def provide_pipelines(arguments):
    """Puts the pipelines that `imagen convert` reads from the Hub into the cache, tiny ones, in the variant fp16."""
    args = CommandFlags(importlib.import_module("imagen_jax.cli.convert"))
    args.parse(arguments)
    for name in (args["from"] or "").split(","):
        repository = Path(os.environ["HF_HOME"], "hub", f"models--{name.replace('/', '--')}")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not repository.exists():
            folder = shutil.copytree(SECOND if "-II-" in name else FIRST, repository / "snapshots" / COMMIT)
            for path in folder.glob("*/*.safetensors"):
                path.rename(path.with_suffix(".fp16.safetensors"))
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text(COMMIT)


def provide_votes(arguments):
    """Writes the votes that `imagen votes` counts, as raters export them: all of them for the left side."""
    args = CommandFlags(importlib.import_module("imagen_jax.cli.votes"))
    args.parse(arguments)
    key = read_key(Path(args.key))
    for file in args.files:
        votes = {item: dict.fromkeys(QUESTIONS, "left") for item in key.items}
        value = {"format": VOTES_FORMAT, "page": key.page, "rater": file, "votes": votes}
        Path(file).write_text(json.dumps(value))


def with_font(arguments):
    """Returns the arguments of `imagen prepare` with a font where this machine does not have that of emoji."""
    is_there = emoji.FONT.exists() or any(argument.startswith("--font") for argument in arguments)
    return arguments if is_there else [*arguments, f"--font={_font()}"]


def _font():
    path = Path(os.environ["HF_HOME"], "emoji.ttf")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        symbols = [code for code in range(0x1F300, 0x1FB00) if unicodedata.name(chr(code), "")][:SYMBOLS]
        write_font(path, dict.fromkeys(symbols, bitmap((200, 90, 30))))
    return path
