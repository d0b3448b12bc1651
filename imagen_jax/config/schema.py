"""Every config key once: type, default, range, unit, a sentence and its source.

`StageConfig` describes one stage of the cascade, `EvaluationConfig` what a cascade is scored on, `PretrainTextConfig`
the training of the text encoder of shapes or figures. Objects are immutable; `load.load_config` makes them, and
`with_changes` makes others from them. The keys of `data` are in `data_schema.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from imagen_jax.config import fit
from imagen_jax.config.data_schema import DataConfig, ShapesData
from imagen_jax.config.fields import (
    DTYPES,
    KINDS,
    MAX_CHANNELS,
    MAX_COUNT,
    MAX_SIDE,
    SIZE,
    AttentionTypes,
    Counts,
    Devices,
    Group,
    Interval,
    Levels,
    Multiples,
    PathText,
    RateFactors,
    SizeValue,
    SpikeFactor,
    Text,
    Texts,
    ThresholdMax,
    Widths,
    key,
)
from imagen_jax.config.metrics_schema import MetricsConfig, SampleMetricsConfig
from imagen_jax.diffusion.keys import MAX_SEED
from imagen_jax.diffusion.noise_augmentation import DISTRIBUTIONS
from imagen_jax.diffusion.process import LOSS_WEIGHTINGS, PREDICTION_TYPES
from imagen_jax.diffusion.samplers import SAMPLERS, VARIANCE_TYPES
from imagen_jax.diffusion.schedules import SCHEDULES
from imagen_jax.diffusion.timesteps import TIMESTEP_SPACINGS
from imagen_jax.images.array import IMAGE_DTYPES, Size, parse_size
from imagen_jax.models.if_unet import ACTIVATIONS
from imagen_jax.models.unet_base import REMAT_POLICIES
from imagen_jax.text.cleaning import CLEANINGS
from imagen_jax.text.learned_tokens import MAX_ROWS
from imagen_jax.text.tokenizer import PADDINGS

SCHEMA_VERSION = 2


class TextConfig(Group):
    """The frozen text encoder."""

    model: PathText = key(
        "google/t5-v1_1-xxl",
        "A T5 model on the Hugging Face Hub, or its folder; `shapes` and `random` come with the package.",
        source="arXiv:2205.11487, Section 2.1",
        min_length=1,
    )
    length: int = key(128, "Tokens per caption; longer captions are cut.", unit="tokens", ge=2, le=2**16)
    padding: str = key(
        "zero",
        "Embeddings after the last token: zeros, or those of the encoder, for a network without a mask.",
        source="`IFPipeline` of diffusers, whose network sees all tokens",
        choices=PADDINGS,
    )
    cleaning: str = key(
        "none",
        "How captions are cleaned before they are tokenized: not, or as for DeepFloyd IF, by the extra `if`.",
        source="`IFPipeline` of diffusers",
        choices=CLEANINGS,
    )
    dtype: str = key("bfloat16", "Compute type of the encoder.", choices=DTYPES)
    cache: PathText = key(
        "", "A folder written by `imagen embed`: training reads embeddings there and needs no encoder."
    )
    learned: tuple[PathText, ...] = key(
        (),
        "Files of learned tokens, or their folders: words that captions may then have, with rows of their own.",
        source="arXiv:2208.01618",
        expected="a tuple of paths of learned_embeds.safetensors, () for none",
    )
    fingerprint: Text = key("", "Fingerprint of the encoder, as `imagen embed` prints it; empty accepts any encoder.")


class NetworkKeys(Group):
    """Keys of both networks."""

    patch_size: int = key(
        1,
        "Side of the squares of pixels that the network sees as one pixel.",
        unit="pixels",
        source="arXiv:2301.11093, Section 3.3",
        ge=1,
        le=MAX_SIDE,
    )
    positions: int = key(
        0,
        "Cosines per axis of a learned position embedding; 0 has none. It ties the network to full images.",
        ge=0,
        le=MAX_CHANNELS,
    )
    input_skip: bool = key(False, "Add the inputs to the output by learned gains.")
    channels: int = key(128, "Channels of the first level.", ge=1, le=MAX_CHANNELS)
    channel_mult: Multiples = key(
        (1, 2, 3, 4),
        "Channels of each level, as multiples of `channels`; each level has half the size of the previous one.",
        source="arXiv:2205.11487, Appendix F.1",
        expected="a tuple of integers in [1, 64], one per level",
        min_length=1,
    )
    num_res_blocks: Counts = key(
        (3, 3, 3, 3), "Residual blocks of each level.", expected="a tuple of integers in [0, 256], one per level"
    )
    attention_types: tuple[AttentionTypes, ...] = key(
        ((), ("self+text",), ("self+text",), ("self+text",)),
        "Attention layers of each level.",
        expected=f"a tuple for each level, of any of {KINDS}",
    )
    head_channels: int = key(64, "Channels of an attention head.", ge=1, le=MAX_CHANNELS)
    mlp_ratio: int = key(
        0,
        "Hidden width of a feed-forward layer after each attention, as a multiple of its channels; 0: none.",
        ge=0,
        le=64,
    )
    cond_dim_mult: int = key(4, "Width of the conditioning vector, as a multiple of `channels`.", ge=1, le=64)
    text_pool_heads: int = key(8, "Heads of the attention pooling of the text.", ge=1, le=1024)
    num_groups: int = key(32, "Groups of each GroupNorm.", ge=1, le=MAX_CHANNELS)
    skip_scale: float = key(
        1.0, "Factor on each skip connection.", source="arXiv:2205.11487, Section 2.3 (1/sqrt(2))", gt=0
    )
    dropout: float = key(0.0, "Fraction of activations dropped in training.", ge=0, lt=1)
    scan_blocks: bool = key(False, "Compile equal blocks of a level as one scanned block: faster to compile.")
    dtype: str = key("bfloat16", "Compute type; parameters, norms and softmax stay float32.", choices=DTYPES)

    @property
    def side_multiple(self) -> int:
        """What the sides of images must be multiples of."""
        return self.patch_size * 2 ** (len(self.channel_mult) - isinstance(self, UNetConfig))

    @property
    def level_keys(self) -> tuple[str, str]:
        """The keys that have an entry for each level: of its channels, and of its attention."""
        return "channel_mult", "attention_types"

    @property
    def attending_widths(self) -> set[int]:
        """The channels of levels with attention."""
        mults = zip(self.channel_mult, self.attention_types, strict=False)
        return {mult * self.channels for mult, kinds in mults if kinds}


class UNetConfig(NetworkKeys):
    """The U-Net of the base stage."""

    network: Literal["unet"] = key("unet", "The network.", source="arXiv:2205.11487, Appendix F.1")
    middle_attention_types: AttentionTypes = key(
        ("self+text",), "Attention layers between down and up path.", expected=f"a tuple of any of {KINDS}"
    )

    @property
    def attending_widths(self) -> set[int]:
        """See `NetworkKeys`; between down and up path, features have the channels of the last level."""
        middle = {self.channel_mult[-1] * self.channels} if self.middle_attention_types else set()
        return super().attending_widths | middle


class EfficientUNetConfig(NetworkKeys):
    """The Efficient U-Net of the super-resolution stages."""

    network: Literal["efficient_unet"] = key("efficient_unet", "The network.", source="arXiv:2205.11487, Appendix B")


class IFUNetConfig(Group):
    """The U-Net of DeepFloyd IF, whose weights are public. The defaults are those of its largest first stage."""

    network: Literal["if_unet"] = key("if_unet", "The network.", source="github.com/deep-floyd/IF")
    widths: Widths = key(
        (704, 1408, 2112, 2816),
        "Channels of each level; each level has half the size of the previous one.",
        expected="a tuple of positive integers, one per level",
        min_length=1,
    )
    num_res_blocks: Counts = key(
        (3, 3, 3, 3), "Residual blocks of each level.", expected="a tuple of integers in [0, 256], one per level"
    )
    attention: tuple[bool, ...] = key(
        (False, True, True, True),
        "Levels with attention to pixels and text.",
        expected="a tuple of True or False, one per level",
    )
    head_channels: int = key(64, "Channels of an attention head.", ge=1, le=MAX_CHANNELS)
    text_dim: int = key(
        2816,
        "Channels that text embeddings are projected to.",
        expected="a multiple of 32",
        ge=32,
        le=MAX_CHANNELS,
        multiple_of=32,
    )
    text_pool_heads: int = key(64, "Heads of the attention pooling of the text.", ge=1, le=1024)
    num_groups: int = key(32, "Groups of each GroupNorm of images.", ge=1, le=MAX_CHANNELS)
    cond_dim: int = key(0, "Width of the conditioning vector; 0: four times the first level's.", ge=0, le=MAX_CHANNELS)
    activation: str = key("gelu", "Activation of the network.", choices=ACTIVATIONS)
    activate_once: bool = key(False, "Apply a GELU to the conditioning vector once, and none in each block.")
    res_scale: float = key(1.0, "What each residual block's sum is divided by.", gt=0)
    middle_scale: float = key(1.0, "The same of the blocks between down and up path.", gt=0)
    dropout: float = key(0.0, "Fraction of activations dropped in training.", ge=0, lt=1)
    dtype: str = key("bfloat16", "Compute type; parameters, norms and softmax stay float32.", choices=DTYPES)

    @property
    def side_multiple(self) -> int:
        """What the sides of images must be multiples of."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def level_keys(self) -> tuple[str, str]:
        """See `NetworkKeys`."""
        return "widths", "attention"

    @property
    def attending_widths(self) -> set[int]:
        """See `NetworkKeys`; there always is attention between down and up path, at the channels of the last level."""
        levels = zip(self.widths, self.attention, strict=False)
        return {width for width, attends in levels if attends} | {self.widths[-1]}

    @property
    def positions(self) -> int:
        """Cosines of a position embedding, see `NetworkKeys`: there is none."""
        return 0


class HVAEConfig(Group):
    """The hierarchical VAE, in place of a diffusion network; its objective is in `vae`."""

    network: Literal["hvae"] = key("hvae", "The network.", source="arXiv:2011.10650; arXiv:2007.03898")
    channels: int = key(64, "Channels of the first level.", ge=1, le=MAX_CHANNELS)
    channel_mult: Multiples = key(
        (1, 2, 2, 2),
        "Channels of each level, as multiples of `channels`; each level has half the size of the previous one.",
        expected="a tuple of integers in [1, 64], one per level",
        min_length=1,
    )
    num_res_blocks: Counts = key(
        (1, 1, 1, 1),
        "Residual blocks of each level of the encoder.",
        expected="a tuple of integers in [0, 256], one per level",
    )
    latent_groups: Counts = key(
        (4, 4, 2, 1),
        "Groups of latents of each level.",
        source="arXiv:2007.03898, Section 3",
        expected="a tuple of integers in [0, 256], one per level, the last above 0",
    )
    latent_channels: int = key(16, "Channels of the latents of a group.", ge=1, le=MAX_CHANNELS)
    attention_types: tuple[AttentionTypes, ...] = key(
        ((), (), (), ()),
        "Attention layers after each group of a level.",
        expected=f"a tuple for each level, of any of {KINDS}",
    )
    head_channels: int = key(64, "Channels of an attention head.", ge=1, le=MAX_CHANNELS)
    cond_dim_mult: int = key(1, "Width of the conditioning vector, as a multiple of `channels`.", ge=1, le=64)
    text_pool_heads: int = key(8, "Heads of the attention pooling of the text.", ge=1, le=1024)
    num_groups: int = key(32, "Groups of each GroupNorm.", ge=1, le=MAX_CHANNELS)
    dtype: str = key("bfloat16", "Compute type; parameters, norms, latents and bounds stay float32.", choices=DTYPES)

    @property
    def side_multiple(self) -> int:
        """What the sides of images must be multiples of."""
        return int(2 ** (len(self.channel_mult) - 1))

    @property
    def level_keys(self) -> tuple[str, str]:
        """See `NetworkKeys`."""
        return "channel_mult", "attention_types"

    @property
    def attending_widths(self) -> set[int]:
        """See `NetworkKeys`."""
        levels = zip(self.channel_mult, self.attention_types, strict=False)
        return {mult * self.channels for mult, kinds in levels if kinds}

    @property
    def positions(self) -> int:
        """Cosines of a position embedding, see `NetworkKeys`: there is none."""
        return 0

    @property
    def dropout(self) -> float:
        """Fraction of activations dropped in training: none."""
        return 0.0


class KLVAEConfig(Group):
    """The variational autoencoder whose latents another stage can be trained on: a codec."""

    network: Literal["kl_vae"] = key("kl_vae", "The network.", source="arXiv:2112.10752, Appendix E.1")
    latent_channels: int = key(4, "Channels of the latents.", ge=1, le=MAX_CHANNELS)
    channels: int = key(128, "Channels of the first level.", ge=1, le=MAX_CHANNELS)
    channel_mult: Multiples = key(
        (1, 2, 4, 4),
        "Channels of each level, as multiples of `channels`; each level has half the size of the previous one, and "
        "latents have that of the last.",
        expected="a tuple of integers in [1, 64], one per level",
        min_length=1,
    )
    num_res_blocks: Counts = key(
        (2, 2, 2, 2),
        "Residual blocks of each level of the encoder; the decoder has one more.",
        expected="a tuple of integers in [0, 256], one per level",
    )
    middle_attention: bool = key(True, "Whether the pixels of the smallest level attend to each other.")
    num_groups: int = key(32, "Groups of each GroupNorm.", ge=1, le=MAX_CHANNELS)
    dtype: str = key("bfloat16", "Compute type; parameters, norms and softmax stay float32.", choices=DTYPES)

    @property
    def side_multiple(self) -> int:
        """What the sides of images must be multiples of, and how many times smaller latents are."""
        return int(2 ** (len(self.channel_mult) - 1))

    @property
    def level_keys(self) -> tuple[str, str]:
        """See `NetworkKeys`; there is attention at the last level alone."""
        return "channel_mult", "num_res_blocks"

    @property
    def attending_widths(self) -> set[int]:
        """See `NetworkKeys`; there is one head, of any width."""
        return set()

    @property
    def positions(self) -> int:
        """Cosines of a position embedding, see `NetworkKeys`: there is none."""
        return 0

    @property
    def dropout(self) -> float:
        """Fraction of activations dropped in training: none."""
        return 0.0


ModelConfig = Annotated[
    UNetConfig | EfficientUNetConfig | IFUNetConfig | HVAEConfig | KLVAEConfig, Field(discriminator="network")
]


class VAEConfig(Group):
    """The likelihood and the objective of `model.network` "hvae"."""

    components: int = key(
        5,
        "Logistics that the distribution of a pixel is mixed of.",
        source="arXiv:1701.05517, Section 2.1",
        ge=1,
        le=64,
    )
    kl_warmup_steps: int = key(
        0,
        "Steps in which the weight of the KL divergences rises to 1.",
        unit="steps",
        source="arXiv:1602.02282",
        ge=0,
        le=MAX_COUNT,
    )
    kl_balancing: bool = key(
        False,
        "Weigh the divergence of groups that are used little less during warm-up.",
        source="arXiv:2007.03898, Appendix A",
    )
    importance_samples: int = key(
        16,
        "Samples of the importance-weighted bound in validation and evaluation.",
        unit="samples",
        source="arXiv:1509.00519, Eq. 8",
        ge=1,
        le=2**16,
    )


class CodecConfig(Group):
    """What the stage draws: pixels, or the latents of a variational autoencoder."""

    kind: str = key(
        "pixels",
        "Whether the stage draws pixels, or the latents of a codec, which decodes them to pixels.",
        choices=("pixels", "kl_vae"),
        source="arXiv:2112.10752",
    )
    path: PathText = key(
        "",
        "The stage with `model.network='kl_vae'` whose weights a new run takes, and keeps as its own; not needed with "
        "training.init_from, whose codec is taken.",
    )
    scale_images: int = key(
        1024,
        "Training images that a new run measures the mean and the deviation of latents on, which become 0 and 1.",
        unit="images",
        source="arXiv:2112.10752, Appendix G",
        ge=2,
        le=MAX_COUNT,
    )
    model: KLVAEConfig = key(KLVAEConfig(), "The network of the codec, as that of `path`.")

    @property
    def has_latents(self) -> bool:
        """Whether the stage draws latents."""
        return self.kind != "pixels"


class ReconstructionConfig(Group):
    """The objective of a codec: mean absolute error, KL divergence, and a discriminator of patches."""

    kl_weight: float = key(
        1e-6,
        "Weight of the KL divergence, in nats per value of an image.",
        source="arXiv:2112.10752, Appendix G",
        ge=0,
    )
    disc_weight: float = key(
        0.5,
        "Weight of the adversarial loss: the norm of its gradient at a reconstruction, relative to that of the mean "
        "absolute error; 0 for no discriminator.",
        source="arXiv:2012.09841, Eq. 7",
        ge=0,
        le=1000,
    )
    disc_start: int = key(50_000, "Steps before the discriminator plays.", unit="steps", ge=0, le=MAX_COUNT)
    disc_channels: int = key(64, "Channels of its first level.", ge=1, le=MAX_CHANNELS)
    disc_levels: int = key(
        3,
        "Its levels, each of half the size of the previous one.",
        source="arXiv:1611.07004, Appendix 6.1.2",
        ge=1,
        le=8,
    )


class DiffusionConfig(Group):
    """The diffusion process and its training objective."""

    schedule: str = key("cosine", "Noise schedule.", choices=SCHEDULES, source="arXiv:2102.09672, Eq. 17 (cosine)")
    schedule_shift: float = key(
        0.0, "Added to the schedule's logsnr.", source="arXiv:2301.11093, Section 3.1", ge=-20, le=20
    )
    aug_schedule: str = key("cosine", "Noise schedule of the low-resolution condition.", choices=SCHEDULES)
    aug_schedule_shift: float = key(0.0, "Added to the logsnr of aug_schedule.", ge=-20, le=20)
    aug_level_distribution: str = key(
        "uniform",
        "Distribution of the augmentation levels in training.",
        choices=DISTRIBUTIONS,
        source="arXiv:2106.15282, Section 4.2",
    )
    aug_level_range: Levels = key(
        (0.0, 1.0), "Lowest and highest level of `uniform`.", expected="two numbers in [0, 1], the lower one first"
    )
    aug_level_mean: float = key(-3.0, "Mean of ln(sigma / alpha) of `lognormal`.", source="arXiv:2311.15127")
    aug_level_std: float = key(0.5, "Standard deviation of ln(sigma / alpha) of `lognormal`.", gt=0)
    low_res_vae: PathText = key(
        "",
        "The folder of a trained VAE whose reconstructions of training images are the low-resolution images, at the "
        "full size: the stage refines what that VAE samples before it in a cascade. Empty downsamples them.",
        source="arXiv:2201.00308",
    )
    align_corners: bool = key(False, "Align the corner pixels when the low-resolution image is enlarged.")
    aug_after_resize: bool = key(
        False, "Add the noise of augmentation to the low-resolution image after it is enlarged, as DeepFloyd IF does."
    )
    prediction_type: str = key(
        "eps", "What the network predicts.", choices=PREDICTION_TYPES, source="arXiv:2202.00512, Appendix D (v)"
    )
    loss_weighting: str = key("simple", "Weight of the loss at each noise level.", choices=LOSS_WEIGHTINGS)
    loss_weighting_bias: float = key(
        0.0, "Bias of `sigmoid`.", unit="logsnr", source="arXiv:2303.00848, Section 5", ge=-40, le=40
    )
    min_snr_gamma: float = key(5.0, "Gamma of `min_snr`.", source="arXiv:2303.09556, Section 3.4", gt=0)
    sigma_data: float = key(
        0.5, "Standard deviation of the images, for `edm`.", source="arXiv:2206.00364, Table 1", gt=0
    )
    variance_type: str = key(
        "fixed",
        "Whether the network also learns the variances of reverse steps.",
        choices=("fixed", "learned"),
        source="arXiv:2102.09672, Section 3.1",
    )
    vlb_weight: float = key(
        1e-3, "Weight of the variational bound for `learned`.", source="arXiv:2102.09672, Eq. 16", gt=0
    )
    cond_drop_prob: float = key(
        0.1,
        "Probability that a caption is dropped in training, for guidance.",
        source="arXiv:2205.11487, Section 2.2",
        ge=0,
        le=1,
    )
    never_dropped: str = key(
        "",
        "A word: captions that have it are never dropped, so that it does not become what is drawn without text.",
    )
    null_text: str = key(
        "zero",
        "What replaces a dropped caption: no text, the empty caption, or the embedding stored beside the text encoder.",
        choices=("zero", "empty", "stored"),
    )


class InpaintingConfig(Group):
    """Training to inpaint: the network also sees an image, without what is to be drawn, and a mask."""

    enabled: bool = key(
        False, "Whether the stage is trained to inpaint.", source="arXiv:2212.06909, Section 3.1 (new channels)"
    )
    everything: float = key(
        0.2,
        "How often the mask covers all of the image, as in sampling without one, relative to the other masks.",
        ge=0,
    )
    boxes: float = key(
        0.4, "How often it is one to three rectangles.", source="arXiv:2212.06909, Section 3.2 (boxes)", ge=0
    )
    strokes: float = key(0.2, "How often it is one to three strokes of a brush.", ge=0)
    borders: float = key(0.2, "How often it is all but a rectangle, as in outpainting.", ge=0)
    objects: float = key(
        0.0,
        "How often it is an object with a margin, by its form or its bounding box; needs data with maps of objects.",
        source="arXiv:2212.06909, Section 3.2 (object masks)",
        ge=0,
    )

    @property
    def needs_objects(self) -> bool:
        """Whether training needs maps of objects."""
        return self.enabled and self.objects > 0


class OptimizerConfig(Group):
    """The optimizer, its learning rate and the EMA of parameters."""

    name: str = key(
        "adam",
        "Optimizer.",
        choices=("adam", "adafactor", "muon"),
        source="arXiv:2205.11487, Appendix F; arXiv:2502.16982 (muon)",
    )
    learning_rate: float = key(1e-4, "Peak learning rate.", gt=0, le=10)
    warmup_steps: int = key(10_000, "Steps of linear warm-up.", unit="steps", ge=0, le=MAX_COUNT)
    decay_steps: int = key(
        0,
        "Step at which the cosine decay ends; 0 for training.steps, so that the schedule follows the run's length.",
        unit="steps",
        ge=0,
        le=MAX_COUNT,
    )
    end_learning_rate: float = key(0.0, "Learning rate at the end of the decay, and after it.", ge=0, le=10)
    b1: float = key(0.9, "Decay of the running mean of gradients.", ge=0, lt=1)
    b2: float = key(0.99, "Decay of the running mean of squared gradients.", ge=0, lt=1)
    eps: float = key(1e-8, "Term that keeps Adam's denominator above 0.", gt=0, lt=1)
    first_moment_dtype: str = key(
        "float32", "Type of the running mean of gradients; bfloat16 saves two bytes per parameter.", choices=DTYPES
    )
    weight_decay: float = key(0.0, "Decoupled weight decay.", ge=0)
    rate_factors: RateFactors = key(
        (),
        "Pairs (regular expression of parameter paths, factor of the learning rate); the first match counts.",
        source="arXiv:1801.06146, Section 3.2",
        expected="a tuple of pairs such as (('^stem/', 0.1), ('attend', 1.0)), () for one learning rate",
    )
    clip_norm: float = key(1.0, "Global norm that gradients are clipped to.", gt=0)
    skip_norm: float = key(
        0.0,
        "Skip updates whose gradients have a larger global norm; 0 never skips for it.",
        source="arXiv:2011.10650, Section 3",
        ge=0,
    )
    spike_factor: SpikeFactor = key(
        0.0,
        "Skip updates whose loss is more than this multiple of the usual loss; 0 never skips for it.",
        expected="0, or a finite number above 1",
    )
    ema_decay: float = key(0.9999, "Decay of the EMA of parameters.", unit="per step", ge=0, lt=1)


class TrainingConfig(Group):
    """The training run."""

    batch_size: int = key(64, "Global batch size.", unit="examples", ge=1, le=2**24)
    grad_accum_steps: int = key(1, "Micro-batches that each batch is split into.", ge=1, le=2**24)
    remat: str = key("none", "What the backward pass computes again to save memory.", choices=REMAT_POLICIES)
    steps: int = key(500_000, "Steps of the run.", unit="steps", ge=1, le=MAX_COUNT)
    log_every: int = key(100, "Steps between log lines.", unit="steps", ge=1, le=MAX_COUNT)
    save_every: int = key(5000, "Steps between checkpoints.", unit="steps", ge=1, le=MAX_COUNT)
    preview_every: int = key(10_000, "Steps between previews.", unit="steps", ge=1, le=MAX_COUNT)
    preview_count: int = key(16, "Images of a preview.", unit="images", ge=1, le=4096)
    keep_checkpoints: int = key(2, "Latest checkpoints to keep.", ge=1, le=MAX_COUNT)
    keep_best: bool = key(
        False, "Also keep the checkpoint with the lowest validation loss, or the best by evaluation.best."
    )
    on_failed_save: str = key("stop", "What to do when a checkpoint cannot be written.", choices=("stop", "continue"))
    max_skipped_updates: int = key(
        10, "Skipped updates in a row after which the run ends.", unit="steps", ge=1, le=MAX_COUNT
    )
    stall_seconds: float = key(1800.0, "Duration of a step after which the run ends.", unit="s", gt=0)
    allow_batch_change: bool = key(False, "Allow a run to resume with another batch_size.")
    trainable: Texts = key(
        (),
        "Regular expressions for the paths of parameters to train; the others are frozen. Empty trains all.",
        expected="a tuple of regular expressions such as ('attention', '^out/'), () to train everything",
    )
    init_from: PathText = key(
        "",
        "The stage whose weights a new run starts from: its folder, or one of a published cascade, such as "
        "shapes/stage_0; empty for random ones.",
    )
    init_weights: str = key(
        "ema",
        "Which weights of init_from to take; `both` trains the raw ones, and continues the EMA instead of a new one.",
        choices=("ema", "raw", "both"),
    )
    init_partial: bool = key(
        False, "Take from init_from what fits by name, shape and type, and start the rest from random values."
    )


class AdapterConfig(Group):
    """What is trained in place of the network, which stays as it is."""

    kind: str = key(
        "none",
        "What is trained: the network; or beside it `lora`, low-rank changes of kernels, or `textual_inversion`, a "
        "word of the text encoder.",
        source="arXiv:2106.09685, arXiv:2208.01618",
        choices=("none", "lora", "textual_inversion"),
    )
    rank: int = key(8, "Rank of the changes.", ge=1, le=MAX_CHANNELS)
    alpha: float = key(0.0, "Changes are scaled by alpha / rank; 0 for alpha = rank.", ge=0, le=2**20)
    targets: Texts = key(
        (),
        "Regular expressions for the paths of modules whose kernels are adapted. Empty adapts all.",
        expected="a tuple of regular expressions such as ('attend', 'to_[qkv]'), () to adapt every kernel",
    )
    token: Text = key(
        "",
        "A word that is learned with its own rows in the text encoder's token table, by textual inversion alone or "
        "beside `lora`.",
    )
    initializer: Text = key("", "A word whose tokens the learned ones start as; empty starts at the mean of the table.")
    vectors: int = key(1, "Tokens that the word is made of.", unit="tokens", ge=1, le=MAX_ROWS)

    @property
    def enabled(self) -> bool:
        """Whether an adapter is trained."""
        return self.kind != "none"

    @property
    def scale(self) -> float:
        """What changes are scaled by, alpha / rank."""
        return self.alpha / self.rank if self.alpha else 1.0


class MeshConfig(Group):
    """The mesh of devices; one axis may be -1, for the devices that are left."""

    data: Devices = key(
        -1, "Devices that share batches.", expected="a number of devices, or -1 for those that are left"
    )
    fsdp: Devices = key(
        1,
        "Devices that share batches and parameters.",
        expected="a number of devices, or -1 for those that are left",
        source="arXiv:2004.13336",
    )
    spatial: Devices = key(
        1, "Devices that share the rows of each image.", expected="a number of devices, or -1 for those that are left"
    )

    @property
    def axes(self) -> dict[str, int]:
        """Axis sizes by name, as `sharding.make_mesh` takes them."""
        return self.to_dict()


class SamplingConfig(Group):
    """How images are sampled; each key is also a flag of `imagen sample`."""

    sampler: str = key(
        "ddpm",
        "Sampler.",
        choices=SAMPLERS,
        source="arXiv:2006.11239; arXiv:2010.02502; arXiv:2211.01095; arXiv:2206.00364",
    )
    timestep_spacing: str = key(
        "uniform",
        "How the times of the steps are spaced.",
        choices=TIMESTEP_SPACINGS,
        source="arXiv:2206.00364, Eq. 5 (karras)",
    )
    variance_type: str = key("small", "Variance of the steps of `ddpm`.", choices=VARIANCE_TYPES)
    eta: float = key(
        0.0, "Noise of `ddim`: 0 is deterministic, 1 has DDPM's.", source="arXiv:2010.02502, Eq. 16", ge=0, le=1
    )
    inversion_iterations: int = key(
        1,
        "Evaluations in each step of `ddim` from an image to its noise; with more, it returns closer to the image.",
        source="arXiv:2309.04907",
        ge=1,
        le=1000,
    )
    s_churn: float = key(0.0, "Noise that `heun` adds over all steps.", source="arXiv:2206.00364, Alg. 2", ge=0)
    s_tmin: float = key(0.05, "Lowest noise level sigma / alpha at which `heun` adds noise.", ge=0)
    s_tmax: float = key(
        50.0, "Highest noise level sigma / alpha at which `heun` adds noise; may be inf.", ge=0, allow_inf_nan=True
    )
    s_noise: float = key(1.003, "Standard deviation of the noise that `heun` adds, relative to the level.", ge=0)
    num_inference_steps: int = key(64, "Sampling steps.", unit="steps", ge=1, le=2**20)
    guidance_scale: float = key(
        1.0, "Classifier-free guidance weight; 1 is no guidance.", source="arXiv:2205.11487, Eq. 2"
    )
    guidance_interval: Interval = key(
        (0.0, 1.0),
        "Lowest and highest noise level with guidance; 0 is clean, 1 pure noise.",
        source="arXiv:2404.07724, Section 3",
        expected="two different numbers in [0, 1], the lower one first",
    )
    guidance_rescale: float = key(
        0.0,
        "How far guided predictions are rescaled to the deviation of unguided ones.",
        source="arXiv:2305.08891, Eq. 14-16",
        ge=0,
        le=1,
    )
    oscillating_guidance: bool = key(
        False, "Alternate between guidance_scale and guidance_low.", source="arXiv:2210.02303, Section 2.5"
    )
    guidance_low: float = key(1.0, "Weight in every second step of oscillating guidance.")
    guidance_warmup_steps: int = key(
        0, "Steps with guidance_scale before oscillating guidance begins.", unit="steps", ge=0, le=MAX_COUNT
    )
    threshold: str = key(
        "dynamic",
        "Thresholding of predicted images.",
        choices=("none", "static", "dynamic"),
        source="arXiv:2205.11487, Section 2.3",
    )
    dynamic_threshold_percentile: float = key(
        99.5, "Percentile of absolute pixel values for dynamic thresholding.", unit="%", gt=1, le=100
    )
    dynamic_threshold_max: ThresholdMax = key(
        0.0,
        "What dynamic thresholding divides by at most: 1 only clips, 0 is no limit.",
        expected="0, or a finite number of 1 or more",
    )
    aug_level: float = key(
        0.0,
        "Noise added to the low-resolution image in sampling.",
        source="arXiv:2205.11487, Section 2.3",
        ge=0,
        le=1,
    )
    tile_size: SizeValue = key(
        0,
        "Size of tiles to sample in; 0 samples full images.",
        unit="pixels",
        source="arXiv:2302.08113",
        expected=SIZE,
    )
    tile_overlap: int = key(0, "Pixels that neighboring tiles share.", unit="pixels", ge=0, le=MAX_SIDE)
    temperature: float = key(
        1.0, "Factor on the deviations of a VAE's prior.", source="arXiv:2007.03898, Section 4.2", ge=0, le=10
    )
    sample_pixels: bool = key(
        False, "Sample the pixels of a VAE from their distributions, in place of the distributions' means."
    )
    draft: PathText = key(
        "",
        "The folder of a VAE whose images, with noise, the base stage starts from; empty starts from noise alone.",
        source="arXiv:2108.01073; arXiv:2201.00308",
    )
    draft_strength: float = key(
        0.6, "How much noise the draft gets, and which share of the steps is taken; at 1 it is not seen.", gt=0, le=1
    )
    bits: int = key(8, "Bits per channel of the images.", choices=IMAGE_DTYPES)

    @property
    def tile_hw(self) -> Size:
        """(height, width) of `tile_size`, (0, 0) for full images."""
        return parse_size(self.tile_size, "sampling.tile_size")


def _with_tags(tree: Any, tags: Mapping[str, tuple[str, str]]) -> Any:
    """Returns a tree in which groups that do not name their source or network have the default one."""
    if not isinstance(tree, Mapping):
        return tree
    tree = dict(tree)
    for group, (tag, default) in tags.items():
        if isinstance(tree.get(group), Mapping):
            tree[group] = {tag: default, **tree[group]}
    return tree


class StageConfig(Group):
    """One stage of the cascade."""

    schema_version: Literal[2] = key(SCHEMA_VERSION, "Version of the config schema.", expected=str(SCHEMA_VERSION))
    seed: int = key(0, "Seed of parameters, shuffling and noise.", ge=0, le=MAX_SEED)
    image_size: SizeValue = key(64, "Size of the images.", unit="pixels", expected=SIZE)
    channels: int = key(3, "Channels of the images.", ge=1, le=MAX_CHANNELS)
    low_res_size: SizeValue = key(
        0,
        "Size of the images that a super-resolution stage enlarges, or a stage with diffusion.low_res_vae refines; 0 "
        "for a base.",
        unit="pixels",
        expected=SIZE,
    )
    data: DataConfig = key(ShapesData(), "The training data.")
    text: TextConfig = key(TextConfig(), "The text encoder.")
    model: ModelConfig = key(UNetConfig(), "The network.")
    diffusion: DiffusionConfig = key(DiffusionConfig(), "The diffusion process and objective.")
    vae: VAEConfig = key(VAEConfig(), "The likelihood and objective of a VAE.")
    inpainting: InpaintingConfig = key(InpaintingConfig(), "Training to inpaint.")
    codec: CodecConfig = key(CodecConfig(), "What the stage draws.")
    reconstruction: ReconstructionConfig = key(ReconstructionConfig(), "The objective of a codec.")
    optimizer: OptimizerConfig = key(OptimizerConfig(), "The optimizer.")
    training: TrainingConfig = key(TrainingConfig(), "The training run.")
    evaluation: SampleMetricsConfig = key(SampleMetricsConfig(), "Metrics of samples during training.")
    adapter: AdapterConfig = key(AdapterConfig(), "A low-rank adapter.")
    mesh: MeshConfig = key(MeshConfig(), "The mesh of devices.")
    sharding_rules: tuple[Any, ...] = key(
        (),
        "Pairs (regular expression of parameter paths, mesh axis of each dimension); the first match counts.",
        expected="a tuple of rules such as ('stem/kernel', (None, None, None, 'fsdp')), () for none",
    )
    sampling: SamplingConfig = key(SamplingConfig(), "How images are sampled.")

    @model_validator(mode="before")
    @classmethod
    def _fill_tags(cls, tree: Any) -> Any:
        return _with_tags(tree, {"data": ("source", "shapes"), "model": ("network", "unet")})

    @model_validator(mode="after")
    def _check_fit(self) -> Self:
        """Checks how values fit together, once all values are right."""
        fit.check_stage(self)
        return self

    @property
    def image_hw(self) -> Size:
        """(height, width) of the images."""
        return parse_size(self.image_size, "image_size")

    @property
    def low_res_hw(self) -> Size:
        """(height, width) of the images that the stage enlarges, (0, 0) for a base."""
        return parse_size(self.low_res_size, "low_res_size")

    @property
    def training_hw(self) -> Size:
        """(height, width) of what the network sees in training: of crops if there are any, otherwise of images."""
        return self.data.crop_hw if any(self.data.crop_hw) else self.image_hw

    @property
    def is_super_resolution(self) -> bool:
        """Whether the stage enlarges or refines images of another stage."""
        return any(self.low_res_hw)

    @property
    def refines(self) -> bool:
        """Whether the stage refines the images of a VAE, which have its own size."""
        return bool(self.diffusion.low_res_vae)

    @property
    def is_vae(self) -> bool:
        """Whether the stage is a VAE, and not a diffusion model."""
        return self.model.network == "hvae"

    @property
    def sampling_steps(self) -> int:
        """Steps in which the stage samples: those of the sampler, or the single one of a VAE."""
        return 1 if self.is_vae else self.sampling.num_inference_steps

    @property
    def is_codec(self) -> bool:
        """Whether the stage is a codec, which encodes and decodes images, and draws none."""
        return self.model.network == "kl_vae"

    @property
    def latent_factor(self) -> int:
        """How many times smaller than images the arrays are that the network sees: 1 for pixels."""
        return self.codec.model.side_multiple if self.codec.has_latents else 1

    @property
    def z_channels(self) -> int:
        """Channels of the arrays that the network sees: of the images, or of latents."""
        return self.codec.model.latent_channels if self.codec.has_latents else self.channels

    @property
    def side_multiple(self) -> int:
        """What the sides of images must be multiples of, in pixels."""
        return self.model.side_multiple * self.latent_factor


# evaluation and pretraining


class EvaluationConfig(Group):
    """What a cascade is scored on."""

    judge: str = key("", "Program that judges the images; empty for none.", choices=("", "shapes", "figures", "digits"))
    num_samples: int = key(512, "Images to sample.", unit="images", ge=1, le=MAX_COUNT)
    batch_size: int = key(16, "Images to sample at once.", unit="images", ge=1, le=2**24)
    seed: int = key(0, "Seed of the samples.", ge=0, le=MAX_SEED)
    data: DataConfig = key(ShapesData(), "Captions and reference images.")
    captions: PathText = key(
        "",
        "A file of captions in place of those of `data`: one a line; or .csv or .jsonl with `text` or `caption`.",
    )
    metrics: MetricsConfig = key(MetricsConfig(), "Metrics of the images by features.")

    @model_validator(mode="before")
    @classmethod
    def _fill_tags(cls, tree: Any) -> Any:
        return _with_tags(tree, {"data": ("source", "shapes")})


class T5Config(Group):
    """A T5 encoder, by the names of Hugging Face."""

    vocab_size: int = key(384, "Tokens: 256 bytes, 3 special ones, 125 sentinels.", ge=259, le=2**24)
    d_model: int = key(64, "Width of the embeddings.", ge=1, le=MAX_CHANNELS)
    d_kv: int = key(16, "Channels of a head.", ge=1, le=MAX_CHANNELS)
    d_ff: int = key(160, "Hidden width of the feed-forward layers.", ge=1, le=MAX_CHANNELS)
    num_layers: int = key(3, "Layers.", ge=1, le=1024)
    num_heads: int = key(4, "Heads.", ge=1, le=1024)
    relative_attention_num_buckets: int = key(32, "Buckets of relative positions.", ge=2, le=2**16)
    relative_attention_max_distance: int = key(128, "Distance from which positions share a bucket.", ge=2, le=2**16)
    layer_norm_epsilon: float = key(1e-6, "Epsilon of the norms.", gt=0, lt=1)
    feed_forward_proj: Text = key("gated-gelu", "Kind of feed-forward layer.", min_length=1)


class CaptionsConfig(Group):
    """The captions to pretrain on."""

    source: str = key("shapes", "The data set that the captions are of.", choices=("shapes", "figures"))
    seed: int = key(1, "Seed of the captions; not that of the stages' data.", ge=0, le=MAX_SEED)
    splits: Texts = key(
        ("train", "held_out"),
        "Splits to read; only images of held-out combinations are kept from training.",
        expected="a tuple of splits, not empty",
        min_length=1,
    )
    max_length: int = key(96, "Bytes of a caption.", unit="tokens", ge=2, le=2**16)
    pool: int = key(16, "Batches sorted by length together, to save padding.", unit="batches", ge=1, le=2**20)


class ProbeConfig(Group):
    """The linear probes of the embeddings."""

    train_captions: int = key(4000, "Captions to fit the probes to.", ge=1, le=MAX_COUNT)
    test_captions: int = key(2000, "Captions to test the probes on.", ge=1, le=MAX_COUNT)


class PretrainTextConfig(Group):
    """The training of the text encoder of the data set shapes, or of figures."""

    seed: int = key(0, "Seed of parameters and batches.", ge=0, le=MAX_SEED)
    encoder: T5Config = key(T5Config(), "The encoder.")
    data: CaptionsConfig = key(CaptionsConfig(), "The captions.")
    batch_size: int = key(64, "Captions per step.", unit="captions", ge=1, le=2**24)
    steps: int = key(3000, "Steps.", unit="steps", ge=1, le=MAX_COUNT)
    learning_rate: float = key(5e-3, "Peak learning rate.", gt=0, le=10)
    warmup_steps: int = key(100, "Steps of linear warm-up.", unit="steps", ge=0, le=MAX_COUNT)
    b2: float = key(0.99, "Decay of Adam's running mean of squared gradients.", ge=0, lt=1)
    clip_norm: float = key(1.0, "Global norm that gradients are clipped to.", gt=0)
    probe: ProbeConfig = key(ProbeConfig(), "The linear probes.")
