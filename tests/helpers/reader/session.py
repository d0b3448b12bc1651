"""The Python blocks of a document, run in order in one namespace, and its changes of a config."""

import re
from pathlib import Path

from imagen_jax.config.load import load_config
from imagen_jax.datasets.from_config import make_examples

_NAMESPACES: dict[Path, dict] = {}


def run_block(path, config_file):
    """Runs a block.

    Args:
        path: a file with the block.
        config_file: the config that a block of `config.KEY = …` changes; empty if the document named it before.
    """
    code = Path(path).read_text()
    namespace = _NAMESPACES.setdefault(Path.cwd(), {"__name__": "__main__"})
    changes_config = re.match(r"config\.", code) is not None
    if changes_config and config_file:
        namespace["config"] = _config_of(config_file)
    exec(compile(code, path, "exec"), namespace)
    if changes_config:
        _check(namespace["config"])


def _config_of(file):
    """Returns what `get_config()` of a file returns, of its `:tiny` variant if it has one."""
    module: dict = {}
    exec(compile(Path(file).read_text(), file, "exec"), module)
    return module["get_config"]("tiny" if "tiny" in module.get("VARIANTS", ()) else "")


def _check(config):
    """Loads a changed config, opens its data and reads the first example."""
    typed = load_config(config)
    if typed.data.source != "tfds":  # which nobody has prepared here
        examples = make_examples(typed.data, typed.data.split, 8, typed.channels)
        assert examples[0].image.shape[-1] == typed.channels
