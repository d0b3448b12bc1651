import re

import numpy as np
import pytest

from imagen_jax.datasets.figures.byte_labels import FIGURES_LABELS
from imagen_jax.datasets.figures.captions import (
    MAX_BYTES,
    Description,
    parse_caption,
    sample_caption,
    sample_description,
)
from imagen_jax.datasets.figures.figure_sampling import sample_figure
from imagen_jax.datasets.figures.scenes import Garment
from imagen_jax.datasets.generated import SPLITS
from imagen_jax.errors import ConfigError


@pytest.fixture(scope="module")
def worded():
    rng = np.random.default_rng(0)
    figures = [sample_figure(split, rng) for split in SPLITS for _ in range(1000)]
    descriptions = [sample_description(figure, rng) for figure in figures]
    return [(figure, d, sample_caption(d, rng)) for figure, d in zip(figures, descriptions, strict=True)]


def test_parse_inverts_sample(worded):
    for _, description, caption in worded:
        assert parse_caption(caption) == description, caption


def test_descriptions_are_of_figures(worded):
    for figure, description, _ in worded:
        assert description.garments == figure.garments
        assert description.background in ("", figure.background)
    assert 0.4 < np.mean([bool(description.background) for _, description, _ in worded]) < 0.6


def test_captions_are_short_lower_case_ascii(worded):
    assert max(len(caption.encode("ascii")) for _, _, caption in worded) <= MAX_BYTES
    assert all(caption == caption.lower() for _, _, caption in worded)


def test_parse_example():
    shirt, trousers = Garment("shirt", "red", "striped"), Garment("trousers", "blue", "plain")
    for text in (
        "a person in a red striped shirt and blue trousers",
        "Person wearing blue plain trousers and a red striped shirt.",
    ):
        assert parse_caption(text) == Description((shirt, trousers))
    assert parse_caption("on a grey background, a person in an orange dress") == Description(
        (Garment("dress", "orange", "plain"),), "gray"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a person in a red shirt",
        "a person in a shirt and blue trousers",
        "a person in a red shirt and a blue vest",
        "a person in a red dress and blue trousers",
        "a person in a striped red shirt and blue trousers",
        "a person in a red shirt and blue trousers on a red background",
    ],
)
def test_parse_error_names_text(text):
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        parse_caption(text)


def test_labels_name_garments_at_their_bytes():
    caption = "a person in blue trousers and a red striped shirt on a mint background"
    labels = FIGURES_LABELS(caption, 96)
    values = list(FIGURES_LABELS.attributes.values())

    def at(byte):
        return [of[index] if index >= 0 else None for of, index in zip(values, labels[byte], strict=True)]

    worn = ["shirt", "red", "striped", "trousers", "blue", "plain", "mint"]
    assert at(caption.index("trousers")) == ["trousers", "blue", "plain", *worn]
    assert at(caption.index("striped")) == ["shirt", "red", "striped", *worn]
    assert at(0) == at(len(caption)) == [None, None, None, *worn]
    assert (labels[len(caption) + 1 :] == -1).all()


def test_labels_fit_the_encoder(worded):
    assert sum(map(len, FIGURES_LABELS.attributes.values())) <= 64
    for _, description, caption in worded[:100]:
        spans = FIGURES_LABELS.spans(caption)
        assert [span.values for span in spans] == [
            (garment.noun, garment.color, garment.pattern) for garment in description.garments
        ]
        assert all(caption[span.start : span.end].endswith(span.values[0]) for span in spans)
