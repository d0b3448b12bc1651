"""The keys of `data`: those of every source, and those of its parts if it is a mixture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from imagen_jax.config.fields import (
    MAX_COUNT,
    MAX_EXAMPLES,
    SIZE,
    Background,
    Group,
    PathText,
    SizeValue,
    SuffixValue,
    Text,
    Texts,
    key,
)
from imagen_jax.data.captions import CAPTION_FILES
from imagen_jax.data.transforms import CROPS
from imagen_jax.diffusion.keys import MAX_SEED
from imagen_jax.images.array import IMAGE_DTYPES, Size, parse_size


class TransformConfig(Group):
    """How image files become images of one size."""

    crop: str = key("center", "Which part to cut from images of another aspect ratio.", choices=CROPS)
    flip: bool = key(False, "Mirror half of the images in training; captions must not say left or right then.")
    background: Background = key(
        255,
        "What transparent pixels are composited on where the stage has fewer than 4 channels.",
        expected="a gray level in [0, 255], or three (R, G, B)",
    )
    upscale: bool = key(False, "Enlarge images smaller than image_size; otherwise they count as corrupt.")
    max_pixels: int = key(
        50_000_000,
        "Images with more pixels count as corrupt; each thread takes up to 12 bytes per pixel.",
        unit="pixels",
        ge=1,
        le=MAX_COUNT,
    )
    convert_profile: bool = key(
        True, "Convert colors to sRGB from the color profile in a file; a resumed run keeps its own."
    )


class BalanceConfig(Group):
    """A column whose values are drawn evenly, or by weights."""

    column: Text = key(..., "The metadata column.", min_length=1)
    weights: tuple[tuple[str | int, Annotated[float, Field(gt=0)]], ...] = key(
        (),
        "A weight for each value of the column; () draws all values equally often.",
        expected="pairs (value, weight), each weight a number above 0",
    )


class SourceKeys(Group):
    """Keys of every source, and of every part of a mixture."""

    bits: int = key(8, "Bits per channel of the images.", choices=IMAGE_DTYPES)
    balance: BalanceConfig | None = key(
        None, "Draw examples evenly by a column of their metadata.", expected="a group of keys: column, weights"
    )


class ShapesKeys(SourceKeys):
    """The `shapes` data set, rendered on the fly."""

    source: Literal["shapes"] = key("shapes", "The data source.")
    seed: int = key(0, "Seed of the scenes and captions.", ge=0, le=MAX_SEED)
    num_examples: int = key(10_000_000, "Examples of each split.", unit="examples", ge=1, le=MAX_EXAMPLES)
    transparent: bool = key(False, "Render without a background, as RGBA.")


class FiguresKeys(SourceKeys):
    """The `figures` data set, people in garments, rendered on the fly."""

    source: Literal["figures"] = key("figures", "The data source.")
    seed: int = key(0, "Seed of the figures and captions.", ge=0, le=MAX_SEED)
    num_examples: int = key(10_000_000, "Examples of each split.", unit="examples", ge=1, le=MAX_EXAMPLES)


class DigitsKeys(SourceKeys):
    """Handwritten digits of scikit-learn."""

    source: Literal["digits"] = key("digits", "The data source.")


class FashionMnistKeys(SourceKeys):
    """Fashion-MNIST, 70,000 photos of garments."""

    source: Literal["fashion_mnist"] = key("fashion_mnist", "The data source.", source="arXiv:1708.07747")
    path: PathText = key(
        "/usr/share/datasets/fashion-mnist",
        "The folder of its four .gz files, where Debian's package `dataset-fashion-mnist` has them by default.",
        min_length=1,
    )


_CAPTION_FILES_TEXT = "What is a caption in a text file: each of its lines, or the whole file."


class FolderKeys(SourceKeys):
    """A folder of image files."""

    source: Literal["folder"] = key("folder", "The data source.")
    path: PathText = key("", "The folder, on this machine or in a bucket (gs://BUCKET/DIR).")
    caption_column: Text = key("text", "The caption column of metadata.jsonl, .csv or .parquet.", min_length=1)
    caption_suffix: SuffixValue = key(
        ".txt",
        "Suffix of caption files, in place of the image's or after it; of several, the first that an image has counts.",
        expected="a suffix such as '.caption', or a tuple of them",
    )
    caption_files: str = key("lines", _CAPTION_FILES_TEXT, choices=CAPTION_FILES)
    captions_from_file_names: bool = key(
        False, "Take the name of an image for its caption if it has no other; underscores become blanks."
    )
    objects_suffix: Text = key(
        "",
        "What follows an image's name, without its suffix, in that of its map of objects, such as '.objects.png' for "
        "'fox.objects.png' beside 'fox.jpg'; empty if there are none.",
    )
    validation_fraction: float = key(
        0.01, "Fraction of the images in the validation split, chosen by hashes of their paths.", ge=0, le=1
    )


class TfdsKeys(SourceKeys):
    """A data set that TensorFlow Datasets has prepared."""

    source: Literal["tfds"] = key("tfds", "The data source.")
    path: PathText = key("", "The folder of the prepared data set, or its name below ~/tensorflow_datasets.")
    image: Text = key("image", "The feature with the image.", min_length=1)
    captions: Texts = key((), "Features with captions or classes; () has none.", expected="a tuple of texts")
    templates: Texts = key(
        ("{}",), "Templates of captions; {} stands for the text or the class.", expected="a tuple of texts"
    )


class WebDatasetKeys(SourceKeys):
    """Tar shards as WebDataset and img2dataset write them."""

    source: Literal["webdataset"] = key("webdataset", "The data source.")
    shards: dict[str, PathText | tuple[PathText, ...]] = key(
        {},
        "Tar files or folders of each split, such as {'train': 'gs://BUCKET/{00000..00099}.tar'}.",
        expected="a group of splits, not empty, each with a text or a tuple of texts",
        min_length=1,
    )
    caption_files: str = key("lines", _CAPTION_FILES_TEXT, choices=CAPTION_FILES)


class ParquetKeys(SourceKeys):
    """Parquet files with images, as data sets on the Hugging Face Hub have them."""

    source: Literal["parquet"] = key("parquet", "The data source.")
    path: PathText = key(
        "", "A Parquet file, a folder of them, or a pattern such as DIR/*.parquet; here or in a bucket."
    )
    image_column: Text = key("image", "The column of images: structs {bytes, path}, or binary.", min_length=1)
    caption_column: Text = key("text", "The column of captions: text, or lists of text; '' has none.")
    validation_fraction: float = key(
        0.01, "Fraction of the rows for training in the validation split, if no file is named after it.", ge=0, le=1
    )
    cache_dir: PathText = key(
        "~/.cache/imagen_jax/parquet", "A folder on a local disk for copies with random access.", min_length=1
    )


class MixtureKeys(SourceKeys):
    """Several sources, sampled by weights."""

    source: Literal["mixture"] = key("mixture", "The data source.")
    parts: dict[str, PartConfig] = key(
        {},
        "Sources by name, each a group with source, weight and the keys of its source.",
        expected="a group of parts, not empty, each with source, weight and the keys of its source",
        min_length=1,
    )


class PartKeys(Group):
    """Keys of each part of a mixture."""

    weight: float = key(..., "Relative frequency of the part's examples.", gt=0)


class ShapesPart(ShapesKeys, PartKeys):
    """A part of a mixture."""


class FiguresPart(FiguresKeys, PartKeys):
    """A part of a mixture."""


class DigitsPart(DigitsKeys, PartKeys):
    """A part of a mixture."""


class FashionMnistPart(FashionMnistKeys, PartKeys):
    """A part of a mixture."""


class FolderPart(FolderKeys, PartKeys):
    """A part of a mixture."""


class TfdsPart(TfdsKeys, PartKeys):
    """A part of a mixture."""


class WebDatasetPart(WebDatasetKeys, PartKeys):
    """A part of a mixture."""


class ParquetPart(ParquetKeys, PartKeys):
    """A part of a mixture."""


class MixturePart(MixtureKeys, PartKeys):
    """A part of a mixture."""


class LoadingKeys(Group):
    """Keys of every data group."""

    split: Text = key("train", "The split to train on, or to evaluate on.", min_length=1)
    validation_split: Text = key("validation", "The split of previews and validation losses.", min_length=1)
    crop_size: SizeValue = key(
        0,
        "Size of random crops to train on; 0 trains on full images.",
        unit="pixels",
        source="arXiv:2205.11487, Section 2.3",
        expected=SIZE,
    )
    threads: int = key(16, "Threads that read and decode.", ge=1, le=1024)
    prefetch: int = key(16, "Batches to keep ready.", unit="batches", ge=1, le=2**20)

    @property
    def crop_hw(self) -> Size:
        """(height, width) of `crop_size`, (0, 0) for full images."""
        return parse_size(self.crop_size, "data.crop_size")

    @property
    def bucket_hws(self) -> tuple[Size, ...]:
        """(height, width) of each further size to train on."""
        return ()


class FileKeys(LoadingKeys):
    """Keys of sources of image files."""

    allow_no_captions: bool = key(False, "Train without text on data that have no caption at all.")
    max_corrupt: float = key(0.01, "Fraction of corrupt images at which a run stops.", ge=0, le=1)
    transform: TransformConfig = key(TransformConfig(), "How image files become images of image_size.")
    buckets: tuple[SizeValue, ...] = key(
        (), "Further sizes to train on, for images of other aspect ratios.", expected="a tuple of sizes, () for none"
    )

    @property
    def bucket_hws(self) -> tuple[Size, ...]:
        """(height, width) of each of `buckets`."""
        return tuple(parse_size(size, "data.buckets") for size in self.buckets)


class ShapesData(ShapesKeys, LoadingKeys):
    """`data` of the `shapes` data set."""


class FiguresData(FiguresKeys, LoadingKeys):
    """`data` of the `figures` data set."""


class DigitsData(DigitsKeys, LoadingKeys):
    """`data` of the digits."""


class FashionMnistData(FashionMnistKeys, LoadingKeys):
    """`data` of Fashion-MNIST."""


class FolderData(FolderKeys, FileKeys):
    """`data` of a folder."""


class TfdsData(TfdsKeys, FileKeys):
    """`data` of TensorFlow Datasets."""


class WebDatasetData(WebDatasetKeys, FileKeys):
    """`data` of tar shards."""


class ParquetData(ParquetKeys, FileKeys):
    """`data` of Parquet files."""


class MixtureData(MixtureKeys, FileKeys):
    """`data` of a mixture."""


PartConfig = Annotated[
    ShapesPart
    | FiguresPart
    | DigitsPart
    | FashionMnistPart
    | FolderPart
    | TfdsPart
    | WebDatasetPart
    | ParquetPart
    | MixturePart,
    Field(discriminator="source"),
]
DataConfig = Annotated[
    ShapesData
    | FiguresData
    | DigitsData
    | FashionMnistData
    | FolderData
    | TfdsData
    | WebDatasetData
    | ParquetData
    | MixtureData,
    Field(discriminator="source"),
]

for _model in (MixtureKeys, MixturePart, MixtureData):
    _model.model_rebuild()
