"""Score a cascade: `imagen evaluate --stages=DIR,DIR --config=configs/shapes_eval.py --out=DIR`.

Samples the config's captions and judges whether each image shows what its caption says. Writes `OUT/scores.json` (for
each row: correct, total, rate and its 95% interval), and `OUT/correct.png` and `OUT/incorrect.png`, grids of some
images; without a judge (`judge = ""`), as for photographs, `OUT/samples.png`. In any case `OUT/diagnostics.json` and
`OUT/diagnostics.png`: for each stage the losses on real images of the split by noise level, the consistency with the
stage before, the color drift and the share of saturated values.

The state is written after each batch (`OUT/evaluation.jsonl`): after a kill, the same command continues.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import (
    CommandFlags,
    define_config,
    define_path,
    define_pipeline,
    define_text_cache,
    load_pipeline,
)
from imagen_jax.config.schema import EvaluationConfig

SEVERAL_PROCESSES = True


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_pipeline(values)
    define_config(values, "What to score, such as configs/shapes_eval.py.")
    define_path(values, "out", None, "The folder to write to.")
    flags.DEFINE_boolean("overwrite", False, "Remove results of another evaluation from OUT.", flag_values=values)
    define_text_cache(values)


def run(args: CommandFlags) -> None:
    """Scores the cascade, and prints the figures."""
    from imagen_jax.evaluation.evaluate import check_judge, evaluate

    config = args.load_config(EvaluationConfig)
    check_judge(config)
    pipeline = load_pipeline(args, text_cache=args.text_cache)
    result = evaluate(pipeline, config, args.output_folder("runs/scores"), overwrite=args.overwrite)
    if result is not None:
        print(result.summary())
