"""A benchmark by the shipped cascade: the layout, resuming, scores, and wrong use."""

import json

import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.prompts import benchmark
from imagen_jax.evaluation.prompts.prompt_set import BenchmarkPrompt, PromptSet, load_prompts
from imagen_jax.images.grid import read_png, save_png
from imagen_jax.pipelines.image_record import read_record
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from tests.helpers.compared import write_compared
from tests.helpers.configs import contents

IMAGES = 2


@pytest.fixture(scope="module")
def pipeline():
    pipeline = ImagenPipeline.from_pretrained("shapes", sampling=[{"num_inference_steps": 2}] * 2)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def prompts():
    return load_prompts("shapes").select(["colors", "counting"], 1)


def sample(pipeline, prompts, out, seed=0, **settings):
    request = SampleRequest(Texts(benchmark.benchmark_texts(prompts, IMAGES)), seed, 4)
    benchmark.sample_benchmark(pipeline, prompts, request, out, IMAGES, **settings)


@pytest.fixture(scope="module")
def sampled(pipeline, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    sample(pipeline, prompts, out)
    return out


def test_layout_is_that_of_geneval(sampled, prompts):
    assert {path.name for path in sampled.iterdir()} == {"00000", "00001", "samples.json"}
    for index, prompt in enumerate(prompts.prompts):
        folder = sampled / f"{index:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == dict(prompt.question)
        assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
        assert (folder / "grid.png").is_file()
        record = read_record(folder / "samples" / "0001.png")
        assert (record.prompt, record.index) == (prompt.text, index * IMAGES + 1)
    first, second = (read_png(sampled / "00000" / "samples" / name) for name in ("0000.png", "0001.png"))
    assert (first != second).any()


def test_a_break_is_continued(pipeline, prompts, sampled, tmp_path):
    sample(pipeline, prompts, tmp_path)
    assert contents(tmp_path) == {name: data for name, data in contents(sampled).items() if name in contents(tmp_path)}
    (tmp_path / "00001" / "samples" / "0000.png").write_bytes(b"half")
    (tmp_path / "00000" / "samples" / "0001.png").unlink()
    kept = (tmp_path / "00000" / "samples" / "0000.png").stat().st_mtime_ns
    sample(pipeline, prompts, tmp_path)
    assert contents(tmp_path) == {name: data for name, data in contents(sampled).items() if name in contents(tmp_path)}
    assert (tmp_path / "00000" / "samples" / "0000.png").stat().st_mtime_ns == kept


def test_images_of_another_run_are_refused_or_removed(pipeline, prompts, tmp_path):
    sample(pipeline, prompts, tmp_path)
    (tmp_path / benchmark.SCORES).write_text("{}")
    with pytest.raises(ConfigError, match="another run"):
        sample(pipeline, prompts, tmp_path, seed=1)
    mine = [tmp_path / "2024" / "samples" / "0000.png", tmp_path / "00001" / "notes.txt", tmp_path / "00002" / "x.png"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    one = PromptSet("one", prompts.prompts[:1])
    sample(pipeline, one, tmp_path, seed=1, overwrite=True)
    assert all(path.read_bytes() == b"mine" for path in mine) and not (tmp_path / "00001" / "grid.png").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"00000", "00001", "00002", "2024", "samples.json"}
    assert len(benchmark.read_benchmark(tmp_path).prompts) == 1


def test_scores(sampled, prompts):
    folder = benchmark.read_benchmark(sampled, "shapes")
    scores = benchmark.score_benchmark(folder, "shapes")
    assert scores == json.loads((sampled / "scores.json").read_text())
    assert scores["prompts"]["sha256"] == prompts.digest and scores["prompts"]["images_of_each"] == IMAGES
    table = scores["geneval"]
    assert list(table["categories"]) == ["counting", "colors"] and table["all"]["total"] == 4
    rates = [row["rate"] for row in table["categories"].values()]
    assert table["overall"]["mean"] == np.mean(rates)
    lines = [json.loads(line) for line in (sampled / "results.jsonl").read_text().splitlines()]
    assert sum(line["correct"] for line in lines) == table["all"]["correct"]
    assert all(json.loads(line["metadata"])["tag"] == line["tag"] for line in lines)
    assert "overall, the mean of 2 categories" in benchmark.format_scores(scores)


class Clip:
    """Vectors of images and texts that fit if a text has the letter r as often as an image's first red value."""

    def encode_images(self, images, batch_size=64):
        angles = np.array([image[0, 0, 0] / 100 for image in images])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def encode_text(self, texts, batch_size=64):
        return np.array([[1.0, 0.0]] * len(texts), np.float32)


def test_clip_scores(tmp_path):
    for index, level in enumerate((0, 0, 100)):
        folder = write_compared(tmp_path / f"part {index}", level, {f"prompt {index}": "ab"[index // 2]}, images=1)
        (folder / "00000").rename(tmp_path / f"{index:05d}")
    scores = benchmark.score_benchmark(benchmark.read_benchmark(tmp_path), clip=benchmark.ClipJudge(Clip(), "a clip"))
    assert scores["clip"]["model"] == "a clip" and scores["clip"]["kind"] == "cosine"
    assert scores["clip"]["categories"]["a"]["mean"] == 1
    assert scores["clip"]["categories"]["b"]["mean"] == pytest.approx(np.cos(1), abs=1e-6)
    assert scores["clip"]["categories"]["b"]["low"] is None and "CLIP score" in benchmark.format_scores(scores)


def test_judges_that_cannot_answer():
    without = [BenchmarkPrompt("a fig", "food")]
    with pytest.raises(ConfigError, match="a fig"):
        benchmark.check_judge("shapes", without)
    bench = BenchmarkPrompt("a bench", "x", question={"include": [{"class": "bench", "count": 1}]})
    with pytest.raises(ConfigError, match="a bench.*not about shapes"):
        benchmark.check_judge("shapes", [bench])
    with pytest.raises(ConfigError, match="'mask2former' is not known"):
        benchmark.check_judge("mask2former", [bench])
    benchmark.check_judge("", without)


def test_incomplete_folders(tmp_path):
    with pytest.raises(ConfigError, match="GenEval's layout"):
        benchmark.read_benchmark(tmp_path)
    save_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "00000" / "samples" / "0000.png")
    with pytest.raises(ConfigError, match="no metadata.jsonl"):
        benchmark.read_benchmark(tmp_path)
    (tmp_path / "00000" / "samples" / "0000.png").write_bytes(b"half")
    with pytest.raises(ConfigError, match="damaged image, 0000.png"):
        benchmark.read_benchmark(tmp_path)
