"""The judge accepts renders, also slightly blemished ones, and nothing else."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from imagen_jax.datasets.figures.captions import Description
from imagen_jax.datasets.figures.judge import compare, judge, outcomes
from imagen_jax.datasets.figures.reader import read
from imagen_jax.datasets.figures.render import render
from imagen_jax.datasets.figures.scenes import BACKGROUNDS, COLORS, GARMENTS, PATTERNS
from imagen_jax.datasets.figures.source import FiguresSource
from imagen_jax.errors import ConfigError

COUNT = 120


def described(figure):
    return Description(figure.garments, figure.background)


@pytest.fixture(scope="module")
def samples():
    """Returns (figure, what is read of its render) of samples."""
    sources = [FiguresSource(5, split, 64, COUNT) for split in ("train", "held_out")]
    return [(source.figure(i), read(source[i].image)) for source in sources for i in range(COUNT)]


def test_renders_are_correct(samples):
    descriptions = [described(figure) for figure, _ in samples]
    rows = outcomes([compare(reading, d) for (_, reading), d in zip(samples, descriptions, strict=True)], descriptions)
    assert set(rows) == {"garment", "color", "pattern", "top", "bottom", "dress", "background", "all"}
    for name, right in rows.items():
        assert len(right) >= 30
        assert np.mean(right) >= 0.985, name


@pytest.mark.parametrize("resolution, blur, noise, least", [(64, 0.5, 0.03, 0.93), (128, 0.0, 0.0, 0.97)])
def test_reading_is_robust(resolution, blur, noise, least):
    rng, source, right = np.random.default_rng(0), FiguresSource(6, "train", resolution, 60), []
    for i in range(60):
        pixels = ndimage.gaussian_filter(source[i].image / 255.0, (blur, blur, 0)) + rng.normal(0, noise, (1, 1, 3))
        pixels = pixels + rng.normal(0, noise, pixels.shape)
        image = np.uint8(np.clip(pixels, 0, 1) * 255 + 0.5)
        right.append(judge(image, described(source.figure(i))).all)
    assert np.mean(right) >= least


def other(names, name, rng):
    rest = [one for one in names if one != name]
    return rest[rng.integers(len(rest))]


@pytest.mark.parametrize("attribute", ["noun", "color", "pattern"])
def test_wrong_garments_are_rejected(samples, attribute):
    rng, column = np.random.default_rng(0), ("noun", "color", "pattern").index(attribute)
    judged = []
    for figure, reading in samples:
        garments = list(figure.garments)
        index = int(rng.integers(len(garments)))
        place, true = garments[index].place, getattr(garments[index], attribute)
        if place == "body" and attribute == "noun":
            continue
        names = {"noun": GARMENTS[place], "color": COLORS, "pattern": PATTERNS}[attribute]
        garments[index] = dataclasses.replace(garments[index], **{attribute: other(names, true, rng)})
        judgment = compare(reading, Description(tuple(garments)))
        judged.append((judgment.all, judgment.garments[index][column]))
    assert len(judged) > COUNT
    assert np.mean(judged) <= 0.01


def test_wrong_background_is_rejected(samples):
    rng = np.random.default_rng(0)
    for figure, reading in samples:
        wrong = Description(figure.garments, other(BACKGROUNDS, figure.background, rng))
        assert compare(reading, wrong).background is False
        assert not compare(reading, wrong).all


def test_dress_is_not_a_top_and_a_bottom(samples):
    dresses = [(figure, reading) for figure, reading in samples if len(figure.garments) == 1]
    outfits = [figure for figure, _ in samples if len(figure.garments) == 2]
    for (_, reading), figure in zip(dresses, outfits, strict=False):
        assert not any(all(match) for match in compare(reading, described(figure)).garments)


def test_images_without_a_person():
    figure = FiguresSource(0, "train", 64, 1).figure(0)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    empty = np.full((64, 64, 3), BACKGROUNDS[figure.background], np.uint8)
    for image in (noise, empty):
        assert not judge(image, described(figure)).all
    assert read(empty).garments == ()


def test_half_a_garment_is_not_read():
    figure = FiguresSource(0, "train", 64, 1).figure(0)
    image = render(figure, 64)
    image[:, 32:] = image[0, 0]
    assert not judge(image, described(figure)).all


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8), np.zeros((24, 24, 3), np.uint8)]
)
def test_other_images_raise(image):
    with pytest.raises(ConfigError, match="expected uint8"):
        read(image)
