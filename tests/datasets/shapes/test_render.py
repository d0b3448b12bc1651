import itertools

import numpy as np
import pytest

from imagen_jax.datasets.shapes.render import coverage, render
from imagen_jax.datasets.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, SceneObject
from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.images.array import alpha_composite, to_uint8


@pytest.mark.parametrize("resolution", [8, 16, 33, 64, 100, 256])
def test_render_resolution(resolution):
    image = ShapesSource(0, "train", resolution, 1)[0].image
    assert image.shape == (resolution, resolution, 3)
    assert image.dtype == np.uint8


def test_colors_are_exact():
    for color, rgb in COLORS.items():
        for background, ground in BACKGROUNDS.items():
            image = render(Scene((SceneObject("square", color, "large", 0.5, 0.5, 0.2),), background), 64)
            assert tuple(image[32, 32]) == rgb
            assert tuple(image[0, 0]) == ground
            assert len(np.unique(image.reshape(-1, 3), axis=0)) <= 4  # the two, an edge and a corner


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centre", [0.0, 0.3, 0.5])
def test_coverage_is_area_fraction(shape, centre):
    """Compares with supersampling."""
    radius, fine = 7.3, 16
    d = np.arange(-10, 10, dtype=np.float32) + 0.5 - centre
    many = (np.arange(-10 * fine, 10 * fine, dtype=np.float32) + 0.5) / fine - centre
    inside = coverage(shape, many * fine, many * fine, radius * fine) > 0.5
    counted = inside.reshape(20, fine, 20, fine).mean((1, 3))
    error = np.abs(coverage(shape, d, d, radius) - counted)
    assert error.max() < 0.15
    assert error.mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_stay_within_radius(shape):
    image = render(Scene((SceneObject(shape, "red", "large", 0.5, 0.5, 0.2),), "white"), 200)
    rows, columns = np.nonzero((image != 255).any(-1))
    for pixels in (rows, columns):
        assert pixels.min() >= 60
        assert pixels.max() < 140
        assert (pixels.max() - pixels.min()) > 0.85 * 80  # and are about equally large


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (60, 240)])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_keep_form_at_any_aspect(shape, size):
    """Only their positions are stretched."""
    square, other = (
        render(Scene((SceneObject(shape, "red", "large", 30 / width, 30 / height, 0.2),), "white"), (height, width))
        for height, width in ((60, 60), size)
    )
    assert other.shape == (*size, 3)
    np.testing.assert_allclose(other[:60, :60].astype(int), square, atol=1)
    assert (other[60:] == 255).all()
    assert (other[:, 60:] == 255).all()


def test_objects_do_not_touch_at_any_aspect():
    for size in ((32, 64), (64, 32)):
        source = ShapesSource(0, "train", size, 300)
        for i in range(300):
            scene = source.scene(i)
            boxes = [(thing.x * size[1], thing.y * size[0], thing.radius * min(size)) for thing in scene.objects]
            for x, y, radius in boxes:
                assert radius < x < size[1] - radius
                assert radius < y < size[0] - radius
            for (x, y, radius), (other_x, other_y, other_radius) in itertools.combinations(boxes, 2):
                assert max(abs(x - other_x), abs(y - other_y)) > radius + other_radius


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_transparent_image_composites_to_opaque(background, bits):
    source = ShapesSource(0, "train", 32, 40)
    for i in range(40):
        scene = Scene(source.scene(i).objects, background)
        transparent = render(scene, (32, 48), bits, transparent=True)
        assert transparent.shape == (32, 48, 4)
        laid = alpha_composite(to_uint8(transparent), np.array(BACKGROUNDS[background]))
        np.testing.assert_allclose(laid.astype(int), render(scene, (32, 48)), atol=1)


def test_transparent_colors_are_unmixed():
    image = render(Scene((SceneObject("circle", "blue", "large", 0.5, 0.5, 0.2),), "tan"), 64, transparent=True)
    covered = image[..., 3] > 0
    assert {tuple(rgb) for rgb in image[covered][:, :3]} == {COLORS["blue"]}
    assert {tuple(rgba) for rgba in image[~covered]} == {(255, 255, 255, 0)}
    assert ((image[..., 3] > 0) & (image[..., 3] < 255)).sum() > 20


def test_16_bit_render_rounds_to_8_bit():
    source, finer = (ShapesSource(0, "train", 32, 20, bits=bits) for bits in (8, 16))
    between = 0
    for i in range(20):
        usual, fine = source[i].image, finer[i].image
        assert fine.dtype == np.uint16
        np.testing.assert_allclose(fine / 257, usual, atol=0.51)
        between += (fine % 257 > 0).sum()
    assert between > 1000


def test_downsampled_render_matches_small_render():
    """The stages of a cascade are trained on one scene at several resolutions."""
    source, small = ShapesSource(0, "train", 64, 100), ShapesSource(0, "train", 16, 100)
    for i in range(100):
        shrunk = source[i].image.reshape(16, 4, 16, 4, 3).mean((1, 3))
        error = np.abs(shrunk - small[i].image)
        assert error.mean() < 0.7 * len(source.scene(i).objects)  # all of it lies on their outlines
        assert error.max() < 64


def test_object_map_has_a_number_for_each_object():
    source = ShapesSource(0, "train", (48, 64), 40)
    for index in range(40):
        scene, objects, image = source.scene(index), source.objects(index), source[index].image
        assert objects.shape == (48, 64)
        assert sorted(np.unique(objects)) == list(range(len(scene.objects) + 1))
        for number, item in enumerate(scene.objects, 1):
            # pixels at an edge are mixed with the background
            error = np.abs(image[objects == number].astype(float) - COLORS[item.color]).max(1)
            assert np.mean(error < 3) > 0.5
            rows, columns = (objects == number).nonzero()
            center = item.y * 48 - 0.5, item.x * 64 - 0.5
            middle = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
            np.testing.assert_allclose(middle, center, atol=2)
        error = np.abs(image[objects == 0].astype(float) - BACKGROUNDS[scene.background]).max(1)
        assert np.mean(error < 3) > 0.9
