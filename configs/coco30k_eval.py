"""FID-30k and CLIP score on MS-COCO: 30,000 captions of a frozen list, against all images of val2014.

With the images of val2014.zip in coco/val2014, and the list of text2image-benchmark's releases:
`imagen evaluate --stages=STAGES --config=configs/coco30k_eval.py --config.data.path=coco/val2014
--captions=MS-COCO_val2014_30k_captions.csv --out=runs/coco30k`; `--reference=MS-COCO_val2014_fid_stats.npz` takes the
statistics of its releases in place of the images, if they are of the same resizing.

Real images are cut at their center and resized to the size of the last stage, 256 for numbers that can be compared.
Which captions, which images and which resizing decide the number as much as models do (docs/evaluation.md).
"""

import ml_collections

from imagen_jax.config.load import default_config
from imagen_jax.config.schema import EvaluationConfig


def get_config() -> ml_collections.ConfigDict:
    config = default_config(EvaluationConfig, source="folder")
    config.num_samples = 30_000
    config.batch_size = 64
    config.data.split = "all"
    config.data.transform.upscale = True  # some images are smaller than 256
    config.metrics.names = ("fid", "clip")
    config.metrics.num_reference = 40_504  # all of val2014
    return config
