"""Find the best sampling settings: `imagen sweep --stages=DIR,DIR --config=FILE --sweep=KEY=VALUES --out=DIR`.

Samples images with all combinations of the values, judges whether they show their captions, and measures how far they
are from real ones. Where these disagree, as they do for guidance, no single setting is best: the points that no other
one is better than in both metrics are marked. For example

    imagen sweep --stages=shapes --stage=0 --config=configs/shapes_eval.py --out=runs/sweep \\
      --metrics=alignment,fd_lite0 --sweep=guidance_scale=1,1.5,2,3,5 --sweep=num_inference_steps=8,16,32

Each program is compiled and timed first, and how long the sweep takes is printed; `--estimate_only` ends there. Stages
before the swept one are sampled once. Writes `OUT/sweep.html`, a page whose points show their images, `OUT/sweep.png`
and `OUT/sweep.json`. After a kill, the same command continues; with more values, it samples the points that are new.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from imagen_jax.cli.flags import (
    CommandFlags,
    define_config,
    define_metrics,
    define_path,
    define_pipeline,
    define_text_cache,
    load_pipeline,
    metrics_changes,
    read_sampling_values,
)
from imagen_jax.config.load import load_config
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError

SEVERAL_PROCESSES = True
_ALIGNMENT = "alignment"  # the judge's metric, which `--metrics` may name beside those of features


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_pipeline(values)
    define_config(values, "What to sample and how it is judged, such as configs/shapes_eval.py.")
    define_path(values, "out", None, "The folder to write to.")
    flags.DEFINE_boolean("overwrite", False, "Remove results of another sweep from OUT.", flag_values=values)
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "A sampling setting and its values, KEY=VALUE,VALUE; given several times, all combinations are sampled.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "stage", 0, "Index of the stage whose settings are swept, 0 for the base.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "last_stage",
        None,
        "Index of the stage whose images are judged and measured; the last one by default.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "estimate_only", False, "Compile and time batches, print how long the sweep takes, and end.", flag_values=values
    )
    define_metrics(values)
    define_text_cache(values)


def run(args: CommandFlags) -> None:
    """Sweeps, and prints the points."""
    from imagen_jax.evaluation.sweep import sweep
    from imagen_jax.evaluation.sweep_points import SweepPlan

    plan = SweepPlan(read_axes(args.sweep), args.stage, args.last_stage)
    config = load_config(args.load_config(EvaluationConfig), _changes(args), schema=EvaluationConfig)
    if _ALIGNMENT in (args.metrics or "").split(",") and not config.judge:
        raise ConfigError("alignment is what a judge scores, and the config has none: set --config.judge, or use clip")
    pipeline = load_pipeline(args, text_cache=args.text_cache)
    out = args.output_folder("runs/sweep")
    result = sweep(pipeline, config, plan, out, overwrite=args.overwrite, estimate_only=args.estimate_only)
    if result is not None:
        print(result.summary())


def read_axes(texts: list[str]) -> dict[str, list[Any]]:
    """Returns the values of each setting of `--sweep`. Raises ConfigError."""
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ConfigError(f"--sweep {text!r} has no values: give for example --sweep=guidance_scale=1,2,4")
        if name.strip() in axes:
            raise ConfigError(f"--sweep={name.strip()} is given twice: give all its values at once")
        axes[name.strip()] = read_sampling_values(name.strip(), values)
    if not axes:
        raise ConfigError("--sweep is missing: give for example --sweep=guidance_scale=1,2,4")
    return axes


def _changes(args: CommandFlags) -> dict[str, Any]:
    """Returns what the flags of metrics change in the config."""
    changes = {f"metrics.{name}": value for name, value in metrics_changes(args).items()}
    names = changes.get("metrics.names")
    return changes | ({"metrics.names": tuple(n for n in names if n != _ALIGNMENT)} if names else {})
