"""Prompts from files in the formats of their authors, and those of the package. The prompts here are our own."""

import collections
import json

import numpy as np
import pytest

from imagen_jax.datasets.shapes.captions import parse_caption
from imagen_jax.datasets.shapes.descriptions import Description
from imagen_jax.datasets.shapes.detect import detect
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scene_sampling import _ARRANGEMENTS, _GRID
from imagen_jax.datasets.shapes.scenes import SIZES, Scene, SceneObject
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.prompts.prompt_set import load_prompts
from imagen_jax.evaluation.prompts.questions import TASKS, answer, answer_by_shapes

PARTI = 'Prompt\tCategory\tChallenge\tNote\na "quoted" sign\tSigns\tBasic\t\na heap of, say, nuts\tFood\tComplex\tx\n'
DRAWBENCH = 'Prompts,Category\na lilac tram.,Colors\n"a tram, and a ""bus""",Conflicting\n'
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "ring", "count": 1}], "prompt": "a photo of a ring"},
    {
        "tag": "position",
        "include": [{"class": "ring", "count": 1}, {"class": "cross", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a cross left of a ring",
    },
]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_parti_prompts(tmp_path):
    prompts = load_prompts(write(tmp_path / "PartiPrompts.tsv", PARTI))
    assert prompts.name == "PartiPrompts.tsv" and prompts.categories == ["Signs", "Food"]
    assert [prompt.text for prompt in prompts.prompts] == ['a "quoted" sign', "a heap of, say, nuts"]
    assert prompts.prompts[1].challenge == "Complex" and prompts.prompts[1].question is None


def test_drawbench(tmp_path):
    prompts = load_prompts(write(tmp_path / "drawbench.csv", "\ufeff" + DRAWBENCH))
    assert [prompt.text for prompt in prompts.prompts] == ["a lilac tram.", 'a tram, and a "bus"']
    assert prompts.categories == ["Colors", "Conflicting"]


def test_geneval(tmp_path):
    lines = "".join(json.dumps(line) + "\n" for line in GENEVAL)
    prompts = load_prompts(write(tmp_path / "evaluation_metadata.jsonl", lines))
    assert [prompt.metadata() for prompt in prompts.prompts] == GENEVAL


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"Prompt": ["a fig"], "Category": ["Food"]}), tmp_path / "prompts.parquet")
    assert load_prompts(str(tmp_path / "prompts.parquet")).prompts[0].text == "a fig"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.txt", "a fig", "not a file of prompts"),
        ("a.tsv", "", "no prompts"),
        ("a.tsv", "Prompt\tCategory\n", "no prompts"),
        ("a.tsv", "Text\tCategory\na fig\tFood\n", "Text, Category"),
        ("a.csv", "Prompts,Kind\na fig,Food\n", "no category"),
        ("a.csv", f"Prompts,Category\n{'a' * 20_000},Food\n", "20,000 characters"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", "[]", "not an object"),
        ("a.jsonl", '{"prompt": "a fig", "tag": "x", "include": []}', "include"),
        ("a.jsonl", '{"prompt": "a fig", "tag": "x", "include": [{"class": "fig"}]}', "count"),
        (
            "a.jsonl",
            '{"prompt": "a", "tag": "x", "include": [{"class": "a", "count": 1, "position": ["near", 0]}]}',
            "position",
        ),
        ("a.parquet", "x", "Parquet"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    with pytest.raises(ConfigError, match=message):
        load_prompts(write(tmp_path / name, text))


def test_unknown_names(tmp_path):
    for name in ("photograph", str(tmp_path / "missing.tsv"), str(tmp_path)):
        with pytest.raises(ConfigError, match="photographs nor shapes"):
            load_prompts(name)
    with pytest.raises(ConfigError, match="someone/prompts"):  # the tests are offline
        load_prompts("someone/prompts")


class Hub:
    """A Hub with one data set."""

    def __init__(self, folder):
        self.folder = folder

    def list_repo_files(self, repo, revision, repo_type):
        assert (repo, repo_type) == ("someone/prompts", "dataset")
        return [path.name for path in self.folder.iterdir()]

    def hf_hub_download(self, repo, file, revision, repo_type):
        return str(self.folder / file)


def test_data_sets_on_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    hub = Hub(tmp_path)
    for name in ("list_repo_files", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(hub, name))
    write(tmp_path / "README.md", "")
    with pytest.raises(ConfigError, match="0 files"):
        load_prompts("someone/prompts")
    write(tmp_path / "PartiPrompts.tsv", PARTI)
    assert len(load_prompts("someone/prompts").prompts) == 2
    write(tmp_path / "drawbench.csv", DRAWBENCH)
    with pytest.raises(ConfigError, match="2 files"):
        load_prompts("someone/prompts")
    assert load_prompts("someone/prompts:drawbench.csv").categories == ["Colors", "Conflicting"]


def test_selection(tmp_path):
    prompts = load_prompts("photographs")
    few = prompts.select(["food", "style"], 3)
    assert collections.Counter(prompt.category for prompt in few.prompts) == {"food": 3, "style": 3}
    assert few.digest != prompts.digest
    with pytest.raises(ConfigError, match="sports"):
        prompts.select(["sports"])


def test_photographs():
    prompts = load_prompts("photographs")
    texts = [prompt.text for prompt in prompts.prompts]
    assert len(texts) == len(set(texts)) == 200
    assert len(prompts.categories) == 14 and min(map(len, texts)) >= 8
    assert all(text.strip() == text and text.isascii() for text in texts)


def test_shapes_prompts_are_right_where_they_are_rendered():
    """What a prompt says, drawn, is correct by its question; and something else is not."""
    prompts = load_prompts("shapes")
    assert prompts.categories == list(TASKS) and len(prompts.prompts) == 200
    images = [render_description(parse_caption(prompt.text)) for prompt in prompts.prompts]
    for index, prompt in enumerate(prompts.prompts):
        assert answer_by_shapes(images[index], prompt.question) == (True, ""), prompt.text
    blank = detect(np.full((64, 64, 3), 255, np.uint8))
    assert not any(answer(blank, prompt.question, (64, 64)).correct for prompt in prompts.prompts)


def render_description(description):
    """Draws objects as a description has them, with colors of which none is the same as another's."""
    claims = [claim for claim in description.claims for _ in range(claim.count)]
    if len(claims) == 1:
        places = [(1, 1)]
    elif len(description.claims) == 1:
        places = _ARRANGEMENTS[len(claims)]
    else:
        places = [(1, 0), (1, 2)] if description.relation == "above" else [(0, 1), (2, 1)]
    objects = [
        SceneObject(
            claim.shape,
            claim.color or ("red", "blue")[description.claims.index(claim)],
            claim.size or "large",
            _GRID[column],
            _GRID[row],
            np.mean(SIZES[claim.size or "large"]),
        )
        for claim, (column, row) in zip(claims, places, strict=True)
    ]
    assert isinstance(description, Description)
    return render(Scene(tuple(objects), "white"), 64)
