"""The keys of metrics of images: which ones, by which networks, and against which reference."""

from __future__ import annotations

from imagen_jax.config.fields import MAX_COUNT, SIZE, Group, PathText, SizeValue, Text, Texts, key
from imagen_jax.images.array import Size, parse_size
from imagen_jax.images.measured_inputs import RESIZINGS


class MetricsConfig(Group):
    """How images are measured; each key is also a flag of `imagen evaluate`, where `names` is `--metrics`."""

    names: Texts = key(
        (),
        "Metrics: fid, kid, precision_recall and inception_score by Inception-v3; fd_lite0, kid_lite0, "
        "precision_recall_lite0 and inception_score_lite0 by EfficientNet-Lite0; clip and cmmd. () for none.",
        expected="a tuple of names such as ('fid', 'clip')",
    )
    resizing: str = key(
        "clean",
        "How images are resized for Inception-v3 and EfficientNet-Lite0; figures of different ways cannot be compared.",
        choices=RESIZINGS,
        source="arXiv:2104.11222",
    )
    inception: PathText = key(
        "", "The weights of Inception-v3, a safetensors file; empty for .cache/metrics/inception-v3-fid.safetensors."
    )
    lite0: PathText = key(
        "",
        "The weights of EfficientNet-Lite0, a safetensors file; empty for "
        ".cache/metrics/efficientnet-lite0.safetensors, which `make metrics` writes.",
    )
    clip: PathText = key(
        "openai/clip-vit-large-patch14",
        "The CLIP of `clip`: a folder, or a name on the Hugging Face Hub.",
        min_length=1,
    )
    clip_score: str = key(
        "cosine",
        "Which score `clip` is: the prefix of texts, the scale, and what is clipped.",
        choices=("cosine", "torchmetrics", "clip_s", "gigagan"),
    )
    cmmd_clip: PathText = key(
        "openai/clip-vit-large-patch14-336", "The CLIP of `cmmd`.", source="arXiv:2401.09603", min_length=1
    )
    reference: PathText = key(
        "",
        "What images are compared with: a folder of images, or a .npz file of statistics; empty for real images of "
        "`data`.",
    )
    num_reference: int = key(
        0,
        "Images of the reference, the first ones; 0 for all of `reference`, and of `data` as many as samples.",
        unit="images",
        ge=0,
        le=MAX_COUNT,
    )
    size: SizeValue = key(
        0,
        "Size that images on a disk are cut and resized to before they are measured; 0 leaves them as they are.",
        unit="pixels",
        expected=SIZE,
    )

    @property
    def size_hw(self) -> Size:
        """(height, width) of `size`, (0, 0) for images as they are."""
        return parse_size(self.size, "metrics.size")


class SampleMetricsConfig(Group):
    """Metrics of samples during training; they are written with the losses, and to `evaluations/`."""

    every: int = key(0, "Steps between evaluations; 0 for none.", unit="steps", ge=0, le=MAX_COUNT)
    num_samples: int = key(2048, "Images to sample.", unit="images", ge=1, le=MAX_COUNT)
    batch_size: int = key(64, "Images to sample at once.", unit="images", ge=1, le=2**24)
    best: Text = key(
        "",
        "The figure by which training.keep_best compares checkpoints, such as fd_lite0 or clip_score; empty for the "
        "validation loss.",
    )
    metrics: MetricsConfig = key(
        MetricsConfig(), "Which metrics; without a reference, they compare with the validation split."
    )
