"""Sample and score a set of prompts: `imagen benchmark_prompts --stages=shapes --prompts=shapes --out=DIR`.

`--prompts` is `photographs`, 200 prompts for models of photographs; `shapes`, 200 prompts of the shapes data set with
GenEval's questions; a file as its authors publish it: PartiPrompts.tsv, GenEval's evaluation_metadata.jsonl or
DrawBench's .csv; or ORG/NAME or ORG/NAME:FILE, a data set on the Hugging Face Hub that has such a file.

Writes images in GenEval's layout (`OUT/00000/metadata.jsonl`, `samples/0000.png`, `grid.png`), which its own program
can score, and `OUT/scores.json`: rates and their intervals by category, from the reader of shapes (`--judge=shapes`),
and CLIP scores (`--clip=FOLDER_OR_NAME`). Run again after a break, it continues. Without `--stages`, the images in OUT
are scored, of whichever program they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from imagen_jax.cli.flags import (
    CommandFlags,
    define_images,
    define_path,
    define_pipeline,
    define_safety_checker,
    define_text_cache,
    load_pipeline,
    safety_checker_choice,
)
from imagen_jax.errors import ConfigError

if TYPE_CHECKING:
    from imagen_jax.evaluation.prompts.prompt_set import PromptSet

SEVERAL_PROCESSES = True


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_pipeline(values)
    define_path(values, "prompts", None, "The prompts: photographs, shapes, a file, or ORG/NAME on the Hub.")
    flags.DEFINE_integer("images", 4, "Images of each prompt.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("categories", None, "Only these categories, separated by commas.", flag_values=values)
    flags.DEFINE_integer(
        "limit",
        0,
        "At most so many prompts of each category, evenly spread; 0 for all.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "judge",
        None,
        "Who answers GenEval's questions: `shapes`, which is the default for the prompts `shapes`; '' for none.",
        flag_values=values,
    )
    define_path(values, "clip", None, "A CLIP for scores: a folder, or such as openai/clip-vit-large-patch14.")
    flags.DEFINE_string(
        "clip_score", "cosine", "Kind of the CLIP score: cosine, torchmetrics, clip_s or gigagan.", flag_values=values
    )
    define_images(values, batch_size=64)
    define_text_cache(values)
    define_safety_checker(values)


def run(args: CommandFlags) -> None:
    """Samples the prompts, scores the images, and prints the scores."""
    import jax

    from imagen_jax.evaluation.clip_score import ClipScore
    from imagen_jax.evaluation.prompts import benchmark, prompt_set
    from imagen_jax.parallel import multihost
    from imagen_jax.text.clip import CLIP

    ClipScore(args.clip_score)  # its name is checked before anything is sampled
    prompts = None if args.prompts is None else prompt_set.load_prompts(args.prompts)
    if prompts is not None:
        names = [name.strip() for name in (args.categories or "").split(",") if name.strip()]
        prompts = prompts.select(names, args.limit)
    judge = args.judge if args.judge is not None else "shapes" if args.prompts == "shapes" else ""
    if prompts is not None:
        benchmark.check_judge(judge, prompts.prompts)
    out = args.output_folder("runs/prompts")
    if args.stages:
        if args.clip and jax.process_count() > 1:
            raise ConfigError(
                "--clip needs all images on one machine: leave it out, and then give it without --stages in one process"
            )
        if prompts is None:
            raise ConfigError("--prompts is missing: give for example --prompts=photographs")
        sample_prompts(args, prompts, out)
    if not multihost.is_main_process():
        return
    folder = benchmark.read_benchmark(out, "" if prompts is None else prompts.name)
    clip = None
    if args.clip:
        clip = benchmark.ClipJudge(CLIP.from_pretrained(args.clip), args.clip, args.clip_score)
    scores = benchmark.score_benchmark(folder, judge, clip, args.batch_size)
    print(
        benchmark.format_scores(scores) or f"no scores are asked for: give --judge or --clip; the images are in {out}"
    )
    print(f"scores: {out / benchmark.SCORES}")


def sample_prompts(args: CommandFlags, prompts: PromptSet, out: Path) -> None:
    """Samples prompts into a folder with the cascade, and as many images of each, as the flags say."""
    from imagen_jax.evaluation.prompts.benchmark import benchmark_texts, sample_benchmark
    from imagen_jax.pipelines.request import SampleRequest
    from imagen_jax.pipelines.texts import make_texts

    pipeline = load_pipeline(args, text_cache=args.text_cache, safety_checker=safety_checker_choice(args))
    size = pipeline.as_size(args.height, args.width)
    request = SampleRequest(make_texts(benchmark_texts(prompts, args.images)), args.seed, args.batch_size, size=size)
    sample_benchmark(pipeline, prompts, request, out, args.images, args.overwrite)
