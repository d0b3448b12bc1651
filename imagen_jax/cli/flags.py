"""Flags of the commands: parsed per call, so that any number of commands run in one process.

Flags that change how stages are sampled have one value for all stages or, separated by commas, one for each. Where
there are prompts, `--guidance_scale` may have such values for each of them, separated by semicolons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from absl import flags

from imagen_jax.config.load import Config, load_config
from imagen_jax.config.messages import expected
from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.config.paths import holds_paths
from imagen_jax.config.schema import SamplingConfig, StageConfig
from imagen_jax.diffusion.keys import MAX_SEED
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.io.paths import as_path, check_writable, expand_user

if TYPE_CHECKING:
    from imagen_jax.pipelines.imagen import ImagenPipeline

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
        self.files: list[str] = []
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

        `--config.KEY=VALUE` arguments go to `overrides`. Arguments without `--` go to `files`, if the command has
        `TAKES_FILES = True`.

        Raises:
            ConfigError: a flag is unknown or its value is not of its type.
        """
        self.arguments = list(arguments)
        if any(argument in ("--help", "-h", "--helpfull") for argument in arguments):
            return True
        rest = []
        aliases = getattr(self._command, "ALIASES", {})
        for argument in (self._with_underscores(aliases.get(argument, argument)) for argument in arguments):
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
        if getattr(self._command, "TAKES_FILES", False):
            self.files = surplus
        elif surplus:
            raise ConfigError(f"{surplus[0]!r} is not a flag: give flags as --name=value")
        if self.overrides and "config" in self._values and not self.config:
            first = f"{OVERRIDE}{next(iter(self.overrides))}"
            raise ConfigError(f"{first!r} changes a config, but no --config=FILE is given")
        if self.overrides and "config" not in self._values:
            raise ConfigError(f"{OVERRIDE}{next(iter(self.overrides))!s} is given to a command that takes no config")
        return False

    def _with_underscores(self, argument: str) -> str:
        """Returns an argument with underscores for dashes in the name of a flag, which other programs have."""
        name, equals, value = argument.partition("=")
        known = name.removeprefix("--").replace("-", "_")
        return f"--{known}{equals}{value}" if name.startswith("--") and known in self._values else argument

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(name)
        return self._values[name].value

    def __getitem__(self, name: str) -> Any:
        return self._values[name].value

    def is_given(self, name: str) -> bool:
        """Returns whether a flag is on the command line, whatever its value."""
        return self._values[name].present > 0

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

    @overload
    def load_config(self) -> StageConfig: ...

    @overload
    def load_config(self, schema: type[Config]) -> Config: ...

    def load_config(self, schema: type[Any] = StageConfig) -> Any:
        """Returns the config of `--config` with the overrides applied, typed by a schema. Raises ConfigError."""
        return load_config(self.required("config", "configs/shapes_base.py"), self.overrides, schema=schema)

    def stage_names(self) -> list[str]:
        """Returns what `--stages` names, see `find_stages`. Raises ConfigError if it is missing."""
        names = self.required("stages", "runs/base,runs/sr").split(",")
        return [name.strip() for name in names if name.strip()]

    def stage_folders(self, weights: bool = True) -> list[Path]:
        """Returns the folders of the stages of `--stages`; without weights, these need not be there yet.

        Raises:
            ConfigError: there are none.
        """
        from imagen_jax.pipelines.find_stages import find_stages

        return find_stages(self.stage_names(), weights=weights, text_encoder=weights)

    def output_folder(self, example: str) -> Path:
        """Returns the folder of `--out`, created if needed. Raises ConfigError if it is missing or not writable."""
        value = self.required("out", example)
        folder = as_path(value)
        try:
            check_writable(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {value!r} cannot be written ({error.strerror}): give another folder") from error
        return folder


class PathParser(flags.ArgumentParser):
    """Reads a path, in which `~` is expanded: no shell does so in `--out=~/runs`.

    Args:
        separator: between several paths; empty for one.
    """

    def __init__(self, separator: str = "") -> None:
        super().__init__()
        self._separator = separator

    def parse(self, argument: str) -> str:
        """Returns the text with each path expanded. Raises ConfigError for a user that this machine does not have."""
        if not self._separator:
            return expand_user(argument)
        return self._separator.join(expand_user(name.strip()) for name in argument.split(self._separator))


def define_path(values: flags.FlagValues, name: str, default: str | None, help_text: str, separator: str = "") -> None:
    """Defines a flag whose value is the path of a file or a folder, or several with a separator between them."""
    flags.DEFINE(PathParser(separator), name, default, help_text, flag_values=values)


def define_config(values: flags.FlagValues, help_text: str) -> None:
    """Defines `--config`, the path of a config file."""
    define_path(values, "config", None, help_text)


def define_stages(values: flags.FlagValues) -> None:
    """Defines `--stages`, what to sample from."""
    help_text = (
        "The cascade: stage folders, the base first, separated by commas; a folder that holds them; a folder of "
        "`imagen publish`; ORG/NAME or ORG/NAME@REVISION on the Hugging Face Hub; or `shapes`, which ships with the "
        "package."
    )
    define_path(values, "stages", None, help_text, separator=",")


def define_weights(values: flags.FlagValues) -> None:
    """Defines `--step` and `--weights`, which weights of the stage folders are sampled from."""
    flags.DEFINE_string(
        "step",
        None,
        "Step of the checkpoint to sample from, one for all stages or one for each, separated by commas; `latest`, the "
        "newest, by default.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "weights",
        None,
        "`ema`, the moving average of the parameters, by default, or `raw`, the parameters themselves; one for all "
        "stages or one for each. Published stages have one of the two.",
        flag_values=values,
    )


def weights_choices(args: CommandFlags, stages: int) -> list[dict[str, Any]]:
    """Returns which weights of each stage the flags of `define_weights` ask for, as `from_pretrained` takes them.

    Raises:
        ConfigError: a flag has another number of values than 1 and `stages`, or a value that it does not take.
    """
    steps = [None] * stages if args.step is None else _per_stage("step", args.step, stages, _STEP)
    kinds = [None] * stages if args.weights is None else _per_stage("weights", args.weights, stages, _WEIGHTS)
    return [{"step": step, "kind": kind} for step, kind in zip(steps, kinds, strict=True)]


def define_text_cache(values: flags.FlagValues) -> None:
    """Defines `--text_cache`, a folder of text embeddings."""
    define_path(values, "text_cache", None, "A folder of `imagen embed`: prompts in it are looked up, and not encoded.")


def define_safety_checker(values: flags.FlagValues) -> None:
    """Defines `--no_safety_checker`, which `safety_checker_choice` reads."""
    flags.DEFINE_boolean(
        "no_safety_checker",
        False,
        "Leave images as they are; by default those that the safety checker of the cascade flags, if it has one, are "
        "black.",
        flag_values=values,
    )


def safety_checker_choice(args: CommandFlags) -> str | None:
    """Returns which safety checker the flag asks for, as `from_pretrained` takes it."""
    return None if args.no_safety_checker else "cascade"


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
    """Defines a flag for each key of a config's `sampling`."""
    for name, field in SamplingConfig.model_fields.items():
        help_text = f"Sampling: {field.description} Give {expected(field)}, one for all stages or one for each."
        flags.DEFINE_string(name, None, help_text, flag_values=values)


def define_metrics(values: flags.FlagValues) -> None:
    """Defines a flag for each key of a config's `metrics`; `--metrics` names them."""
    for name, field in MetricsConfig.model_fields.items():
        flag, text = ("metrics", "separated by commas") if name == "names" else (name, expected(field))
        help_text = f"Metrics: {field.description} Give {text}."
        if holds_paths(field):
            define_path(values, flag, None, help_text)
        else:
            flags.DEFINE_string(flag, None, help_text, flag_values=values)


def metrics_changes(args: CommandFlags) -> dict[str, Any]:
    """Returns what the flags of `define_metrics` change in a config's `metrics`."""
    changes: dict[str, Any] = {
        name: args[name] for name in MetricsConfig.model_fields if name != "names" and args[name] is not None
    }
    if args.metrics is not None:
        changes["names"] = tuple(name.strip() for name in args.metrics.split(",") if name.strip())
    return changes


def define_lora(values: flags.FlagValues) -> None:
    """Defines `--lora`, `--lora_scale` and `--embedding`, adapters and learned tokens to add to the cascade."""
    help_text = (
        "Low-rank adapters to add to the stages, separated by commas: safetensors files, or folders of `imagen convert "
        "--to=lora`."
    )
    define_path(values, "lora", None, help_text, separator=",")
    flags.DEFINE_string(
        "lora_scale",
        "1",
        "What the changes of --lora are multiplied by, one number for all adapters or one for each, separated by "
        "commas.",
        flag_values=values,
    )
    help_text = "Learned tokens to add to the text encoder, separated by commas: files learned_embeds.safetensors."
    define_path(values, "embedding", None, help_text, separator=",")


def load_adapters(args: CommandFlags, pipeline: ImagenPipeline) -> ImagenPipeline:
    """Returns a pipeline with what the flags of `define_lora` name. Raises ConfigError."""
    paths = [path.strip() for path in (args.lora or "").split(",") if path.strip()]
    texts = args.lora_scale.split(",")
    if len(texts) not in (1, len(paths)) and paths:
        raise ConfigError(
            f"--lora_scale has {len(texts)} values for {len(paths)} adapters: give one for all, or one for each"
        )
    for index, path in enumerate(paths):
        text = texts[index % len(texts)]
        try:
            scale = float(text)
        except ValueError as error:
            raise ConfigError(f"--lora_scale {text!r} is not a number: give for example 0.8") from error
        pipeline.load_lora(path, scale, name=path)
    for path in (args.embedding or "").split(","):
        if path.strip():
            pipeline.load_embedding(path.strip())
    return pipeline


def define_pipeline(values: flags.FlagValues) -> None:
    """Defines the flags that `load_pipeline` reads: what to sample from, on which devices, with which settings."""
    define_stages(values)
    define_weights(values)
    define_lora(values)
    define_mesh(values)
    define_sampling(values)


def define_images(values: flags.FlagValues, batch_size: int) -> None:
    """Defines the flags of a command that writes images to a folder; `batch_size` is how many at once by default."""
    define_path(values, "out", None, "The folder to write to.")
    flags.DEFINE_integer(
        "seed",
        0,
        "In [0, 2^64); another seed gives other images.",
        lower_bound=0,
        upper_bound=MAX_SEED,
        flag_values=values,
    )
    flags.DEFINE_integer("batch_size", batch_size, "Images to sample at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Remove images of another run from OUT.", flag_values=values)
    flags.DEFINE_integer("height", None, "Height of the images, in place of the config's.", flag_values=values)
    flags.DEFINE_integer("width", None, "Width of the images, in place of the config's.", flag_values=values)


class _Kind(NamedTuple):
    """How the text of a value is read, by a function that raises ValueError or KeyError, and what it should be."""

    read: Callable[[str], Any]
    expected: str


def _read_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _read_range(text: str) -> tuple[float, float]:
    low, high = map(_read_number, text.split(":"))
    return low, high


def _read_size(text: str) -> int | tuple[int, int]:
    sides = [int(side) for side in text.replace("×", "x").split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def read_size(text: str, name: str) -> tuple[int, int]:
    """Returns (height, width) of a flag's text, such as 64x128. Raises ConfigError if it is not two numbers."""
    try:
        size = _read_size(text)
    except ValueError:
        size = 0
    if not isinstance(size, tuple):
        raise ConfigError(f"{name} {text!r} is not two numbers of pixels: give for example {name}=64x128")
    return size


def _read_step(text: str) -> int | None:
    return None if text == "latest" else int(text)


_TEXT, _INTEGER, _NUMBER = _Kind(str, "text"), _Kind(int, "an integer"), _Kind(_read_number, "a finite number")
_UNBOUNDED = _Kind(float, "a number, or inf")
_SIZE, _RANGE = _Kind(_read_size, "a number of pixels, or HEIGHTxWIDTH"), _Kind(_read_range, "a range such as 0.1:0.9")
_BOOLEAN = _Kind(lambda text: {"true": True, "false": False}[text.lower()], "true or false")
_STEP = _Kind(_read_step, "the step of a checkpoint, an integer, or `latest`")
_WEIGHTS = _Kind(lambda text: {"ema": "ema", "raw": "raw"}[text], "ema or raw")
_KINDS: dict[Any, _Kind] = {str: _TEXT, int: _INTEGER, float: _NUMBER, bool: _BOOLEAN}


def _kind(name: str) -> _Kind:
    """Returns how the flag of a key of a config's `sampling` is read."""
    annotation = SamplingConfig.model_fields[name].annotation
    if name == "s_tmax":
        return _UNBOUNDED
    return _KINDS.get(annotation) or (_RANGE if str(annotation).startswith("tuple") else _SIZE)


def read_sampling_values(name: str, text: str) -> list[Any]:
    """Returns values of a key of a config's `sampling`, separated by commas. Raises ConfigError for an unknown key."""
    if name not in SamplingConfig.model_fields:
        raise unknown_name_error("sampling setting", name, SamplingConfig.model_fields)
    return _read_values(name, [part.strip() for part in text.split(",")], _kind(name))


def stage_changes(args: CommandFlags, stages: int, with_guidance: bool = True) -> list[dict[str, object]]:
    """Returns what the flags change in the sampling settings of each stage.

    Args:
        args: the parsed flags.
        stages: number of stages.
        with_guidance: False if `prompt_guidance` has read that flag.

    Raises:
        ConfigError: a flag has another number of values than 1 and `stages`, or a value of the wrong type.
    """
    columns = {
        name: _per_stage(name, args[name], stages)
        for name in SamplingConfig.model_fields
        if args[name] is not None and (with_guidance or name != "guidance_scale")
    }
    return [{name: values[index] for name, values in columns.items()} for index in range(stages)]


def load_pipeline(
    args: CommandFlags,
    changes: Sequence[Mapping[str, object]] | None = None,
    weights: Sequence[Mapping[str, object]] | None = None,
    text_cache: str | None = None,
    safety_checker: str | None = None,
) -> ImagenPipeline:
    """Loads the cascade of `--stages` onto the mesh of the flags.

    Args:
        args: the parsed flags.
        changes: of the sampling settings of each stage; None for those of the flags.
        weights: of each stage; None for those of the flags.
        text_cache: a folder of embeddings.
        safety_checker: "cascade" for that of the cascade, if it has one; None for none.

    Raises:
        ConfigError: as `ImagenPipeline.from_pretrained` and `ImagenPipeline.load_lora`, or a flag has another number of
            values than there are stages.
    """
    from imagen_jax.pipelines.imagen import ImagenPipeline

    if changes is None or weights is None:
        stages = len(args.stage_folders(weights=False))
        changes = stage_changes(args, stages) if changes is None else changes
        weights = weights_choices(args, stages) if weights is None else weights
    pipeline = ImagenPipeline.from_pretrained(
        args.stage_names(),
        mesh_axes(args),
        changes,
        text_cache=text_cache,
        weights=weights,
        safety_checker=safety_checker,
    )
    return load_adapters(args, pipeline)


def prompt_guidance(args: CommandFlags, stages: int, prompts: int) -> np.ndarray | None:
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
    return np.array([_per_stage("guidance_scale", group, stages) for group in groups], np.float32).T


def _per_stage(name: str, text: str, stages: int, kind: _Kind | None = None) -> list[Any]:
    """Returns the values of a flag's text, one for each stage; without a kind, the flag is of a sampling setting."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, stages):
        raise ConfigError(f"--{name} has {len(parts)} values for {stages} stages: give one for all, or one for each")
    values = _read_values(name, parts, kind or _kind(name))
    return values * stages if len(values) == 1 else values


def _read_values(name: str, parts: Sequence[str], kind: _Kind) -> list[Any]:
    """Returns the values of texts. Raises ConfigError if one cannot be read."""
    values = []
    for part in parts:
        try:
            values.append(kind.read(part))
        except (ValueError, KeyError) as error:
            raise ConfigError(f"--{name} {part!r} is not {kind.expected}") from error
    return values
