"""Folders of images to compare."""

import json

import numpy as np

from imagen_jax.images.grid import save_png

PROMPTS = {
    "a red circle": "colors",
    "two <b>squares</b>": "counting",
    "a ring </script>": "colors",
    "ein Kreuz": "other",
}


def write_compared(folder, level=128, prompts=None, images=2, size=(16, 16), texts=True):
    """Writes gray images in GenEval's layout, with texts in their files, as `imagen benchmark_prompts` writes them."""
    for index, (prompt, category) in enumerate((prompts or PROMPTS).items()):
        one = folder / f"{index:05d}"
        for number in range(images):
            pixels = np.full((*size, 3), level + number, np.uint8)
            save_png(pixels, one / "samples" / f"{number:04d}.png", {"parameters": f"model {level}"} if texts else {})
        (one / "metadata.jsonl").write_text(json.dumps({"tag": category, "prompt": prompt}))
    return folder
