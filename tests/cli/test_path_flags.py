"""Every flag that is a path expands `~`, in commands and benchmarks alike."""

import importlib
import pkgutil
import re

import pytest
from absl import flags

import benchmarks
from imagen_jax.cli import app
from imagen_jax.cli.flags import CommandFlags, PathParser
from imagen_jax.errors import ConfigError

MODULES = [f"imagen_jax.cli.{name}" for name in app.COMMANDS] + [
    *(f"benchmarks.{module.name}" for module in pkgutil.iter_modules(benchmarks.__path__) if not module.ispkg),
    *("benchmarks.claims.__main__", "benchmarks.claims.document"),
]
PLACE = re.compile(r"\b(folders?|files?|path|directory|directories)\b", re.IGNORECASE)
NAMES = re.compile(r"(^|_)(out|workdir|stages|config|path|file|dir|folder|cache|like|font)$")


def flags_of(module):
    """Returns the flags of a module, those of every command included; none if it has none."""
    module = importlib.import_module(module)
    args = CommandFlags(module) if hasattr(module, "define_flags") else None
    return args, {name: args._values[name] for name in args._values} if args else {}


@pytest.mark.parametrize("module", MODULES)
def test_path_flags_expand_home(module, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    args, defined = flags_of(module)
    paths = [name for name, flag in defined.items() if isinstance(flag.parser, PathParser)]
    if paths:
        args.parse([f"--{name}=~/x" for name in paths])
    for name in paths:
        assert args[name] == "/home/ann/x"
        with pytest.raises(ConfigError, match="nobody-here"):
            flags_of(module)[0].parse([f"--{name}=~nobody-here/x"])


@pytest.mark.parametrize("module", MODULES)
def test_path_flags_are_marked(module):
    for name, flag in flags_of(module)[1].items():
        # of the values of a config's `sampling` none is a path
        if type(flag.parser) is flags.ArgumentParser and not flag.help.startswith("Sampling:"):
            assert not PLACE.search(flag.help) and not NAMES.search(name), f"{name}: define it by define_path"


def test_each_of_several_stages(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    args, _ = flags_of("imagen_jax.cli.sample")
    args.parse(["--stages=~/a, ~/b,c,./~,gs://x/~"])
    assert args.stages == "/home/ann/a,/home/ann/b,c,./~,gs://x/~"
