"""Score a cascade: `imagen evaluate --stages=DIR,DIR --config=configs/shapes_eval.py --out=DIR`.

Samples the config's captions and judges whether each image shows what its caption says. Writes `OUT/scores.json` (for
each row: correct, total, rate and its 95% interval), and `OUT/correct.png` and `OUT/incorrect.png`, grids of some
images; without a judge (`judge = ""`), as for photographs, `OUT/samples.png`. In any case `OUT/diagnostics.json` and
`OUT/diagnostics.png`: for each stage the losses on real images of the split by noise level, the consistency with the
stage before, the color drift and the share of saturated values.

`--metrics=fid,clip` measures the same images by networks: the figures are in `OUT/scores.json`, under `metrics`, each
with its network, weights, resizing, images and reference. `--metrics=fid --images=DIR --reference=DIR_OR_NPZ` measures
images on a disk, without a cascade.

The state is written after each batch (`OUT/evaluation.jsonl`), that of metrics every now and then (`OUT/metrics.npz`):
after a kill, the same command continues.
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
)
from imagen_jax.config.load import load_config
from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError

SEVERAL_PROCESSES = True
# flags of one of the two kinds of evaluation alone
_OF_IMAGES = ("num_images", "write_statistics")
_OF_CASCADES = ("stages", "config", "save_images", "text_cache")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_pipeline(values)
    define_config(values, "What to score, such as configs/shapes_eval.py.")
    define_path(values, "out", None, "The folder to write to.")
    flags.DEFINE_boolean("overwrite", False, "Remove results of another evaluation from OUT.", flag_values=values)
    flags.DEFINE_boolean("save_images", False, "Keep all samples, in OUT/evaluated_images.", flag_values=values)
    define_path(
        values,
        "captions",
        None,
        "A file of captions, in place of those of the data: one a line; or .csv or .jsonl with `text` or `caption`.",
    )
    define_metrics(values)
    define_path(values, "images", None, "A folder of images to measure, in place of samples of a cascade.")
    flags.DEFINE_integer(
        "num_images", 0, "Images of --images to measure, the first ones; 0 for all.", lower_bound=0, flag_values=values
    )
    define_path(values, "write_statistics", None, "A .npz file to write the statistics of --images to.")
    define_text_cache(values)


def run(args: CommandFlags) -> None:
    """Scores the cascade or the images, and prints the figures."""
    kind, others = ("--images", _OF_CASCADES) if args.images else ("--stages", _OF_IMAGES)
    surplus = [name for name in others if args.is_given(name)]
    if surplus:
        raise ConfigError(f"--{surplus[0]} has no effect with {kind}: leave it out")
    result: Any = _evaluate_images(args) if args.images else _evaluate_cascade(args)
    if result is not None:
        print(result.summary())


def _evaluate_cascade(args: CommandFlags) -> Any:
    """Returns the result for the cascade of `--stages`."""
    from imagen_jax.evaluation.evaluate import check_judge, evaluate
    from imagen_jax.evaluation.metric_set import check_names

    if not args.stages:
        raise ConfigError(
            "--stages and --images are missing: give for example --stages=runs/base,runs/sr, a cascade, or "
            "--images=DIR, images to measure"
        )
    changes = {f"metrics.{name}": value for name, value in metrics_changes(args).items()}
    if args.captions:
        changes["captions"] = args.captions
    config = load_config(args.load_config(EvaluationConfig), changes, schema=EvaluationConfig)
    check_judge(config)
    check_names(config.metrics.names)
    pipeline = load_pipeline(args, text_cache=args.text_cache)
    out = args.output_folder("runs/scores")
    return evaluate(pipeline, config, out, overwrite=args.overwrite, save_images=args.save_images)


def _evaluate_images(args: CommandFlags) -> Any:
    """Returns the result for the images of `--images`."""
    from imagen_jax.evaluation.evaluate_images import evaluate_images

    out = args.output_folder("runs/scores") if args.out or not args.write_statistics else None
    return evaluate_images(
        args.images,
        load_config(MetricsConfig(), metrics_changes(args), schema=MetricsConfig),
        out,
        captions=args.captions or "",
        num_images=args.num_images,
        statistics=args.write_statistics or "",
        overwrite=args.overwrite,
    )
