"""The judge accepts renders, also slightly blemished ones, and nothing else."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from scipy import ndimage

from imagen_jax.datasets.shapes import scenes
from imagen_jax.datasets.shapes.captions import parse_caption
from imagen_jax.datasets.shapes.descriptions import Claim, Description, category
from imagen_jax.datasets.shapes.detect import detect
from imagen_jax.datasets.shapes.judge import compare, judge, score, wilson_interval
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import BACKGROUNDS, COLORS, NEW_SHAPES, SHAPES, Scene, SceneObject
from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.errors import ConfigError

ATTRIBUTES = ("objects", "colour", "shape", "size", "count", "position", "relation", "attribute binding", "background")


@pytest.fixture(scope="module")
def samples():
    """Returns (scene, full description, detected scene) of samples."""
    examples = []
    for split in ("train", "held_out"):
        source = ShapesSource(11, split, 64, 400)
        for i in range(400):
            scene = source.scene(i)
            examples.append((scene, said_in_full(scene), detect(source[i].image)))
    return examples


def said_in_full(scene):
    kind, things = scenes.scene_type(scene), scene.objects
    if kind == "pair":
        claims = tuple(Claim(1, t.size, t.color, t.shape) for t in things)
        relation = scenes.spatial_relation(*((t.x, t.y) for t in things))
        return Description(claims, relation, scene.background)
    position = scenes.grid_position(things[0].x, things[0].y) if kind == "single" else ""
    claim = Claim(len(things), things[0].size, things[0].color, things[0].shape, position)
    return Description((claim,), background=scene.background)


def blemished(image, rng, blur, noise):
    pixels = ndimage.gaussian_filter(image / 255.0, (blur, blur, 0)) + rng.normal(0, noise, image.shape)
    return np.uint8(np.clip(pixels, 0, 1) * 255 + 0.5)


def test_renders_are_correct(samples):
    outcomes = collections.defaultdict(list)
    for _, description, scene_seen in samples:
        for attribute, right in dataclasses.asdict(compare(scene_seen, description)).items():
            if right is not None:
                outcomes[attribute].append(right)
    assert len(outcomes) == 10
    for attribute, right in outcomes.items():
        assert len(right) >= 80
        assert np.mean(right) >= 0.995, attribute


def test_detected_positions(samples):
    for scene, _, scene_seen in samples:
        for thing in scene.objects:
            detection = min(scene_seen.objects, key=lambda f: abs(f.x - thing.x) + abs(f.y - thing.y))
            assert (detection.x, detection.y, detection.radius) == pytest.approx(
                (thing.x, thing.y, thing.radius), abs=0.005
            )
            assert detection.iou > 0.95


@pytest.mark.parametrize(
    ("split", "resolution", "blur", "noise", "least"),
    [
        ("train", 64, 0.7, 0.05, 0.98),
        ("held_out", 64, 0.7, 0.05, 0.98),
        ("train", 32, 0.0, 0.0, 0.98),
        ("train", 32, 0.35, 0.03, 0.98),
        ("train", 128, 0.0, 0.0, 0.995),
        ("train", 128, 1.4, 0.05, 0.98),
        ("held_out", (48, 96), 0.35, 0.03, 0.98),
        ("train", (96, 64), 0.7, 0.05, 0.98),
    ],
)
def test_detection_is_robust(split, resolution, blur, noise, least):
    rng = np.random.default_rng(0)
    number = 100 if resolution == 128 else 300
    source = ShapesSource(12, split, resolution, number)
    images = [blemished(source[i].image, rng, blur, noise) for i in range(number)]
    table = score(images, [said_in_full(source.scene(i)) for i in range(number)])
    for attribute in (*ATTRIBUTES, "all"):
        assert table[attribute]["rate"] >= least, attribute


def test_detected_positions_at_any_aspect():
    source = ShapesSource(11, "train", (48, 96), 60)
    for i in range(60):
        scene_seen = detect(source[i].image)
        for thing in source.scene(i).objects:
            detection = min(scene_seen.objects, key=lambda f: abs(f.x - thing.x) + abs(f.y - thing.y))
            assert (detection.x, detection.y, detection.radius) == pytest.approx(
                (thing.x, thing.y, thing.radius), abs=0.008
            )


@pytest.mark.parametrize("shift", [(18, 0, 0), (0, -18, 0), (10, 10, -10), (-10, 0, 15)])
def test_slight_color_error_is_tolerated(shift):
    source = ShapesSource(13, "train", 64, 60)
    images = [np.uint8(np.clip(source[i].image + np.array(shift), 0, 255)) for i in range(60)]
    assert score(images, [source.description(i) for i in range(60)])["all"]["rate"] >= 0.98


# Ways to make one claim of a full description wrong; None if it has no such claim.


def other(of, true, rng):
    rest = [name for name in of if name not in true]
    return rest[rng.integers(len(rest))]


def with_claim(description, which, **changes):
    claims = list(description.claims)
    claims[which] = dataclasses.replace(claims[which], **changes)
    return dataclasses.replace(description, claims=tuple(claims))


def wrong_color(d, rng):
    return with_claim(d, rng.integers(len(d.claims)), color=other(COLORS, {c.color for c in d.claims}, rng))


def wrong_shape(d, rng):
    return with_claim(d, rng.integers(len(d.claims)), shape=other(SHAPES, {c.shape for c in d.claims}, rng))


def wrong_size(d, rng):
    which = rng.integers(len(d.claims))
    return with_claim(d, which, size={"small": "large", "large": "small"}[d.claims[which].size])


def wrong_count(d, rng):
    count = d.claims[0].count
    return with_claim(d, 0, count=other((1, 2, 3, 4), {count}, rng)) if count > 1 else None


def wrong_position(d, rng):
    claim = d.claims[0]
    return with_claim(d, 0, position=other(scenes.POSITIONS, {claim.position}, rng)) if claim.position else None


def wrong_relation(d, rng):
    return dataclasses.replace(d, relation=other(scenes.RELATIONS, {d.relation}, rng)) if d.relation else None


def wrong_background(d, rng):
    return dataclasses.replace(d, background=other(BACKGROUNDS, {d.background}, rng))


def swapped_colors(d, rng):
    if len({claim.color for claim in d.claims}) < 2 or len({claim.shape for claim in d.claims}) < 2:
        return None
    first, second = d.claims
    return with_claim(with_claim(d, 0, color=second.color), 1, color=first.color)


WRONG = {
    wrong_color: "color",
    wrong_shape: "shape",
    wrong_size: "size",
    wrong_count: "count",
    wrong_position: "position",
    wrong_relation: "relation",
    wrong_background: "background",
    swapped_colors: "binding",
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_wrong_captions_are_rejected(samples, change):
    rng = np.random.default_rng(0)
    changed = [(change(d, rng), scene_seen) for _, d, scene_seen in samples]
    judged = [(d, compare(scene_seen, d)) for d, scene_seen in changed if d is not None]
    assert len(judged) >= 120
    assert np.mean([not j.all for _, j in judged]) >= 0.98
    if WRONG[change] == "count":  # said of one object, the number is no count
        blamed = [j.objects for _, j in judged]
    else:
        blamed = [getattr(j, WRONG[change]) for _, j in judged]
    assert np.mean([right is False for right in blamed]) >= 0.98


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_wrong_captions_are_rejected_despite_blemishes(change):
    rng = np.random.default_rng(0)
    source = ShapesSource(14, "train", 64, 100)
    rejected = []
    for i in range(100):
        wrong = change(said_in_full(source.scene(i)), rng)
        if wrong is not None:
            rejected.append(not judge(blemished(source[i].image, rng, 0.7, 0.05), wrong).all)
    assert np.mean(rejected) >= 0.98


def test_swapped_binding_is_detected():
    image = draw(
        SceneObject("circle", "red", "large", 0.25, 0.5, 0.2), SceneObject("square", "blue", "large", 0.75, 0.5, 0.2)
    )
    true = judge(image, parse_caption("a red circle left of a blue square"))
    assert true.all
    assert true.binding
    swapped = judge(image, parse_caption("a blue circle left of a red square"))
    assert (swapped.objects, swapped.color, swapped.shape) == (True, True, True)
    assert (swapped.binding, swapped.all) == (False, False)
    turned = judge(image, parse_caption("a red circle right of a blue square"))
    assert (turned.color, turned.shape, turned.relation, turned.binding, turned.all) == (
        True,
        True,
        False,
        False,
        False,
    )


def draw(*things, background="white"):
    return render(Scene(things, background), 64)


def test_omitted_attributes_are_not_judged():
    judgment = judge(draw(SceneObject("ring", "red", "small", 0.5, 0.5, 0.12)), parse_caption("a red object"))
    assert judgment.all
    unsaid = (judgment.shape, judgment.size, judgment.count, judgment.position, judgment.relation)
    assert unsaid == (None,) * 5
    assert (judgment.binding, judgment.background) == (None, None)


@pytest.mark.parametrize("caption", ["a red circle", "a red circle and a blue square", "two red circles"])
def test_empty_image_has_no_objects(caption):
    scene_seen = draw()
    assert detect(scene_seen).objects == ()
    judgment = judge(scene_seen, parse_caption(caption))
    assert not (judgment.objects or judgment.color or judgment.shape or judgment.all)


def test_missing_and_extra_objects_are_errors():
    first, second = (
        SceneObject("circle", "red", "small", 0.2, 0.5, 0.12),
        SceneObject("square", "blue", "small", 0.7, 0.5, 0.12),
    )
    missing = judge(draw(first), parse_caption("a red circle left of a blue square"))
    assert (missing.objects, missing.relation, missing.binding, missing.all) == (False, False, False, False)
    extra = judge(draw(first, second), parse_caption("a red circle"))
    assert (extra.objects, extra.color, extra.shape, extra.all) == (False, True, True, False)


def test_specks_are_ignored():
    for size, things in ((2, 1), (6, 2)):
        image = draw(SceneObject("circle", "red", "large", 0.3, 0.5, 0.2))
        image[30 : 30 + size, 50 : 50 + size] = COLORS["blue"]
        assert len(detect(image).objects) == things


def covered(image, corner):
    image = image.copy()
    image[corner] = 255
    return image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [0.12, 0.2])
def test_malformed_objects_have_no_shape(shape, radius):
    intact = draw(SceneObject(shape, "blue", "large", 0.5, 0.5, radius))
    assert detect(intact).objects[0].shape == shape
    rows, columns = np.indices((64, 64))
    pixels = round(radius * 64)
    spoiled = {
        "half of it": covered(intact, rows < 32),
        "a quarter gone": covered(intact, (rows < 32) & (columns < 32)),
        "squeezed": np.pad(intact[:, ::2], ((0, 0), (16, 16), (0, 0)), constant_values=255),
        "with a tail": covered(intact, np.zeros((64, 64), bool)),
        "two of them grown together": np.minimum(intact, np.roll(intact, round(1.4 * pixels), 1)),
    }
    spoiled["with a tail"][31:34, 32 + pixels // 2 : 60] = COLORS["blue"]
    for what, image in spoiled.items():
        assert [thing.shape for thing in detect(image).objects] != [shape], what


def test_position_of_malformed_object():
    intact = draw(SceneObject("ring", "green", "large", 0.25, 0.25, 0.2))
    rows, columns = np.indices((64, 64)) - 15.5
    filled = intact.copy()
    filled[np.hypot(rows, columns) < 9] = COLORS["green"]
    filled[np.hypot(rows, columns) < 3] = 255
    (detection,) = detect(filled).objects
    assert (detection.shape, detection.color, detection.position) == (None, "green", "top left")
    right, wrong = (parse_caption(f"a large green ring in the {place}") for place in ("top left", "centre"))
    message = judge(filled, right)
    assert (message.size, message.position, message.shape, message.all) == (True, True, False, False)
    assert judge(filled, wrong).position is False
    two = np.minimum(filled, np.roll(filled, (30, 30), (0, 1)))
    assert len(detect(two).objects) == 2
    assert (judge(two, right).size, judge(two, right).position) == (False, False)


def test_unknown_outlines_have_no_shape():
    rows, columns = np.indices((64, 64)) - 31.5
    outlines = {
        "diamond": abs(rows) + abs(columns) < 13,
        "ellipse": (rows / 8) ** 2 + (columns / 13) ** 2 < 1,
        "bar": (abs(rows) < 5) & (abs(columns) < 14),
        "triangle upside down": (rows > -10) & (rows < 10 - 1.73 * abs(columns)),
        "square tilted": np.maximum(abs(rows + 0.27 * columns), abs(columns - 0.27 * rows)) < 10,
        "disc with a hole": (np.hypot(rows, columns) < 12) & (np.hypot(rows, columns) > 3.5),
    }
    for what, outline in outlines.items():
        image = np.full((64, 64, 3), 255, np.uint8)
        image[outline] = COLORS["green"]
        assert [thing.shape for thing in detect(image).objects] == [None], what


def test_touching_objects_are_split_by_color():
    image = draw(SceneObject("square", "red", "large", 0.3, 0.5, 0.2))
    image[21:44, 30:53] = COLORS["blue"]
    assert sorted(thing.color for thing in detect(image).objects) == ["blue", "red"]


def test_intermediate_color_has_no_name():
    image = draw(SceneObject("square", "red", "large", 0.5, 0.5, 0.2))
    image[(image != 255).any(-1)] = (90, 100, 20)
    assert detect(image).objects[0].color is None
    assert detect(np.full((64, 64, 3), 170, np.uint8)).background is None


def test_thin_blurred_objects_keep_color():
    """Red mixed with white is nearest to pink."""
    rng = np.random.default_rng(0)
    for color in COLORS:
        for background in BACKGROUNDS:
            image = draw(SceneObject("ring", color, "small", 0.45, 0.52, 0.12), background=background)
            scene_seen = detect(blemished(image, rng, 1.0, 0.02))
            assert [(t.color, t.shape) for t in scene_seen.objects] == [(color, "ring")]


def test_random_images_do_not_raise():
    rng = np.random.default_rng(0)
    description = parse_caption("a red circle")
    checks = np.uint8(255 * (np.indices((64, 64)).sum(0) % 2))[..., None].repeat(3, -1)
    flat = [np.full((64, 64, 3), rgb, np.uint8) for rgb in COLORS.values()]
    noise = [ndimage.gaussian_filter(rng.normal(128, 300, (48, 48, 3)), (b, b, 0)) for b in np.linspace(0, 4, 30)]
    for image in [checks, *flat, *(np.uint8(np.clip(n, 0, 255)) for n in noise)]:
        assert not judge(image, description).all


@pytest.mark.parametrize(
    "image",
    [np.zeros((64, 64)), np.zeros((64, 64, 3)), np.zeros((64, 64, 3), np.uint16), np.zeros((64, 64, 4), np.uint8)],
)
def test_invalid_arrays_raise(image):
    with pytest.raises(ConfigError, match=r"expected uint8 \[H, W, 3\]"):
        detect(image)


def test_score_rows():
    thing = SceneObject("circle", "red", "small", 0.5, 0.5, 0.12)
    image = draw(thing)
    captions = [
        "a red circle",
        "a blue circle",
        "a red circle in the centre",
        "two red circles",
        "a red circle above a ring",
    ]
    table = score([image] * 5, [parse_caption(caption) for caption in captions])
    assert (table["single object"]["correct"], table["single object"]["total"]) == (2, 3)
    assert (table["single object: colour"]["correct"], table["single object: shape"]["correct"]) == (2, 3)
    assert (table["single object: position"]["correct"], table["single object: position"]["total"]) == (1, 1)
    assert (table["count"]["correct"], table["count"]["total"]) == (0, 1)
    assert table["two objects: relation with both attributes bound"]["total"] == 1
    assert (table["all"]["correct"], table["all"]["total"]) == (2, 5)
    assert "background" not in table
    assert json.loads(json.dumps(table)) == table


def test_score_requires_equal_lengths():
    with pytest.raises(ValueError, match="longer"):
        score([draw()], [parse_caption("a ring")] * 2)


def test_category():
    captions = {"a ring": "single object", "a ring and a circle": "two objects", "two rings": "count"}
    assert {caption: category(parse_caption(caption)) for caption in captions} == captions


def testwilson_interval_matches_published_values():
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


@pytest.mark.parametrize("shape", NEW_SHAPES)
@pytest.mark.parametrize("resolution", [32, 64])
def test_new_shapes_are_read_and_no_other_is_taken_for_them(shape, resolution):
    """In scenes of the data set, one of whose objects is a star or a heart, half of them with blur and noise."""
    source, rng, right = ShapesSource(5, "train", resolution, 120), np.random.default_rng(0), []
    for i in range(120):
        scene = source.scene(i)
        first, *others = scene.objects
        scene = dataclasses.replace(scene, objects=(dataclasses.replace(first, shape=shape), *others))
        image = render(scene, resolution)
        seen = detect(blemished(image, rng, 0.5 * resolution / 64, 0.03) if i % 2 else image)
        for thing in scene.objects:
            nearest = min(seen.objects, key=lambda f, thing=thing: abs(f.x - thing.x) + abs(f.y - thing.y))
            right.append((nearest.shape, nearest.color) == (thing.shape, thing.color))
    assert np.mean(right) >= 0.99


def test_new_shapes_in_captions():
    description = parse_caption("a large red star to the left of a heart")
    assert description == Description((Claim(1, "large", "red", "star"), Claim(1, "", "", "heart")), "left of")
