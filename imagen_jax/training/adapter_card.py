"""The card of a folder of adapters and learned tokens: a README.md with the header of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagen_jax.io.paths import file_sizes
from imagen_jax.io.text import printable
from imagen_jax.io.version import VERSION
from imagen_jax.stages.stage_folder import read_config
from imagen_jax.text.learned_tokens import FILE as LEARNED
from imagen_jax.text.learned_tokens import read_learned


def adapter_card(
    folder: Path, runs: Sequence[Path], indices: Sequence[int], token: str, prompts: Sequence[str], images: int
) -> str:
    """Returns the card.

    Args:
        folder: with the files, as they are published.
        runs: the folders of the runs that trained them.
        indices: which stage each is of.
        token: what names the subject.
        prompts: examples.
        images: number of images of the subject.
    """
    token, sizes = printable(token), file_sizes(folder)
    example = printable(prompts[0]) if prompts else f"a {token}"
    rows = []
    for run, index in zip(runs, indices, strict=True):
        config = read_config(run)
        adapter, size = config.adapter, sum(size for name, size in sizes.items() if name.startswith(f"stage_{index}/"))
        columns = ["-"] * 4
        if adapter.kind == "lora":
            columns = [
                str(adapter.rank),
                f"{adapter.rank * adapter.scale:g}",
                ", ".join(adapter.targets) or "all kernels",
                f"{size:,}",
            ]
        rows.append(
            f"| {index} | {config.image_hw[0]}×{config.image_hw[1]} | {' | '.join(columns[:3])} | "
            f"{config.training.steps:,} | {config.optimizer.learning_rate:g} | {columns[3]} |"
        )
    has_adapters = any(name.startswith("stage_") for name in sizes)
    kinds = ["low-rank adapters (LoRA)"] if has_adapters else []
    learned = ""
    if LEARNED in sizes:
        kinds.append("a learned token (textual inversion)")
        counts = {word: len(array) for word, array in read_learned(folder).words.items()}
        words = ", ".join(f"*{printable(word)}* ({count} tokens)" for word, count in counts.items())
        learned = f"\nThe text encoder learns the words {words} from `{LEARNED}`, {sizes[LEARNED]:,} bytes.\n"
    tags = ["lora"] * has_adapters + ["textual-inversion"] * (LEARNED in sizes)
    load = 'pipe.load_lora("ADAPTER", scale=1.0)' if has_adapters else 'pipe.load_embedding("ADAPTER")'
    what = " and ".join(kinds)
    table = "\n".join(rows)
    return f"""---
library_name: imagen_jax
pipeline_tag: text-to-image
tags: [text-to-image, {", ".join(tags)}, imagen]
instance_prompt: "a {token}"
---

# {token}

{what[:1].upper()}{what[1:]} of an Imagen cascade, trained on {images} images of *{token}* by imagen_jax {VERSION}.

```python
from imagen_jax import ImagenPipeline

pipe = ImagenPipeline.from_pretrained("CASCADE")  # the one that they were trained beside
{load}
pipe("{example}").images
```

| stage | images | rank | alpha | modules | steps | learning rate | bytes |
|---|---|---|---|---|---|---|---|
{table}
{learned}
Files have the tensors of PEFT and diffusers. What the images may be used for decides what these files may be used for.
"""
