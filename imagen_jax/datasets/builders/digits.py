"""scikit-learn's handwritten digits as a TFDS data set with labels, from which a config makes captions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from imagen_jax.datasets.digits import DIGIT_NAMES, SIZE, load_split
from imagen_jax.images import png


class Digits(tfds.core.GeneratorBasedBuilder):
    """Builds the data set `digits`, see `imagen prepare --dataset=digits`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(DIGIT_NAMES)),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(*load_split(split), strict=True)):
            yield i, {"image": png.encode(image), "label": int(label)}
