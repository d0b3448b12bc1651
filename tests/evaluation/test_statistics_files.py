import logging

import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.feature_states import FeatureMoments
from imagen_jax.evaluation.statistics_files import Statistics, read_statistics, write_statistics

WIDTH = 5
NETWORK = "inception-v3-fid/0123"
ARGUMENTS = (NETWORK, "clean", WIDTH)


def moments():
    state = FeatureMoments(WIDTH)
    state.update(0, np.random.default_rng(0).standard_normal((20, WIDTH)))
    return state


def statistics(**fields):
    return Statistics(moments().gaussian(), **{"network": NETWORK, "resizing": "clean", "images": 20} | fields)


def test_statistics_come_back_and_others_can_read_them(tmp_path):
    write_statistics(tmp_path / "a.npz", statistics())
    again = read_statistics(tmp_path / "a.npz", *ARGUMENTS)
    assert again[1:] == statistics()[1:]
    # as pytorch-fid reads them
    with np.load(tmp_path / "a.npz") as file:
        mean, covariance = file["mu"][:], file["sigma"][:]
    for given in (again.gaussian, (mean, covariance)):
        for array, expected in zip(given, statistics().gaussian, strict=True):
            np.testing.assert_array_equal(array, expected)


def test_statistics_are_read_from_buckets(bucket):
    write_statistics("gs://pictures/run/a.npz", statistics())
    assert read_statistics("gs://pictures/run/a.npz", *ARGUMENTS).images == 20
    with pytest.raises(ConfigError, match="b.npz cannot be read"):
        read_statistics("gs://pictures/run/b.npz", *ARGUMENTS)


def test_other_networks_and_resizings_are_refused(tmp_path):
    for fields, match in (
        ({"resizing": "legacy_pytorch"}, "of the resizing legacy_pytorch, and the images are measured with clean"),
        ({"network": "inception-v3-fid/4567"}, "of the network inception-v3-fid/4567"),
    ):
        write_statistics(tmp_path / "a.npz", statistics(**fields))
        with pytest.raises(ConfigError, match=match):
            read_statistics(tmp_path / "a.npz", *ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "told", "refused"),
    [
        ("cifar10", "does not say its network and its resizing", None),
        ("cifar10_clean_train_32", "does not say its network:", None),
        ("cifar10_legacy_tensorflow_train_32", None, "of the resizing legacy_tensorflow"),
        ("ffhq_clean_clip_vit_b_32_trainval_1024", None, "of the network clip_vit_b_32"),
    ],
)
def test_files_of_others_say_what_their_names_say(tmp_path, caplog, name, told, refused):
    mean, covariance = moments().gaussian()
    np.savez_compressed(tmp_path / f"{name}.npz", mu=mean.astype(np.float32), sigma=covariance.astype(np.float32))
    if refused:
        with pytest.raises(ConfigError, match=refused):
            read_statistics(tmp_path / f"{name}.npz", *ARGUMENTS)
        return
    with caplog.at_level(logging.WARNING):
        again = read_statistics(tmp_path / f"{name}.npz", *ARGUMENTS)
    assert told in caplog.text
    assert again.images == 0 and again.gaussian.covariance.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"feats": np.ones((3, WIDTH))}, "with mu and sigma"),
        ({"mu": np.ones(4), "sigma": np.eye(4)}, r"mu \[4\] and sigma \[4, 4\], expected \[5\]"),
        ({"mu": np.ones(WIDTH), "sigma": np.full((WIDTH, WIDTH), np.nan)}, "not finite"),
        ({"mu": np.array([{}] * WIDTH), "sigma": np.eye(WIDTH)}, "ValueError"),
    ],
)
def test_what_is_no_statistics_is_refused(tmp_path, arrays, match):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError, match=match):
        read_statistics(tmp_path / "a.npz", *ARGUMENTS)


def test_damaged_and_missing_files_are_named(tmp_path):
    write_statistics(tmp_path / "a.npz", statistics())
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (content[:-30], b"", b"no zip file", content.replace(b"mu.npy", b"mx.npy")):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(ConfigError, match="a.npz is not a .npz file of statistics"):
            read_statistics(tmp_path / "a.npz", *ARGUMENTS)
    with pytest.raises(ConfigError, match="none.npz cannot be read"):
        read_statistics(tmp_path / "none.npz", *ARGUMENTS)
