"""Measure what prompts leave open: `imagen fairness --stages=DIR,DIR --prompts='a circle' --groups=red,blue --out=DIR`.

Samples images of prompts that name no group, lets a judge tell the group of each, and compares the shares with a target
and, by `--config`, with the training data. Writes `OUT/fairness.json`, `OUT/fairness.html`, a page in one file, and the
images, in GenEval's layout. Without `--stages`, images in OUT are judged.

The judge is `shapes`, the reader of that data set; `clip`, zero-shot by `--clip`; or a function of your own,
`MODULE:FUNCTION` or `FILE.py:FUNCTION`, which gets a list of images, uint8 [H, W, C], and returns the name of the group
of each. Words for the same group are separated by `|`, as in --groups='woman|women,man|men'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from imagen_jax.cli.benchmark_prompts import sample_prompts
from imagen_jax.cli.flags import (
    CommandFlags,
    define_config,
    define_images,
    define_path,
    define_pipeline,
    define_safety_checker,
    define_text_cache,
)
from imagen_jax.cli.sample import read_prompts

if TYPE_CHECKING:
    from imagen_jax.evaluation.fairness.groups import Group
    from imagen_jax.evaluation.fairness.judges import Judge


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_pipeline(values)
    flags.DEFINE_string("prompts", None, "Prompts without a group, separated by semicolons.", flag_values=values)
    define_path(values, "prompts_file", None, "A text file with a prompt on each line, instead of --prompts.")
    flags.DEFINE_string("groups", None, "The groups, such as 'red,blue'.", flag_values=values)
    flags.DEFINE_string(
        "target", None, "Weights of the groups, such as 'red:1,blue:1'; equal by default.", flag_values=values
    )
    flags.DEFINE_integer("images", 64, "Images of each prompt.", lower_bound=1, flag_values=values)
    define_path(values, "judge", "shapes", "shapes, clip, MODULE:FUNCTION or FILE.py:FUNCTION.")
    define_path(values, "clip", None, "The CLIP of --judge=clip: a folder, or such as openai/clip-vit-large-patch14.")
    flags.DEFINE_string("template", "a photo of a {}", "Of the texts that CLIP compares.", flag_values=values)
    flags.DEFINE_float(
        "least", 0.0, "Probability by CLIP under which an image belongs to none.", 0.0, 1.0, flag_values=values
    )
    define_config(values, "A stage of the cascade, whose training data to compare with.")
    flags.DEFINE_string(
        "column", None, "The metadata column that has the group; by default words of captions.", flag_values=values
    )
    flags.DEFINE_integer("records", 10_000, "Records to compare with, at most.", lower_bound=1, flag_values=values)
    define_images(values, batch_size=64)
    define_text_cache(values)
    define_safety_checker(values)


def run(args: CommandFlags) -> None:
    """Samples, judges, and prints the shares."""
    from imagen_jax.evaluation.fairness import data_shares, groups, measure
    from imagen_jax.evaluation.prompts.benchmark import read_benchmark

    parsed = groups.parse_groups(args.required("groups", "red,blue"))
    target = groups.parse_target(args.target, parsed)
    judge = _make_judge(args, parsed)
    data = None
    if args.config:
        data = data_shares.data_shares(args.load_config(), parsed, args.column, args.records)
    out = args.output_folder("runs/fairness")
    if args.stages:
        prompts = measure.open_prompts(read_prompts(args.prompts, args.prompts_file), parsed)
        sample_prompts(args, prompts, out)
    name = args.judge if args.judge != "clip" else f"CLIP {args.clip}"
    result = measure.measure(read_benchmark(out), parsed, judge, name, target, data)
    print(measure.format_result(result))
    print(f"{out / measure.PAGE} shows more, {out / measure.RESULT} has it as data")


def _make_judge(args: CommandFlags, groups: list[Group]) -> Judge:
    """Returns the judge of the flags."""
    from imagen_jax.evaluation.fairness import judges
    from imagen_jax.text.clip import CLIP

    if args.judge == "shapes":
        return judges.shapes_judge(groups)
    if args.judge == "clip":
        clip = CLIP.from_pretrained(args.required("clip", "openai/clip-vit-large-patch14"))
        return judges.clip_judge(groups, clip, args.template, args.least)
    return judges.function_judge(args.judge, groups)
