"""A reader types every block of every document, in order, and all of them run."""

import itertools
import json
import re

import pytest
from PIL import Image

from imagen_jax.io.paths import as_path
from imagen_jax.text.encoder import SHAPES_ENCODER
from tests.helpers.configs import ROOT, contents
from tests.helpers.reader.blocks import docstring_commands, read_blocks
from tests.helpers.reader.desk import IMAGES, write_shard_folders
from tests.helpers.reader.reader import Reader, start_worker

# The Python page is run by test_examples.py, that of the server by tests/serving/test_http.py.
OTHERS = ("docs/python_api.md", "docs/buckets.md", "docs/serving.md")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").glob("*.md")]
DOCUMENTS = {str(path.relative_to(ROOT)): blocks for path in sorted(PAGES) if (blocks := read_blocks(path.read_text()))}
DEMO = (
    "imagen train --config=configs/shapes_base.py --workdir=runs/demo/base; "
    "imagen train --config=configs/shapes_sr.py --workdir=runs/demo/sr"
)
# Their commands are mostly those of other documents; those of launch/ are tested there, those of plans in planning/.
SLOW = (
    "launch/README.md",
    "configs/codec",
    "configs/folder",
    "configs/if",
    "configs/imagen",
    "configs/latent",
    "configs/pretrain",
    "docs/deepfloyd_if.md",
    "docs/editing_inversion.md",
    "docs/evaluation.md",
    "docs/fairness.md",
    "docs/fine_tuning.md",
    "docs/latents.md",
    "docs/pods.md",
    "docs/prompt_benchmarks.md",
    "docs/publishing.md",
    "docs/recipes.md",
    "docs/sampling.md",
    "docs/sweeps.md",
    "docs/text_encoders.md",
    "docs/try_on.md",
    "docs/vae.md",
)
# What a document takes to be there, made by the commands of others.
BEFORE = {
    "docs/publishing.md": DEMO,
    "docs/sampling.md": DEMO,
    "docs/training.md": "imagen train --config=configs/imagen_base_64.py:400m --workdir=runs/base",
}


def config_families():
    """Returns the commands in the docstrings of configs, by family such as `configs/shapes`; evaluations come last."""
    families = {}
    for path in sorted((ROOT / "configs").glob("*.py"), key=lambda path: (path.stem.endswith("_eval"), path.stem)):
        families.setdefault(f"configs/{path.stem.partition('_')[0]}", []).extend(docstring_commands(path.read_text()))
    return {name: blocks for name, blocks in families.items() if blocks}


def documents_with_news():
    """Returns the pages and families of configs, without those whose every command is in one before them."""
    seen, kept = set(), {}
    for name, blocks in (DOCUMENTS | config_families()).items():
        new = {line for block in blocks for line in block.lines()} - seen
        if name not in OTHERS and new:
            kept[name] = blocks
            seen |= new
    return kept


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with start_worker(tmp_path_factory.mktemp("worker")) as variables:
        yield variables


@pytest.fixture
def reader(worker, tmp_path):
    with Reader(tmp_path, worker) as reader:
        yield reader


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in documents_with_news()]
)
def test_document(reader, name):
    if name == "docs/data.md":
        write_shard_folders(reader.checkout)
    if name in BEFORE:
        reader.type(BEFORE[name], "before")
    photos = contents(reader.checkout / "photos")
    reader.read(documents_with_news()[name], name)
    if name == "docs/recipes.md":
        assert contents(reader.checkout / "photos") == photos
        check_recipes(reader.checkout / "runs")


def check_recipes(runs):
    """Checks what the recipes for folders and for shards have written."""
    for name in ("photos", "shards"):
        report = json.loads((runs / name / "data/report.json").read_text())
        assert (report["records"], report["unreadable"], report["unusable"]) == (IMAGES + 2, 1, "")
        for stage in ("base", "sr"):
            assert "done at step 2" in (runs / name / stage / "log.txt").read_text()
        with Image.open(runs / name / "samples/images/0001.png") as sample:
            assert sample.size == (24, 24)
        assert [stage["step"] for stage in json.loads((runs / name / "scores/diagnostics.json").read_text())] == [2, 2]


def test_bucket_document(bucket, worker, tmp_path):
    bucket.create("my-imagen")
    for file in SHAPES_ENCODER.iterdir():
        as_path(f"gs://my-imagen/t5-v1_1-xxl/{file.name}").write_bytes(file.read_bytes())
    with Reader(tmp_path, worker | bucket.environment) as reader:
        reader.read(DOCUMENTS["docs/buckets.md"], "docs/buckets.md")
    assert as_path("gs://my-imagen/samples/images/0000.png").exists()


LEFT_OVER = """
def get_config():
    from imagen_jax.configs import folder_base

    config = folder_base.get_config("tiny")
    config.data.source, config.data.shards = "webdataset", {"train": "shards"}
    return config
"""


@pytest.mark.parametrize(
    "text, message",
    [
        ("```\nimagen inspekt\n```\n", "is not a command"),
        ("```\nimagen config --config=configs/none.py\n```\n", "none.py"),
        ("```\nimagen config --config=configs/digits.py --nope=1\n```\n", "nope"),
        ("```\nimagen config --config=configs/digits.py --config.data.path=x\n```\n", "data.path"),
        ("```bash\nimagen config --config=…\n```\n", "cannot be typed"),
        ("```\nfrobnicate\n```\n", "frobnicate: command not found"),
        ("```\nls nowhere | cat\n```\n", "nowhere"),
        ("```\nfor name in a b; do test $name = a; done\n```\n", "exit code 1"),
        ("```\npip install '.[nosuch]'\n```\n", "nosuch"),
        ("```\nmake nosuch\n```\n", "nosuch"),
        ("```\npython -m benchmarks.nosuch\n```\n", "nosuch"),
        ("```python\nassert 1 == 2\n```\n", "AssertionError"),
        ("In a copy of `configs/digits.py`:\n\n```python\nconfig.data.nosuch = 1\n```\n", "data.nosuch"),
        ("```python\ndef get_config():\n    return {}\n```\n", "does not name it"),
        ("```json\n{}\n```\n", "no file is named"),
        (f"`mine.py`:\n```python\n{LEFT_OVER}```\n```\nimagen config --config=mine.py\n```\n", "validation_fraction"),
    ],
    ids=itertools.count(),
)
def test_wrong_document_fails(reader, text, message):
    with pytest.raises(AssertionError, match=re.escape(message)):
        reader.read(read_blocks(text), "wrong.md")


def test_state_is_kept(reader):
    text = "```\nname=a\nmkdir $name && cd $name\n```\n```\ntouch $name\ncd ..\nXLA=1 ls a/a | grep a >found\n```\n"
    reader.read(read_blocks(text), "state.md")
    assert (reader.checkout / "found").read_text() == "a/a\n"


def test_printed_values_fill_placeholders(reader):
    commands = "echo '--config.seed=12, and more'\nimagen config --config=configs/digits.py --config.seed=SEED"
    text = f"```\n{commands}\n```\n"
    reader.read(read_blocks(text), "placeholder.md")
    assert "* seed = 12" in reader.printed
