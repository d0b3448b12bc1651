import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from imagen_jax.datasets.figures.render import object_map, render
from imagen_jax.datasets.figures.scenes import BACKGROUNDS, COLORS, GARMENTS, PATTERN_COLOR, Garment
from imagen_jax.datasets.figures.source import FiguresSource


@pytest.fixture(scope="module")
def figures():
    source = FiguresSource(0, "train", 64, 40)
    return [source.figure(i) for i in range(40)]


@pytest.mark.parametrize("resolution", [16, 33, 64, (48, 96)])
def test_render_resolution(figures, resolution):
    image, labels = render(figures[0], resolution), object_map(figures[0], resolution)
    assert image.dtype == labels.dtype == np.uint8
    assert image.shape == (*labels.shape, 3)
    assert labels.shape == (resolution if isinstance(resolution, tuple) else (resolution, resolution))
    assert tuple(image[0, 0]) == BACKGROUNDS[figures[0].background]


def test_bits(figures):
    small, large = render(figures[0], 32), render(figures[0], 32, bits=16)
    assert large.dtype == np.uint16
    assert np.abs(large / 257 - small).max() < 0.6


def test_figures_stay_within_the_image(figures):
    for figure in figures:
        image = render(figure, 64)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border == BACKGROUNDS[figure.background]).all()


def test_labels_are_of_garments(figures):
    for figure in figures:
        assert set(np.unique(object_map(figure, 64))) == set(range(len(figure.garments) + 1))


def test_garment_changes_nothing_outside_its_label(figures):
    """All that a garment of a place may cover is in the map with a margin, so that a mask hides all of the old one."""
    for figure in figures:
        labels = object_map(figure, 64)
        for index, garment in enumerate(figure.garments):
            for noun in GARMENTS[garment.place]:
                new = Garment(noun, "red" if garment.color != "red" else "blue", "dotted")
                garments = (*figure.garments[:index], new, *figure.garments[index + 1 :])
                other = dataclasses.replace(figure, garments=garments)
                changed = (render(figure, 64) != render(other, 64)).any(-1)
                area = ndimage.binary_dilation(labels == index + 1, np.ones((5, 5)))
                assert not (changed & ~area).any(), (garment, noun)
                assert changed.any()


def test_map_does_not_depend_on_garments(figures):
    """Else a mask would tell a sweater from a vest, and the network would not read the prompt."""
    for figure in figures:
        garments = tuple(Garment(GARMENTS[garment.place][0], "red", "plain") for garment in figure.garments)
        other = dataclasses.replace(figure, garments=garments)
        np.testing.assert_array_equal(object_map(figure, 32), object_map(other, 32))


@pytest.mark.parametrize("pattern, low, high", [("plain", 0.0, 0.0), ("striped", 0.3, 0.5), ("dotted", 0.15, 0.4)])
def test_patterns_are_white_in_part(figures, pattern, low, high):
    figure = dataclasses.replace(figures[0], garments=(Garment("dress", "blue", pattern),))
    chest = render(figure, 512)[object_map(figure, 512) == 1]
    colored, white = ((chest == np.array(color)).all(-1).sum() for color in (COLORS["blue"], PATTERN_COLOR))
    assert low <= white / (white + colored) <= high
