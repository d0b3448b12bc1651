"""`imagen evaluate --images`: what it computes, and each sentence with which it refuses what cannot be measured."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.evaluation.evaluate_images import evaluate_images
from imagen_jax.evaluation.features import format_images
from imagen_jax.evaluation.frechet import Gaussian, frechet_distance
from imagen_jax.evaluation.metric_set import MetricSet
from imagen_jax.evaluation.statistics_files import Statistics, write_statistics
from tests.goldens.clip import cases as clip_cases
from tests.helpers import small_network
from tests.helpers.cli import run_command

COUNT, CLIP = 20, str(clip_cases.HERE / "quick")


def write_images(folder, seed, count=COUNT, sides=(12,)):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        side = sides[index % len(sides)]
        pixels = rng.integers(0, 200 + 50 * seed, (side, side, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "real", 0)
    write_images(folder / "samples", 1)
    write_images(folder / "mixed", 1, sides=(12, 20))
    small_network.write_weights(folder / "small.safetensors")
    small_network.write_weights(folder / "nan.safetensors", value=np.nan)
    (folder / "short.txt").write_text("a red circle\n")
    (folder / "names.jsonl").write_text('{"file_name": "000.png", "text": "a ring"}\n')
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    small_network.install(monkeypatch)


def arguments(folder, **flags):
    values = {
        "images": folder / "samples",
        "reference": folder / "real",
        "metrics": "fd_lite0",
        "lite0": folder / "small.safetensors",
        **flags,
    }
    return ["evaluate", *(f"--{name}={value}" for name, value in values.items() if value is not None)]


def test_scores_are_those_of_the_features(folder, tmp_path, capsys):
    metrics = "fd_lite0,kid_lite0,precision_recall_lite0,inception_score_lite0"
    assert run_command(*arguments(folder, metrics=metrics, out=tmp_path / "out")) == 0
    assert "against 20 images of" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())["metrics"]
    names = ["fd_lite0", "kid_lite0", "precision_lite0", "recall_lite0", "inception_score_lite0"]
    assert list(rows) == names
    config = MetricsConfig(names=("fd_lite0",), lite0=str(folder / "small.safetensors"))
    encoder = MetricSet.load(config).networks["efficientnet-lite0"].encoder
    gaussians = []
    for name in ("samples", "real"):
        images = [np.asarray(Image.open(path)) for path in sorted((folder / name).iterdir())]
        features = encoder(images).features
        gaussians.append(Gaussian(features.mean(0, np.float64), np.cov(features, rowvar=False, dtype=np.float64)))
    assert rows["fd_lite0"]["value"] == pytest.approx(frechet_distance(*gaussians), rel=1e-9)
    for row in rows.values():
        assert row["network"] == "efficientnet-lite0" and encoder.network.endswith(row["weights"])
        assert row["resizing"] == "clean" and row["images"]["num_images"] == COUNT
    assert rows["kid_lite0"]["reference"]["name"] == str(folder / "real")


def test_written_statistics_are_a_reference(folder, tmp_path):
    statistics = tmp_path / "real.npz"
    written = arguments(folder, images=folder / "real", reference=None, write_statistics=statistics)
    assert run_command(*written) == 0
    values = []
    for name, reference in (("a", folder / "real"), ("b", statistics)):
        assert run_command(*arguments(folder, reference=reference, out=tmp_path / name)) == 0
        values.append(json.loads((tmp_path / name / "scores.json").read_text())["metrics"]["fd_lite0"])
    assert values[0]["value"] == values[1]["value"]
    assert values[1]["reference"]["num_images"] == COUNT
    assert values[0]["reference"]["checksum"] != values[1]["reference"]["checksum"]


def test_clip_scores_name_model_prefix_scale_and_captions(folder, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"a picture of {index} rings\n" for index in range(COUNT)))
    flags = {"metrics": "clip,cmmd", "clip": CLIP, "cmmd_clip": CLIP, "clip_score": "gigagan", "captions": captions}
    assert run_command(*arguments(folder, out=tmp_path / "out", **flags)) == 0
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())["metrics"]
    assert list(rows) == ["clip_score", "cmmd"]
    score = rows["clip_score"]
    assert (score["network"], score["prefix"], score["scale"]) == ("quick", "A photo depicts ", 1.0)
    assert score["captions"]["name"] == str(captions) and "reference" not in score
    assert score["weights"] == rows["cmmd"]["weights"] and len(score["weights"]) == 12
    assert rows["cmmd"]["reference"]["num_images"] == COUNT and -1 <= score["value"] <= 1
    captions.write_text("a ring\n" * COUNT)
    assert run_command(*arguments(folder, out=tmp_path / "out", **flags)) == 2


def test_fewer_images_than_dimensions_are_told_with_the_number(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        evaluate_images(
            folder / "samples",
            MetricsConfig(names=("fd_lite0",), reference=str(folder / "real"), lite0=str(folder / "small.safetensors")),
            num_images=4,
        )
    assert f"{format_images(4)} are fewer than the 6 that a covariance of 5 dimensions needs" in caplog.text


def test_images_of_several_sizes_are_measured_with_a_warning_or_cut(folder, tmp_path, capsys):
    values = set()
    for name, flags, count in (("kept", {}, 1), ("cut", {"size": 12}, 0)):
        assert run_command(*arguments(folder, images=folder / "mixed", out=tmp_path / name, **flags)) == 0
        assert capsys.readouterr().err.count("2 sizes, from 12×12 to 20×20") == count
        values.add(json.loads((tmp_path / name / "scores.json").read_text())["metrics"]["fd_lite0"]["value"])
    assert len(values) == 2


def test_the_same_call_continues_and_others_are_refused(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_command(*arguments(folder, out=out)) == 0
    before = (out / "scores.json").read_bytes()
    assert run_command(*arguments(folder, out=out)) == 0
    assert (out / "scores.json").read_bytes() == before
    capsys.readouterr()
    assert run_command(*arguments(folder, images=folder / "mixed", out=out)) == 2
    assert "of another evaluation" in capsys.readouterr().err
    assert run_command(*arguments(folder, images=folder / "mixed", out=out, overwrite="true")) == 0
    assert (out / "scores.json").read_bytes() != before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_images": 1}, "1 image has no covariance and no distance: give at least 2"),
        ({"num_reference": 1}, "a reference of 1 image has no covariance"),
        ({"num_images": 21}, "has 20 images, and 21 are asked for"),
        ({"lite0": "nan.safetensors"}, "features of 20 images are not finite, the first is image 0"),
        ({"lite0": "none.safetensors"}, "are not a file"),
        ({"metrics": "fd_lite"}, "metric 'fd_lite' is not known"),
        ({"metrics": None}, "there are no metrics: give some, such as --metrics=fid"),
        ({"metrics": "kid_lite0", "reference": "own.npz"}, "kid_lite0 compares with single images"),
        ({"reference": None}, "fd_lite0 is compared with real images: give --reference=DIR"),
        ({"reference": "network.npz"}, "network.npz is of the network other/01"),
        ({"reference": "resizing.npz"}, "resizing.npz is of the resizing legacy_pytorch"),
        ({"reference": "own.npz", "resizing": "legacy_pytorch"}, "own.npz is of the resizing clean"),
        ({"reference": "dimensions.npz"}, "has mu [3] and sigma [3, 3], expected [5]"),
        ({"reference": "missing.npz"}, "missing.npz cannot be read"),
        ({"reference": "nowhere"}, "--reference 'nowhere' is not a folder"),
        ({"resizing": "best"}, "resizing 'best'"),
        ({"size": "1x"}, "size '1x'"),
        ({"captions": "short.txt"}, "short.txt has 1 captions, and 20 images are asked for: give a longer list"),
        ({"captions": "names.jsonl"}, "names.jsonl has no caption of 19 of 20 images, such as '001.png'"),
        ({"metrics": "clip", "clip": CLIP}, "clip reads the text of each image, and 000.png has none"),
        ({"metrics": "clip", "clip": "no/such/clip"}, "is neither a folder nor ORG/NAME"),
        ({"write_statistics": "a.npz", "metrics": "kid_lite0"}, "give exactly one of fid and fd_lite0"),
        ({"stages": "shapes"}, "--stages has no effect with --images"),
        ({"save_images": "true"}, "--save_images has no effect with --images"),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_one_sentence(folder, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    config = MetricsConfig(names=("fd_lite0",), lite0=str(folder / "small.safetensors"))
    network = MetricSet.load(config).networks["efficientnet-lite0"].encoder.network
    for name, fields in (
        ("own", (network, "clean", 5)),
        ("network", ("other/01", "clean", 5)),
        ("resizing", (network, "legacy_pytorch", 5)),
        ("dimensions", (network, "clean", 3)),
    ):
        gaussian = Gaussian(np.zeros(fields[2]), np.eye(fields[2]))
        write_statistics(tmp_path / f"{name}.npz", Statistics(gaussian, *fields[:2], 20))
    paths = {
        name: folder / value
        for name, value in flags.items()
        if isinstance(value, str) and (folder / value).is_file() and name != "metrics"
    }
    assert run_command(*arguments(folder, out="out", **(flags | paths))) == 2
    error = capsys.readouterr().err
    sentences = [line for line in error.split("\n") if "error: " in line]
    assert len(sentences) == 1 and message in sentences[0], error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "scores.json").exists()
