"""Metrics of several networks by name: streams, references, and what figures say of themselves."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.figures import format_figures
from imagen_jax.evaluation.image_metrics import MetricNetworks
from imagen_jax.evaluation.image_sets import FolderImages, iter_batches
from imagen_jax.evaluation.metric_set import MetricSet
from imagen_jax.evaluation.references import measure, measure_reference, read_reference
from imagen_jax.evaluation.statistics_files import write_statistics
from tests.evaluation.test_image_metrics import LinearEncoder
from tests.goldens.clip import cases as clip_cases

COUNT, SIDE = 20, 6
TEXTS = [f"a {color} circle" for color in ("red", "green", "blue", "gray")] * (COUNT // 4)
NAMES = ("fid", "kid_lite0", "clip", "fd_lite0")


class OneByOne(LinearEncoder):
    """Takes sequences of images, as the networks do."""

    def __call__(self, images):
        return super().__call__(np.stack(images))


def write_images(folder, seed, count=COUNT):
    folder.mkdir(parents=True)
    low, high = (0, 200) if seed else (40, 256)
    for index, image in enumerate(np.random.RandomState(seed).randint(low, high, (count, SIDE, SIDE, 3))):
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{index:03d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def metrics():
    linear, lite0 = OneByOne(), OneByOne(network="lite/02", suffix="_lite0")
    clip = MetricNetworks(None, clip_cases.load("quick"), "quick/03")
    networks = {"inception-v3-fid": MetricNetworks(linear), "efficientnet-lite0": MetricNetworks(lite0), "clip": clip}
    return MetricSet(NAMES, networks)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return write_images(folder / "real", 0), write_images(folder / "samples", 1)


@pytest.fixture(scope="module")
def reference(metrics, folders):
    return measure_reference(metrics, FolderImages(folders[0]))


def measured(metrics, folder, file=None, batch_size=8):
    stream = metrics.stream(COUNT)
    measure(stream, FolderImages(folder, texts=TEXTS), file, batch_size)
    return stream


def test_figures_say_all_that_they_depend_on(metrics, folders, reference):
    figures = metrics.result(measured(metrics, folders[1]), reference)
    rows = {name: figure.to_json() for name, figure in figures.items()}
    assert list(rows) == ["fid", "kid_lite0", "fd_lite0", "clip_score"]
    assert rows == json.loads(json.dumps(rows))
    origin = rows["fid"]["images"]
    assert rows["kid_lite0"] | {"value": 0, "std": 0} == {
        **{"value": 0, "std": 0, "network": "lite", "weights": "02", "resizing": "clean"},
        **{"subsets": 100, "subset_size": COUNT, "images": origin},
        "reference": {"name": folders[0], "checksum": reference.origin.checksum, "num_images": COUNT},
    }
    assert rows["clip_score"]["prefix"] == "" and rows["clip_score"]["scale"] == 1.0
    assert "reference" not in rows["clip_score"] and rows["clip_score"]["weights"] == "03"
    assert origin["num_images"] == COUNT and origin["checksum"] != reference.origin.checksum
    assert rows["fid"]["value"] == pytest.approx(rows["fd_lite0"]["value"])
    table = format_figures(figures)
    assert "lite/02" in table and folders[0] in table and "prefix ''" in table


def test_a_kill_changes_nothing(metrics, folders, reference, tmp_path, monkeypatch):
    expected = metrics.result(measured(metrics, folders[1]), reference)
    file, updates = tmp_path / "states.npz", []
    real = type(metrics.stream(COUNT)).update

    def killed(self, first, images, texts=None):
        updates.append(first)
        if first == 16:
            raise KeyboardInterrupt
        real(self, first, images, texts)

    with monkeypatch.context() as patch:
        patch.setattr(type(metrics.stream(COUNT)), "update", killed)
        with pytest.raises(KeyboardInterrupt):
            measured(metrics, folders[1], file)
    assert updates == [0, 8, 16] and file.exists()
    figures = metrics.result(measured(metrics, folders[1], file), reference)
    for name, figure in figures.items():
        assert figure.value == pytest.approx(expected[name].value, rel=1e-9)
        assert figure.details == expected[name].details


def test_a_reference_is_measured_once(metrics, folders, reference, tmp_path, monkeypatch):
    first = measure_reference(metrics, FolderImages(folders[0]), tmp_path)
    monkeypatch.setattr(FolderImages, "read", lambda self, index: pytest.fail("read again"))
    again = measure_reference(metrics, FolderImages(folders[0]), tmp_path)
    assert again.origin == first.origin == reference.origin
    stream = metrics.stream(COUNT)
    monkeypatch.undo()
    measure(stream, FolderImages(folders[1], texts=TEXTS))
    assert metrics.result(stream, again) == metrics.result(stream, reference)


def test_statistics_are_a_reference_for_frechet_distances_alone(metrics, folders, reference, tmp_path):
    write_statistics(tmp_path / "real.npz", reference.stream.parts["inception-v3-fid"].statistics())
    own = MetricSet(["fid", "clip"], metrics.networks)
    by_file = own.result(measured(own, folders[1]), read_reference(own, str(tmp_path / "real.npz")))
    assert by_file["fid"].value == metrics.result(measured(metrics, folders[1]), reference)["fid"].value
    assert by_file["fid"].details["reference"]["name"].endswith("real.npz")
    with pytest.raises(ConfigError, match="kid_lite0 compares with single images"):
        read_reference(metrics, str(tmp_path / "real.npz"))
    with pytest.raises(ConfigError, match="of the network linear/01"):
        read_reference(MetricSet(["fd_lite0"], metrics.networks), str(tmp_path / "real.npz"))


def test_images_of_several_sizes_are_told_or_cut(metrics, tmp_path, caplog):
    folder = write_images(tmp_path / "mixed", 1)
    Image.new("RGB", (30, 10), (255, 0, 0)).save(tmp_path / "mixed" / "wide.png")
    Image.new("RGBA", (12, 12), (255, 0, 0, 0)).save(tmp_path / "mixed" / "clear.png")
    images = FolderImages(folder)
    sizes = {image.shape for batch in iter_batches(images, 0, 8) for image in batch.images}
    assert sizes == {(6, 6, 3), (10, 30, 3), (12, 12, 3)}
    with caplog.at_level(logging.WARNING):
        images.warn_sizes()
    assert "3 sizes, from 6×6 to 10×30" in caplog.text
    cut = FolderImages(folder, size=(6, 6))
    assert {image.shape for batch in iter_batches(cut, 0, 8) for image in batch.images} == {(6, 6, 3)}
    assert (images.read(COUNT)[0] == 255).all()  # on white


def test_what_cannot_be_measured_is_refused(metrics, folders, tmp_path):
    write_images(tmp_path / "broken", 1)
    (tmp_path / "broken" / "003.png").write_bytes(b"no image")
    for call, match in (
        (lambda: MetricSet(["fidd"], {}), "did you mean 'fid'"),
        (lambda: MetricSet(["fid", "fid"], {}), "twice"),
        (lambda: MetricSet([], {}), "no metrics"),
        (lambda: MetricSet.load(MetricsConfig(names=("fd_lite0",), lite0="none")), "EfficientNet-Lite0, 'none'"),
        (lambda: metrics.stream(1), "1 image has no covariance"),
        (lambda: metrics.reference_stream(1), "a reference of 1 image"),
        (lambda: FolderImages(str(tmp_path / "none")), "--images .* is not a folder"),
        (lambda: FolderImages(folders[0], count=COUNT + 1), "has 20 images, and 21"),
        (lambda: measured(metrics, str(tmp_path / "broken")), "003.png cannot be measured"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()


def test_missing_weights_are_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, match in (("fd_lite0", "run `make metrics`.*--lite0="), ("fid", "get pt_inception.*--inception=")):
        with pytest.raises(ConfigError, match=match):
            MetricSet.load(MetricsConfig(names=(name,)))
