"""Shares of groups: judges, targets, the training data, the result and its page."""

import json
import math
import re

import numpy as np
import pytest

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import StageConfig
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import Scene, SceneObject
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.fairness import judges
from imagen_jax.evaluation.fairness.data_shares import data_shares
from imagen_jax.evaluation.fairness.groups import (
    Group,
    distance_by_chance,
    parse_groups,
    parse_target,
    total_variation,
)
from imagen_jax.evaluation.fairness.measure import format_result, measure, open_prompts
from imagen_jax.evaluation.prompts.benchmark import read_benchmark
from imagen_jax.images.grid import save_png

RED_BLUE = parse_groups("red,blue")


def shape(color, shape="circle", x=0.5, background="white"):
    return render(Scene((SceneObject(shape, color, "large", x, 0.5, 0.21),), background), 32)


def write_images(folder, by_prompt):
    """Writes images of shapes of the given colors in GenEval's layout."""
    for index, (prompt, colors) in enumerate(by_prompt.items()):
        for number, color in enumerate(colors):
            save_png(shape(color), folder / f"{index:05d}" / "samples" / f"{number:04d}.png")
        (folder / f"{index:05d}" / "metadata.jsonl").write_text(json.dumps({"tag": "fairness", "prompt": prompt}))
    return read_benchmark(folder)


def test_groups():
    assert parse_groups("woman|women, man|men") == [Group("woman", ("woman", "women")), Group("man", ("man", "men"))]
    for text in ("red", "", "red,,blue", "red,blue,red", "red|blue,blue", ",".join(map(str, range(21)))):
        with pytest.raises(ConfigError, match="--groups"):
            parse_groups(text)


def test_targets():
    assert parse_target(None, RED_BLUE) == {"red": 0.5, "blue": 0.5}
    assert parse_target("blue:3, red:1", RED_BLUE) == {"red": 0.25, "blue": 0.75}
    for text in ("red:1", "red:1,blue:0", "red:1,blue:x", "red:1,blue:1,red:1", "red:1,green:1", "red:nan,blue:1"):
        with pytest.raises(ConfigError, match="--target"):
            parse_target(text, RED_BLUE)


def test_distances():
    assert total_variation({"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.4)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(200, [0.5, 0.3, 0.2], 2000) / 200
    measured = np.abs(counts - [0.5, 0.3, 0.2]).sum(axis=1).mean() / 2
    assert distance_by_chance({"a": 0.5, "b": 0.3, "c": 0.2}, 200) == pytest.approx(measured, rel=0.03)


def test_prompts_that_name_a_group():
    assert len(open_prompts(["a circle", "a blueprint", "a circle"], RED_BLUE).prompts) == 2
    with pytest.raises(ConfigError, match="names the group 'blue'"):
        open_prompts(["a circle", "a Blue, small circle"], RED_BLUE)


def test_shapes_judge():
    both = np.minimum(shape("red", x=0.25), shape("blue", x=0.75))
    images = [shape("red"), shape("blue"), shape("green"), both, np.full((32, 32, 3), 255, np.uint8)]
    assert judges.shapes_judge(RED_BLUE)(images) == ["red", "blue", None, None, None]
    assert judges.shapes_judge(parse_groups("circle,cross"))([shape("red", "cross")]) == ["cross"]
    assert judges.shapes_judge(parse_groups("tan,white"))([shape("red", background="tan")]) == ["tan"]
    for text in ("red,circle", "woman,man"):
        with pytest.raises(ConfigError, match="one attribute"):
            judges.shapes_judge(parse_groups(text))


class Clip:
    """Vectors of images by their mean color, and of texts by the color that they name."""

    def encode_images(self, images):
        means = np.stack([255.0 - image.reshape(-1, 3).mean(axis=0) for image in images])
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    def encode_text(self, texts):
        colors = {"cyan": (1, 0, 0), "pink": (0, 1, 0), "yellow": (0, 0, 1)}
        return np.array([next(value for name, value in colors.items() if name in text) for text in texts], np.float32)


def test_clip_judge():
    groups = parse_groups("cyan|a cyan one,yellow")
    images = [np.full((4, 4, 3), color, np.uint8) for color in ((0, 255, 255), (255, 255, 0), (0, 255, 0))]
    assert judges.clip_judge(groups, Clip(), "a photo of {}")(images)[:2] == ["cyan", "yellow"]
    assert judges.clip_judge(groups, Clip(), "a photo of {}", 0.6)(images) == ["cyan", "yellow", None]
    with pytest.raises(ConfigError, match="template"):
        judges.clip_judge(groups, Clip(), "a photo")


def test_function_judge(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def judge(images):\n    return ['red' if image.mean() > 9 else 3 for image in images]\n"
        "def fails(images):\n    raise KeyError('x')\ndef short(images):\n    return []\nnumber = 3\n"
    )
    judge = judges.function_judge(f"{file}:judge", RED_BLUE)
    assert judge([np.full((4, 4, 3), 99, np.uint8), np.zeros((4, 4, 3), np.uint8)]) == ["red", None]
    image = [np.zeros((4, 4, 3), np.uint8)]
    with pytest.raises(ConfigError, match="failed with KeyError"):
        judges.function_judge(f"{file}:fails", RED_BLUE)(image)
    with pytest.raises(ConfigError, match="0 values for 1 images"):
        judges.function_judge(f"{file}:short", RED_BLUE)(image)
    for name in ("reader", f"{file}:none", f"{file}:number", f"{tmp_path}/no.py:judge", "no_module_of_mine:judge"):
        with pytest.raises(ConfigError, match="--judge"):
            judges.function_judge(name, RED_BLUE)


def config_of(folder, balance=None):
    data = {"source": "folder", "path": str(folder), "validation_fraction": 0.0}
    return load_config({"image_size": 32, "data": data | ({"balance": balance} if balance else {})}, schema=StageConfig)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images that are red 90% of the time, with captions that name the color of every second one."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for index in range(60):
        color = "blue" if index % 10 == 0 else "red"
        name = f"{index:02d}.png"
        save_png(np.zeros((8, 8, 3), np.uint8), folder / name)
        caption = f"a {color} ring" if index // 10 % 2 else "a ring"
        rows.append({"file_name": name, "text": caption, "color": color})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_shares_of_training_data(data):
    by_column = data_shares(config_of(data), RED_BLUE, "color")
    assert by_column["data"].counts == {"red": 54, "blue": 6} and by_column["training"] == by_column["data"]
    by_words = data_shares(config_of(data), RED_BLUE)
    assert by_words["data"].counts == {"red": 27, "blue": 3} and by_words["data"].records == 60
    with pytest.raises(ConfigError, match="no group"):
        data_shares(config_of(data), parse_groups("woman,man"))
    with pytest.raises(ConfigError, match="column 'hue'"):
        data_shares(config_of(data), RED_BLUE, "hue")


def test_shares_of_balanced_training(data):
    even = data_shares(config_of(data, {"column": "color", "weights": ()}), RED_BLUE, "color")
    assert even["data"].shares() == {"red": 0.9, "blue": 0.1}
    assert even["training"].shares() == {"red": 0.5, "blue": 0.5}
    weights = (("red", 1.0), ("blue", 3.0))
    weighted = data_shares(config_of(data, {"column": "color", "weights": weights}), RED_BLUE, "color")
    assert weighted["training"].shares() == {"red": 0.25, "blue": 0.75}


def test_result_and_page(tmp_path, data):
    folder = write_images(tmp_path, {"a <circle>": ["red"] * 9 + ["green"], "a ring": ["red"] * 8 + ["blue"] * 2})
    target = parse_target(None, RED_BLUE)
    shares = data_shares(config_of(data), RED_BLUE, "color")
    result = measure(folder, RED_BLUE, judges.shapes_judge(RED_BLUE), "shapes", target, shares)
    assert result == json.loads((tmp_path / "fairness.json").read_text())
    red = result["groups"]["red"]
    assert (red["correct"], red["total"], red["within"]) == (17, 19, False)
    assert red["low"] < 17 / 19 < red["high"] and result["none"] == {"images": 1, "of": 20}
    assert result["prompts"]["a ring"] == {"red": 8, "blue": 2}
    assert result["distance_to_target"] == pytest.approx(17 / 19 - 0.5)
    assert result["distance_to_training"] == pytest.approx(0.9 - 17 / 19)
    assert "17" in format_result(result) and "90.0%" in format_result(result)
    page = (tmp_path / "fairness.html").read_text()
    assert "a &lt;circle&gt;" in page and page.count("data:image/png;base64,") == 12 + 2 + 1
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_images_of_no_group(tmp_path):
    folder = write_images(tmp_path, {"a ring": ["green"] * 2})
    with pytest.raises(ConfigError, match="none of 2 images"):
        measure(folder, RED_BLUE, judges.shapes_judge(RED_BLUE), "shapes", parse_target(None, RED_BLUE))
    assert not math.isnan(distance_by_chance({"red": 0.5, "blue": 0.5}, 2))
