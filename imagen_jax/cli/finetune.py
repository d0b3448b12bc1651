"""Teach a cascade a subject: `imagen finetune --stages=DIR --images=DIR --token='sks dog' --class=dog --out=DIR`.

Checks the images, draws images of the class by the cascade itself so that it keeps what it knows, trains every stage,
and writes `OUT/before_after.png` and, for adapters, `OUT/adapter` with a card. Run again with the same flags after a
break, it continues. Captions in text files beside the images are used where they are there.

`--method=lora` trains adapters of kilobytes to megabytes; `dreambooth` all weights, with images of the class;
`textual_inversion` the token alone; `full` all weights on captioned images of another domain, without images of a
class. With `--initializer=dog` adapters and the token are learned together.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_path, define_stages
from imagen_jax.errors import ConfigError

_METHODS = ("lora", "dreambooth", "textual_inversion", "full")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_stages(values)
    define_path(values, "images", None, "A folder of images of the subject, perhaps with captions beside them.")
    define_path(values, "out", None, "The folder to write: runs, adapters, samples before and after.")
    flags.DEFINE_string(
        "token",
        "",
        "What names the subject in prompts: a rare word and what it is, such as 'sks dog'.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "class", "", "What the subject is one of, such as 'dog'; the cascade keeps it.", flag_values=values
    )
    flags.DEFINE_enum("method", "lora", _METHODS, "What is trained.", flag_values=values)
    flags.DEFINE_string(
        "initializer",
        "",
        "A word that the text encoder knows, as which the token starts to be learned; '' leaves the encoder as it is, "
        "or with textual_inversion starts at the mean of its tokens.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "prior_prompts",
        None,
        "Prompts of the images of the class, separated by semicolons; 'a CLASS' by default.",
        flag_values=values,
    )
    define_path(values, "prior_prompts_file", None, "A text file with such a prompt on each line, instead.")
    flags.DEFINE_integer("prior_images", 200, "Images of the class to draw.", lower_bound=1, flag_values=values)
    define_path(
        values,
        "class_images",
        "",
        "A folder of images of the class with captions, such as prior/images of an earlier --out, in place of drawing.",
    )
    flags.DEFINE_string(
        "prompts", None, "Prompts to show before and after, separated by semicolons.", flag_values=values
    )
    flags.DEFINE_string(
        "only",
        None,
        "Stages to train, by their numbers from 0, separated by commas; all by default.",
        flag_values=values,
    )
    flags.DEFINE_integer("steps", 0, "Steps of each stage; 0 follows the images.", lower_bound=0, flag_values=values)
    flags.DEFINE_float(
        "learning_rate", 0.0, "0 for a part of that of each stage's training.", lower_bound=0.0, flag_values=values
    )
    flags.DEFINE_integer("train_batch_size", 0, "0 for 8, or more for more devices.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "rank", 0, "Rank of adapters; 0 for 8, and 32 in super-resolution.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "varied",
        100,
        "Copies of the images, zoomed, moved and in other hues, that super-resolution stages see too; 0 for none.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "targets",
        "",
        "Regular expressions for modules to adapt, separated by commas; by default residual blocks and the output, or "
        "in DeepFloyd IF's network attention.",
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Of training and of images of the class.", lower_bound=0, flag_values=values)


def run(args: CommandFlags) -> None:
    """Fine-tunes the cascade."""
    from imagen_jax.cli.sample import read_prompts
    from imagen_jax.training.finetune import FinetuneSettings, finetune
    from imagen_jax.training.preemption import stop_on_signals

    prior = []
    if args.prior_prompts is not None or args.prior_prompts_file is not None:
        prior = read_prompts(args.prior_prompts, args.prior_prompts_file)
    settings = FinetuneSettings(
        token=args.token.strip(),
        class_name=args["class"].strip(),
        method=args.method,
        initializer=args.initializer.strip(),
        prior_prompts=prior,
        prior_images=args.prior_images,
        class_images=args.class_images,
        prompts=[] if args.prompts is None else read_prompts(args.prompts, None),
        only=_numbers(args.only),
        steps=args.steps,
        learning_rate=args.learning_rate,
        batch_size=args.train_batch_size,
        rank=args.rank,
        varied=args.varied,
        targets=[pattern for pattern in args.targets.split(",") if pattern],
        seed=args.seed,
    )
    images, out = args.required("images", "photos"), args.required("out", "runs/finetuned")
    with stop_on_signals() as stop:
        result = finetune(args.stage_names(), images, out, settings, stop=stop, log=print)
    print(result.summary())


def _numbers(text: str | None) -> list[int]:
    try:
        return [int(part) for part in (text or "").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--only {text!r} is not a list of numbers of stages: give for example 0,1") from error
