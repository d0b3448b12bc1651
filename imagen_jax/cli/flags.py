"""Flags of the commands: parsed per call, so that any number of commands run in one process.

Flags that change how stages are sampled have one value for all stages or, separated by commas, one for each. Where
there are prompts, `--guidance_scale` may have such values for each of them, separated by semicolons.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from imagen_jax.errors import ConfigError

OVERRIDE = "--config."


class CommandFlags:
    """The flags of one call of a command.

    Args:
        command: module with `define_flags(values)`.
    """

    def __init__(self, command: ModuleType) -> None:
        self._command = command
        self._values = flags.FlagValues()
        self.overrides: dict[str, str] = {}
        self.arguments: list[str] = []
        command.define_flags(self._values)
        flags.DEFINE_string(
            "coordinator",
            None,
            "HOST:PORT of process 0 of a multi-host run; $JAX_COORDINATOR_ADDRESS by default. TPUs need none.",
            flag_values=self._values,
        )
        flags.DEFINE_integer(
            "process_count", None, "Number of processes; $JAX_NUM_PROCESSES by default.", flag_values=self._values
        )
        flags.DEFINE_integer(
            "process_index", None, "Index of this process; $JAX_PROCESS_ID by default.", flag_values=self._values
        )

    def parse(self, arguments: Sequence[str]) -> bool:
        """Parses a command line without the command's name; returns whether help was asked for.

        `--config.KEY=VALUE` arguments go to `overrides`.

        Raises:
            ConfigError: a flag is unknown or its value is not of its type.
        """
        self.arguments = list(arguments)
        if any(argument in ("--help", "-h", "--helpfull") for argument in arguments):
            return True
        rest = []
        aliases = getattr(self._command, "ALIASES", {})
        for argument in (aliases.get(argument, argument) for argument in arguments):
            if argument.startswith(OVERRIDE):
                key, equals, value = argument.removeprefix(OVERRIDE).partition("=")
                if not equals:
                    raise ConfigError(f"{argument!r} has no value: give --config.{key}=VALUE")
                self.overrides[key] = value
            else:
                rest.append(argument)
        try:
            surplus = self._values([self._command.__name__, *rest])[1:]
        except flags.Error as error:
            raise ConfigError(" ".join(str(error).split())) from error
        if surplus:
            raise ConfigError(f"{surplus[0]!r} is not a flag: give flags as --name=value")
        if self.overrides and "config" in self._values and not self.config:
            first = f"{OVERRIDE}{next(iter(self.overrides))}"
            raise ConfigError(f"{first!r} changes a config, but no --config=FILE is given")
        if self.overrides and "config" not in self._values:
            raise ConfigError(f"{OVERRIDE}{next(iter(self.overrides))!s} is given to a command that takes no config")
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(name)
        return self._values[name].value

    def __getitem__(self, name: str) -> Any:
        return self._values[name].value

    def help(self) -> str:
        """Returns the help text: the command's docstring and its flags with their defaults."""
        doc = (self._command.__doc__ or "").strip()
        lines = []
        for name in sorted(self._values):
            flag = self._values[name]
            default = "" if flag.default is None else f" (default: {flag.default})"
            lines.append(f"  --{name}: {flag.help}{default}")
        if "config" in self._values:
            lines.append("  --config.KEY=VALUE: Change a key of the config, such as --config.training.steps=100.")
        return "\n".join([doc, "", "Flags:", *lines])

    def required(self, name: str, example: str) -> str:
        """Returns the value of a flag that must be given. Raises ConfigError if it was not."""
        value = self[name]
        if not value:
            raise ConfigError(f"--{name} is missing: give for example --{name}={example}")
        return value

    def load_config(self) -> Any:
        """Returns the config of `--config` with the overrides applied. Raises ConfigError."""
        from imagen_jax.config.load import load_config
        from imagen_jax.config.schema import EvaluationConfig, PretrainTextConfig, StageConfig

        schemas = {"evaluate": EvaluationConfig, "pretrain_text": PretrainTextConfig}
        schema = schemas.get(self._command.__name__.rpartition(".")[2], StageConfig)
        return load_config(self.required("config", "configs/shapes_base.py"), self.overrides, schema)

    def stage_folders(self) -> list[Path]:
        """Returns the folders of `--stages`. Raises ConfigError if there are none."""
        names = self.required("stages", "runs/base,runs/sr").split(",")
        return [Path(name.strip()).expanduser() for name in names if name.strip()]

    def output_folder(self, example: str) -> Path:
        """Returns the folder of `--out`, created if needed. Raises ConfigError if it is missing or not writable."""
        value = self.required("out", example)
        folder = Path(value).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {value!r} cannot be written ({error.strerror}): give another folder") from error
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"--out {value!r} cannot be written: give another folder")
        return folder


def define_config(values: flags.FlagValues, help_text: str) -> None:
    """Defines `--config`, the path of a config file."""
    flags.DEFINE_string("config", None, help_text, flag_values=values)


def define_mesh(values: flags.FlagValues) -> None:
    """Defines the flags that say how devices share sampling; by default each device has full networks."""
    flags.DEFINE_integer(
        "fsdp",
        1,
        "Devices that parameters, text encoders included, are sharded over in sampling.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "spatial",
        1,
        "Devices that share each image, some rows each, as large images may need.",
        lower_bound=1,
        flag_values=values,
    )


def mesh_axes(args: CommandFlags) -> dict[str, int]:
    """Returns the mesh axes that the flags of `define_mesh` ask for."""
    return {"data": -1, "fsdp": args.fsdp, "spatial": args.spatial}


def define_sampling(values: flags.FlagValues) -> None:
    """Defines a flag for each sampling setting of a stage."""
    for name, (_, text) in sampling_settings().items():
        flags.DEFINE_string(name, None, f"Sampling: {text}. One for all stages, or one for each.", flag_values=values)


class Kind(NamedTuple):
    """What a value is: how its text is read, by a function that raises ValueError, and its name in a sentence."""

    read: Callable[[str], object]
    name: str


def read_number(text: str) -> float:
    """A finite number."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def read_range(text: str) -> tuple[float, float]:
    """Two numbers with a colon between them; the second may be inf."""
    low, high = map(float, text.split(":"))
    return low, high


def read_size(text: str) -> int | tuple[int, int]:
    """A number of pixels, or two with an × or an x between them."""
    sides = [int(side) for side in text.replace("×", "x").split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def read_switch(text: str) -> bool:
    """True or false."""
    return {"true": True, "false": False}[text.lower()]


TEXT, COUNT, NUMBER = Kind(str, "text"), Kind(int, "a whole number"), Kind(read_number, "a number")
UNBOUNDED = Kind(float, "a number, or inf")
SIZE = Kind(read_size, "a number of pixels, or HEIGHTxWIDTH")
RANGE, SWITCH = Kind(read_range, "a range such as 0.05:50"), Kind(read_switch, "true or false")

@functools.cache
def sampling_settings() -> dict[str, tuple[Kind, str]]:
    """Returns how the flag of each key of a config's `sampling` is read, and its help."""
    from imagen_jax.config.messages import expected
    from imagen_jax.config.schema import SamplingConfig

    kinds = {str: TEXT, int: COUNT, float: NUMBER, bool: SWITCH}
    settings = {}
    for name, field in SamplingConfig.model_fields.items():
        kind = kinds.get(field.annotation) or (RANGE if str(field.annotation).startswith("tuple") else SIZE)
        settings[name] = (UNBOUNDED if name == "s_tmax" else kind, f"{field.description} Give {expected(field)}")
    return settings


def stage_changes(args: CommandFlags, stages: int, with_guidance: bool = True) -> list[dict[str, object]]:
    """Returns what the flags change in the sampling settings of each stage.

    Args:
        args: the parsed flags.
        stages: number of stages.
        with_guidance: False if `prompt_weights` has read that flag.

    Raises:
        ConfigError: a flag has another number of values than 1 and `stages`, or a value of the wrong type.
    """
    columns = {
        name: per_stage(name, args[name], stages)
        for name in sampling_settings()
        if args[name] is not None and (with_guidance or name != "guidance_scale")
    }
    return [{name: values[index] for name, values in columns.items()} for index in range(stages)]


def prompt_weights(args: CommandFlags, stages: int, prompts: int) -> np.ndarray | None:
    """Returns guidance scales float32 [stages, prompts], if `--guidance_scale` has them for each prompt, else None.

    Raises:
        ConfigError: as `stage_changes`, or there are scales for another number of prompts.
    """
    text = args.guidance_scale
    if text is None or ";" not in text:
        return None
    groups = text.split(";")
    if len(groups) != prompts:
        raise ConfigError(
            f"--guidance_scale has scales for {len(groups)} prompts, and there are {prompts}: "
            "give them once for all, or for each, separated by semicolons"
        )
    return np.array([per_stage("guidance_scale", group, stages) for group in groups], np.float32).T


def per_stage(name: str, text: str, stages: int) -> list[object]:
    """Returns the values of a flag's text, one for each stage."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, stages):
        raise ConfigError(f"--{name} has {len(parts)} values for {stages} stages: give one for all, or one for each")
    kind, _ = sampling_settings()[name]
    values = []
    for part in parts:
        try:
            values.append(kind.read(part))
        except (ValueError, KeyError) as error:
            raise ConfigError(f"--{name} {part!r} is not {kind.name}") from error
    return values * stages if len(values) == 1 else values
