"""The model card of a published cascade: README.md, with the YAML header of the Hugging Face Hub.

Everything in it follows from the configs, the weights and the evaluation; what was not measured is said not to be.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from huggingface_hub import EvalResult, ModelCardData

from imagen_jax.config.data_schema import DataConfig
from imagen_jax.config.schema import StageConfig
from imagen_jax.images.array import format_height_width
from imagen_jax.io.text import printable
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.publishing.evaluation import Evaluation
from imagen_jax.publishing.stage_files import portable_path
from imagen_jax.stages.published import TextEncoderEntry

LIBRARY = "imagen_jax"
_TAGS = ("imagen", "diffusion", "text-to-image", "jax", "flax")
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$])")
_DIAGNOSTICS = {
    "consistency_db": "PSNR in dB of the downsampled image against the one before",
    "color_drift/rms": "change of the mean color against the stage before, of 255",
    "saturation": "share of values at either end of the range",
    "saturation_real": "the same of real images",
}


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        name: of the cascade.
        loads_as: the name that `from_pretrained` takes.
        license: the fields of the header about that of the weights; empty for none.
        stages: with their weights, base first.
        encoders: of the stages.
        evaluation: of these weights; None for none.
        prompts: of the sample grid.
        seed: of the sample grid.
        software: the version that published it.
    """

    name: str
    loads_as: str
    license: Mapping[str, str]
    stages: Sequence[TrainedStage]
    encoders: Sequence[TextEncoderEntry]
    evaluation: Evaluation | None
    prompts: Sequence[str]
    seed: int
    software: str

    @property
    def configs(self) -> list[StageConfig]:
        """The configs of the stages."""
        return [trained.stage.config for trained in self.stages]


def model_card(facts: CardFacts) -> str:
    """Returns the text of README.md."""
    parts = [
        f"---\n{_header(facts)}\n---",
        f"# {_escape(facts.name)}",
        _summary(facts),
        _grid(facts),
        _usage(facts),
        _data(facts),
        _training(facts),
        _sampling(facts),
        _scores(facts),
        _limits(facts),
        _license(facts),
        _files(facts),
    ]
    return "\n\n".join(parts) + "\n"


def license_header(license: str) -> dict[str, str]:
    """Returns the fields of the header for a license: its identifier on the Hub, its name, or its address."""
    if _LICENSE_ID.fullmatch(license):
        return {"license": license}
    key = "license_link" if license.startswith(("http://", "https://")) else "license_name"
    return {"license": "other", key: printable(license)}


def _header(facts: CardFacts) -> str:
    """Returns the YAML header."""
    given: dict[str, Any] = dict(facts.license)
    if facts.evaluation is not None and facts.evaluation.scores is not None:
        given |= {"model_name": printable(facts.name), "eval_results": _eval_results(facts.evaluation)}
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="text-to-image",
        tags=list(_TAGS),
        datasets=list(dict.fromkeys(name for config in facts.configs for name in _data_names(config.data))),
        **given,
    )
    return data.to_yaml()


def _eval_results(evaluation: Evaluation) -> list[EvalResult]:
    assert evaluation.scores is not None
    name = ", ".join(_data_names(evaluation.config.data))
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=name,
            dataset_name=name,
            dataset_split=evaluation.config.data.split,
            metric_type="accuracy",
            metric_name=f"correct captions: {row}",
            metric_value=round(values["rate"], 4),
        )
        for row, values in _main_rows(evaluation).items()
    ]


def _main_rows(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Returns the rows of the scores that are not parts of other rows, the one for everything first."""
    rows = {name: row for name, row in (evaluation.scores or {}).items() if ":" not in name}
    return dict(sorted(rows.items(), key=lambda item: item[0] != "all"))


def _summary(facts: CardFacts) -> str:
    sizes = " → ".join(format_height_width(config.image_hw) for config in facts.configs)
    stages = f"{len(facts.stages)} stages, {sizes} pixels" if len(facts.stages) > 1 else f"one stage, {sizes} pixels"
    params = sum(map(_param_count, facts.stages))
    return (
        f"A text-to-image cascade of {stages}, {_number(params)} parameters, in the format of "
        f"{LIBRARY} ({_escape(facts.software)}), an implementation of Imagen ([arXiv:2205.11487]"
        "(https://arxiv.org/abs/2205.11487)) in JAX. This card was written from the configs and the evaluation of the "
        "stages by `imagen publish`."
    )


def _grid(facts: CardFacts) -> str:
    return (
        f"![{len(facts.prompts)} samples with their prompts](samples.png)\n\n"
        f"Samples {0} to {len(facts.prompts) - 1} of seed {facts.seed}, not selected, with the default settings below."
    )


def _usage(facts: CardFacts) -> str:
    prompt = next((text for text in facts.prompts if text.strip()), "")
    name, prompt = printable(facts.loads_as), printable(prompt)
    command = f"imagen sample --stages={shlex.quote(name)} --prompts={shlex.quote(prompt)} --out=samples"
    return (
        "## Use\n\n"
        "```python\n"
        "from imagen_jax import ImagenPipeline\n\n"
        f"pipe = ImagenPipeline.from_pretrained({_quote(name)})\n"
        f"image = pipe({_quote(prompt)}, seed=0).images[0]  # uint8 [H, W, C]\n"
        "```\n\n"
        f"```\n{command}\n```"
    )


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _data(facts: CardFacts) -> str:
    lines = list(
        dict.fromkeys(
            f"- {_describe_data(config.data)}, split `{_code(config.data.split)}`" for config in facts.configs
        )
    )
    return "## Training data\n\n" + "\n".join(lines)


def _data_names(data: Any) -> list[str]:
    """Returns the names of the data sets of a config's `data`, or of a part of it."""
    if data.source == "mixture":
        return [name for part in data.parts.values() for name in _data_names(part)]
    if data.source == "webdataset":
        return list(data.shards)
    return [portable_path(getattr(data, "path", "")) or data.source]


def _describe_data(data: DataConfig) -> str:
    names = ", ".join(f"`{_code(name)}`" for name in _data_names(data))
    if data.source in ("shapes", "figures", "digits"):
        return f"{names}, a data set that comes with {LIBRARY}"
    return f'{names}, read as `data.source = "{data.source}"`'


def _training(facts: CardFacts) -> str:
    rows: dict[str, list[str]] = {
        "image size": [format_height_width(config.image_hw) for config in facts.configs],
        "starts from": [
            format_height_width(config.low_res_hw) if config.is_super_resolution else "noise"
            for config in facts.configs
        ],
        "network": [config.model.network for config in facts.configs],
        "parameters": [_number(_param_count(trained)) for trained in facts.stages],
        "training steps": [f"{trained.step:,}" for trained in facts.stages],
        "weights": [
            "moving average" if trained.weights == "ema" else "those of the last step" for trained in facts.stages
        ],
        "batch size": [f"{config.training.batch_size:,}" for config in facts.configs],
        "optimizer": [config.optimizer.name for config in facts.configs],
        "learning rate": [f"{config.optimizer.learning_rate:g}" for config in facts.configs],
        "prediction": ["image" if config.is_vae else config.diffusion.prediction_type for config in facts.configs],
        "noise schedule": ["none" if config.is_vae else config.diffusion.schedule for config in facts.configs],
        "text dropped": [f"{config.diffusion.cond_drop_prob:.0%}" for config in facts.configs],
        "text encoder": [f"`{_code(encoder.model)}`" for encoder in facts.encoders],
        "its fingerprint": [f"`{encoder.fingerprint}`" for encoder in facts.encoders],
        "tokens of a prompt": [f"{config.text.length:,}" for config in facts.configs],
        "trained from": [
            f"`{_code(portable_path(config.training.init_from))}`" if config.training.init_from else "random weights"
            for config in facts.configs
        ],
    }
    return "## Training\n\n" + _by_stage(facts, rows) + "\n\nEach stage's `config.json` has all settings."


def _sampling(facts: CardFacts) -> str:
    settings = [config.sampling for config in facts.configs]
    names = ("sampler", "num_inference_steps", "guidance_scale", "threshold", "aug_level")
    rows: dict[str, list[str]] = {name: [str(getattr(sampling, name)) for sampling in settings] for name in names}
    return "## Sampling defaults\n\n" + _by_stage(facts, rows)


def _by_stage(facts: CardFacts, rows: dict[str, list[str]]) -> str:
    """Returns a table with a column for each stage."""
    return _table(["", *(f"stage {index}" for index in range(len(facts.stages)))], [[k, *v] for k, v in rows.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _scores(facts: CardFacts) -> str:
    evaluation = facts.evaluation
    if evaluation is None:
        return (
            "## Scores\n\nNo evaluation was given when this cascade was published: how well its images follow their "
            "prompts has not been measured."
        )
    config = evaluation.config
    captions = f"{config.num_samples:,} captions of {_describe_data(config.data)}, split `{_code(config.data.split)}`"
    parts = ["## Scores"]
    if evaluation.scores is None:
        parts.append(f"No judge scored the images. The diagnostics are of images for {captions}, seed {config.seed}.")
    else:
        parts.append(
            f"The judge `{config.judge}` compared an image with each of {captions}, seed {config.seed}. A row counts "
            "the captions that make such a claim; the interval is Wilson's, of 95%."
        )
        parts.append(_score_table(evaluation))
    parts += [_metrics(evaluation), _settings_note(facts, evaluation), _diagnostics(facts, evaluation)]
    return "\n\n".join(part for part in parts if part)


def _score_table(evaluation: Evaluation) -> str:
    rows = [
        [_escape(name), f"{row['correct']:.0f} of {row['total']:.0f}", f"{row['rate']:.1%}", _interval(row)]
        for name, row in _main_rows(evaluation).items()
    ]
    return _table(["row", "correct", "rate", "interval"], rows)


def _interval(row: dict[str, float]) -> str:
    return f"{row['low']:.1%} – {row['high']:.1%}"


def _metrics(evaluation: Evaluation) -> str:
    """Returns a table of figures with what they are of; "" if there are none."""
    rows = []
    for name, row in evaluation.metrics.items():
        spread = next((f" ± {row[key]:.2g}" for key in ("std", "error") if key in row), "")
        reference = row.get("reference")
        against = (
            "–" if reference is None else f"`{_code(portable_path(reference['name']))}` ({reference['checksum'][:12]})"
        )
        network = f"{row['network']} ({row['weights']}), resizing {row['resizing']}"
        images = f"{row['images']['num_images']:,}"
        rows.append([_escape(name), f"{row['value']:.4g}{spread}", images, _escape(network), against])
    if not rows:
        return ""
    table = _table(["metric", "value", "images", "network and weights", "against"], rows)
    return f"Figures of different networks, resizings, numbers of images or references must not be compared.\n\n{table}"


def _settings_note(facts: CardFacts, evaluation: Evaluation) -> str:
    """Returns a sentence about settings of the evaluation that are not the default ones; "" if there are none."""
    notes = []
    for index, (config, used) in enumerate(zip(facts.configs, evaluation.sampling, strict=True)):
        default = config.sampling.to_dict()
        other = {k: v for k, v in used.items() if k in default and not _is_same(default[k], v)}
        notes += [f"`{_code(k)} = {_code(str(v))}` in stage {index}" for k, v in other.items()]
    return f"The images were sampled with {', '.join(notes)}, in place of the defaults." if notes else ""


def _is_same(default: Any, used: Any) -> bool:
    if isinstance(default, tuple):
        return list(default) == used
    return default == used or (isinstance(default, float) and math.isinf(default) and used == str(default))


def _diagnostics(facts: CardFacts, evaluation: Evaluation) -> str:
    """Returns a table of metrics that need no judge."""
    rows = {}
    for name, text in _DIAGNOSTICS.items():
        cells = [f"{values[name]:.4g}" if name in values else "–" for values in evaluation.diagnostics]
        if set(cells) != {"–"}:
            rows[text] = cells
    return _by_stage(facts, rows) if rows else ""


def _limits(facts: CardFacts) -> str:
    last, lengths = facts.configs[-1], {config.text.length for config in facts.configs}
    lines = [
        f"- It was trained for images of {format_height_width(last.image_hw)} with {last.channels} channels.",
        f"- Prompts are cut at {' or '.join(f'{length:,}' for length in sorted(lengths))} tokens of the text encoder.",
        "- What it makes of prompts that are unlike the captions of its training data has not been measured.",
    ]
    if facts.evaluation is not None and facts.evaluation.scores is not None:
        rows = {name: row for name, row in _main_rows(facts.evaluation).items() if name != "all"}
        if rows:
            name, row = min(rows.items(), key=lambda item: item[1]["rate"])
            lines.append(f"- The lowest score is that of {_escape(name)}: {row['rate']:.1%} ({_interval(row)}).")
    else:
        lines.append("- There are no scores.")
    return "## Limits\n\n" + "\n".join(lines)


def _license(facts: CardFacts) -> str:
    named = [_escape(text) for text in facts.license.values() if text != "other"]
    stated = ", ".join(named or facts.license.values()) or "None was stated when this cascade was published."
    return f"## License\n\n{stated}"


def _files(facts: CardFacts) -> str:
    encoders = {(encoder.folder, encoder.model) for encoder in facts.encoders}
    lines = ["- `stage_N/`: config, and weights as safetensors in the layout of Flax, which run no code."]
    for folder, model in sorted(encoders, key=str):
        where = (
            f"`{folder}/`: its files." if folder else "not inside; it is found by this name and checked by fingerprint."
        )
        lines.append(f"- Text encoder `{_code(model)}`, {where}")
    lines.append("- `model_index.json`: the stages, and which checkpoints they are of.")
    lines.append("- `SHA256SUMS`: checksums, which are verified whenever the cascade is loaded.")
    return "## Files\n\n" + "\n".join(lines)


def _param_count(trained: TrainedStage) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained.params))


def _number(count: int) -> str:
    """Returns a number with three digits, such as 1.23 M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _escape(text: str) -> str:
    """Returns a text that Markdown shows as it is."""
    return html.escape(_MARKDOWN.sub(r"\\\1", printable(text)), quote=False)


def _code(text: str) -> str:
    """Returns a text for Markdown's backticks and cells of tables."""
    return printable(text).replace("`", "'").replace("|", "\\|")
