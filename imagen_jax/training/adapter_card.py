"""The card of a folder of adapters: a README.md with the header of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagen_jax.io.paths import file_sizes
from imagen_jax.io.text import printable
from imagen_jax.io.version import VERSION
from imagen_jax.stages.stage_folder import read_config


def adapter_card(runs: Sequence[Path], indices: Sequence[int], token: str, prompts: Sequence[str], images: int) -> str:
    """Returns the card.

    Args:
        runs: the folders of the runs that trained the adapters.
        indices: which stage each is of.
        token: what names the subject.
        prompts: examples.
        images: number of images of the subject.
    """
    token = printable(token)
    example = printable(prompts[0]) if prompts else f"a {token}"
    rows = []
    for run, index in zip(runs, indices, strict=True):
        config = read_config(run)
        size = sum(count for name, count in file_sizes(run / "checkpoints").items() if "/ema_params/" in name)
        rows.append(
            f"| {index} | {config.image_hw[0]}×{config.image_hw[1]} | {config.adapter.rank} | "
            f"{config.adapter.rank * config.adapter.scale:g} | {', '.join(config.adapter.targets) or 'all kernels'} | "
            f"{config.training.steps:,} | {config.optimizer.learning_rate:g} | {size:,} |"
        )
    table = "\n".join(rows)
    return f"""---
library_name: imagen_jax
pipeline_tag: text-to-image
tags: [text-to-image, lora, imagen]
instance_prompt: "a {token}"
---

# {token}

Low-rank adapters (LoRA) of an Imagen cascade, trained on {images} images of *{token}* by imagen_jax {VERSION}.

```python
from imagen_jax import ImagenPipeline

pipe = ImagenPipeline.from_pretrained("CASCADE")  # the one they were trained beside
pipe.load_lora("ADAPTER", scale=1.0)
pipe("{example}").images
```

| stage | images | rank | alpha | modules | steps | learning rate | bytes in a checkpoint |
|---|---|---|---|---|---|---|---|
{table}

Files have the tensors of PEFT. What the images may be used for decides what these adapters may be used for.
"""
