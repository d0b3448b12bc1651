"""What a cascade that was trained on a folder of images is looked at by: captions and images of its validation split.

    imagen evaluate --stages=runs/base,runs/sr --config=configs/folder_eval.py --out=runs/scores \\
        --config.data.path=DIR

No program can tell whether a photograph shows what its caption says, and so nothing is scored: there are pictures with
their captions, and what is measured of each stage, held-out losses among it. `data` is that of folder_base.py, whose
split it has to be; `:tiny` is for the stages of that name.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; ``variant`` is "" or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"configs/folder_eval.py has no variant {variant!r}: give none, or :tiny")
    tiny = variant == "tiny"
    config = ml_collections.ConfigDict()
    config.judge = ""  # none
    config.count = 8 if tiny else 128
    config.batch_size = 8 if tiny else 16
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.source = "folder"
    config.data.path = ""
    config.data.caption_column = "text"
    config.data.split = "validation"
    config.data.validation_share = 0.25 if tiny else 0.01
    config.data.max_broken = 0.01
    config.data.bits = 8
    config.data.transform = ml_collections.ConfigDict()
    config.data.transform.crop = "centre"
    config.data.transform.flip = False
    config.data.transform.background = 255
    config.data.transform.upscale = False
    config.data.transform.max_pixels = 50_000_000
    return config
