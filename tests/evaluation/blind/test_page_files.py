"""The files of a page of a blind comparison; the page itself is tested in tests/page."""

import collections
import json
import re

import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.blind.page import BlindSettings, write_page
from imagen_jax.evaluation.blind.votes import read_key
from imagen_jax.images.grid import read_png, save_png
from tests.helpers.compared import PROMPTS, write_compared
from tests.helpers.configs import contents

MANY = {f"prompt {index}": "xyz"[index % 3] for index in range(9)}


@pytest.fixture
def models(tmp_path):
    return write_compared(tmp_path / "a", 200, MANY), write_compared(tmp_path / "b", 60, MANY)


def write(models, tmp_path, name="page", seed=1, **settings):
    return write_page(*models, tmp_path / name, tmp_path / f"{name}.json", BlindSettings(seed, **settings))


def pairs_of(page):
    data = re.search(r'<script type="application/json" id="pairs">(.*?)</script>', page.page.read_text(), re.DOTALL)
    return json.loads(data[1])["pairs"]


def test_sides_are_those_of_the_key_and_balanced(models, tmp_path):
    page = write(models, tmp_path)
    key = read_key(page.key)
    assert page.pairs == len(key.items) == len(MANY)
    assert abs(2 * sum(item.left == "a" for item in key.items.values()) - len(MANY)) == 1
    for pair in pairs_of(page):
        item = key.items[pair["id"]]
        assert (item.prompt, item.category) == (pair["prompt"], MANY[pair["prompt"]])
        levels = {side: read_png(page.page.parent / pair[side][1])[0, 0, 0] for side in ("left", "right")}
        assert levels == ({"left": 201, "right": 61} if item.left == "a" else {"left": 61, "right": 201})


def test_pages_are_functions_of_the_seed(models, tmp_path):
    pages = [write(models, tmp_path, name, seed) for name, seed in (("first", 1), ("again", 1), ("other", 2))]
    first, again, other = (contents(page.page.parent) for page in pages)
    assert first == again != other
    assert read_key(pages[0].key).page != read_key(pages[2].key).page


def test_files_tell_nothing(models, tmp_path):
    page = write(models, tmp_path)
    for name, data in contents(page.page.parent).items():
        assert data is False or not (b"iTXt" in data or b"tEXt" in data), name
    text = page.page.read_text()
    assert str(models[0]) not in text and "category" not in text and not re.search(r"\bseed\b", text)


def test_prompts_are_data(tmp_path):
    models = write_compared(tmp_path / "a"), write_compared(tmp_path / "b")
    page = write(models, tmp_path)
    assert {pair["prompt"] for pair in pairs_of(page)} == set(PROMPTS)
    assert page.page.read_text().count("</script>") == 2


def test_limits(models, tmp_path):
    page = write(models, tmp_path, images=1, limit=4)
    assert page.pairs == 4 and all(len(pair["left"]) == len(pair["right"]) == 1 for pair in pairs_of(page))


def test_images_of_imagen_sample(tmp_path):
    for name in "ab":
        for index in range(3):
            save_png(np.zeros((8, 8, 3), np.uint8), tmp_path / name / "images" / f"{index:04d}.png")
        manifest = {"prompts": {f"{index:04d}.png": f"prompt {index // 2}" for index in range(3)}}
        (tmp_path / name / "samples.json").write_text(json.dumps(manifest))
    page = write((tmp_path / "a", tmp_path / "b"), tmp_path)
    assert {pair["prompt"]: len(pair["left"]) for pair in pairs_of(page)} == {"prompt 0": 2, "prompt 1": 1}
    (tmp_path / "b" / "images" / "0002.png").unlink()
    with pytest.raises(ConfigError, match="0002.png"):
        write((tmp_path / "a", tmp_path / "b"), tmp_path, "again")


def test_images_of_other_sizes(tmp_path):
    models = write_compared(tmp_path / "a"), write_compared(tmp_path / "b", size=(24, 32))
    with pytest.raises(ConfigError, match="16 pixels in --a and 24×32 in --b"):
        write(models, tmp_path)
    page = write(models, tmp_path, size=(20, 10))
    shapes = {read_png(path).shape for path in (page.page.parent / "images").iterdir()}
    assert shapes == {(20, 10, 3)}


def test_wrong_use(models, tmp_path):
    a, b = models
    settings = BlindSettings(1)
    with pytest.raises(ConfigError, match="both"):
        write_page(a, a, tmp_path / "page", tmp_path / "key.json", settings)
    with pytest.raises(ConfigError, match="within --out"):
        write_page(a, b, tmp_path / "page", tmp_path / "page" / "key.json", settings)
    with pytest.raises(ConfigError, match="not a folder"):
        write_page(a, tmp_path / "none", tmp_path / "page", tmp_path / "key.json", settings)
    fewer = write_compared(tmp_path / "fewer", prompts={"prompt 0": "x", "a fig": "x"})
    with pytest.raises(ConfigError, match="fewer has no images of 8 prompts.*'prompt 1'"):
        write_page(a, fewer, tmp_path / "page", tmp_path / "key.json", settings)
    one = write_compared(tmp_path / "one", prompts={"prompt 0": "x"})
    with pytest.raises(ConfigError, match="one has no images of 1 prompts.*'a fig'"):
        write_page(fewer, one, tmp_path / "page", tmp_path / "key.json", settings)
    assert not (tmp_path / "page").exists()


def test_pages_with_votes_and_other_images_are_kept(models, tmp_path):
    page = write(models, tmp_path)
    before = contents(tmp_path / "page")
    with pytest.raises(ConfigError, match="exists"):
        write(models, tmp_path, seed=2)
    assert contents(tmp_path / "page") == before
    write_page(*models, tmp_path / "page", page.key, BlindSettings(2), overwrite=True)
    assert contents(tmp_path / "page") != before
    save_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "mine" / "images" / "0000.png")
    with pytest.raises(ConfigError, match="has images, such as 0000.png"):
        write_page(*models, tmp_path / "mine", tmp_path / "mine.json", BlindSettings(2), overwrite=True)
    assert collections.Counter(path.name for path in (tmp_path / "mine" / "images").iterdir()) == {"0000.png": 1}
