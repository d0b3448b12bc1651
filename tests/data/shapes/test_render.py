import numpy as np
import pytest

from imagen_jax.data.shapes.render import coverage, render
from imagen_jax.data.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing
from imagen_jax.data.shapes.source import ShapesSource


@pytest.mark.parametrize("resolution", [8, 16, 33, 64, 100, 256])
def test_pictures_have_the_resolution_asked_for(resolution):
    image = ShapesSource(0, "train", resolution, 1)[0]["image"]
    assert image.shape == (resolution, resolution, 3)
    assert image.dtype == np.uint8


def test_colours_are_flat_and_exact():
    for colour, rgb in COLOURS.items():
        for background, ground in BACKGROUNDS.items():
            image = render(Scene((Thing("square", colour, "large", 0.5, 0.5, 0.2),), background), 64)
            assert tuple(image[32, 32]) == rgb
            assert tuple(image[0, 0]) == ground
            assert len(np.unique(image.reshape(-1, 3), axis=0)) <= 4  # the two, an edge and a corner


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centre", [0.0, 0.3, 0.5])
def test_coverage_is_the_part_of_the_pixel_inside_the_outline(shape, centre):
    """Against counting sub-pixels."""
    radius, fine = 7.3, 16
    d = np.arange(-10, 10, dtype=np.float32) + 0.5 - centre
    many = (np.arange(-10 * fine, 10 * fine, dtype=np.float32) + 0.5) / fine - centre
    inside = coverage(shape, many * fine, many * fine, radius * fine) > 0.5
    counted = inside.reshape(20, fine, 20, fine).mean((1, 3))
    error = np.abs(coverage(shape, d, d, radius) - counted)
    assert error.max() < 0.15
    assert error.mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_stay_within_their_radius(shape):
    image = render(Scene((Thing(shape, "red", "large", 0.5, 0.5, 0.2),), "white"), 200)
    rows, columns = np.nonzero((image != 255).any(-1))
    for pixels in (rows, columns):
        assert pixels.min() >= 60
        assert pixels.max() < 140
        assert (pixels.max() - pixels.min()) > 0.85 * 80  # and are about equally large


def test_a_picture_made_smaller_is_the_picture_drawn_small():
    """The stages of a cascade see one scene at several resolutions."""
    source, small = ShapesSource(0, "train", 64, 100), ShapesSource(0, "train", 16, 100)
    for i in range(100):
        shrunk = source[i]["image"].reshape(16, 4, 16, 4, 3).mean((1, 3))
        error = np.abs(shrunk - small[i]["image"])
        assert error.mean() < 0.7 * len(source.scene(i).things)  # all of it lies on their outlines
        assert error.max() < 64
