import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.encoder import FeatureEncoder
from imagen_jax.evaluation.networks import INCEPTION, LITE0, NETWORKS
from imagen_jax.io.tensor_files import TensorFiles, weights_digest
from tests.goldens.encoders import cases
from tests.helpers.configs import ROOT, split_devices

KERNEL, SMALL = "Conv2d_1a_3x3.conv.weight", 75


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return cases.write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def inputs():
    """Inputs of the least size: the network takes any."""
    return np.random.default_rng(0).uniform(-1, 1, (5, SMALL, SMALL, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def alone(weights, inputs):
    return cases.load(weights)._encode(inputs, len(inputs))


def assert_matches_golden(encoder, name):
    ours = encoder(cases.images()[:2], batch_size=2)
    with np.load(cases.GOLDEN) as golden:
        for kind, values in ours._asdict().items():
            expected = golden[f"{name}/{kind}"][:2]
            np.testing.assert_allclose(values[:, cases.FEATURES_KEPT], expected, atol=cases.TOLERANCE)


def test_inception_matches_torch_fidelity(weights):
    encoder = cases.load(weights)
    assert [array.shape for array in encoder([])] == [(0, 2048), (0, 1008)]
    assert_matches_golden(encoder, INCEPTION.name)


def test_lite0_matches_efficientnet_lite_pytorch(tmp_path):
    path = cases.write_weights(tmp_path, LITE0.name)
    assert_matches_golden(cases.load(path, "clean"), LITE0.name)


def test_devices_agree(weights, inputs, alone):
    encoder = FeatureEncoder.from_pretrained(INCEPTION.name, weights, mesh=split_devices())
    for ours, expected in zip(encoder._encode(inputs, 8), alone, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_bfloat16_is_close(weights, inputs, alone):
    encoder = cases.load(weights, dtype=jnp.bfloat16)
    features = encoder._encode(inputs, len(inputs)).features
    assert cases.mean_cosine(features, alone.features) > cases.COSINE


def test_networks_are_known_by_their_weights(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    cases_by_name = {
        "one": tensors,
        "other dtype and more": {"c": np.ones(1), **tensors, "b": np.ones(2, np.float16)},
        "changed": {**tensors, "b": np.array([1, 2], np.float32)},
        "reshaped": {**tensors, "a": tensors["a"].reshape(3, 2)},
    }
    digests = []
    for index, values in enumerate(cases_by_name.values()):
        save_file(values, tmp_path / f"{index}.safetensors")
        digests.append(weights_digest(TensorFiles([tmp_path / f"{index}.safetensors"]), ["a", "b"]))
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(KERNEL), f"missing {KERNEL}"),
        (lambda t: t.update({"AuxLogits.fc.weight": np.zeros(2, np.float32)}), "pytorch-fid.*unexpected AuxLogits"),
        (lambda t: t.update({"fc.weight": np.zeros((1000, 2048), np.float32)}), r"fc.weight is \[1000, 2048\]"),
    ],
)
def test_other_networks_are_refused(weights, tmp_path, change, match):
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=match):
        FeatureEncoder.from_pretrained(INCEPTION.name, tmp_path / "other.safetensors")


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path, network):
    pickled, new = tmp_path / network.published, network.published.replace(".pth", ".safetensors")
    pickled.write_bytes(b"pickled")
    with pytest.raises(ConfigError) as error:
        FeatureEncoder.from_pretrained(network.name, pickled)
    assert network.conversion_command(pickled, new) in str(error.value)


def test_wrong_values_are_refused(weights):
    encoder = FeatureEncoder(INCEPTION, {}, "clean", "", split_devices())
    for call, match in (
        (lambda: FeatureEncoder.from_pretrained(INCEPTION.name, "no-such-file"), "not a file: get pt_inception"),
        (lambda: FeatureEncoder.from_pretrained(INCEPTION.name, weights, "best"), "resizing 'best'"),
        (lambda: FeatureEncoder.from_pretrained("inception", weights), "did you mean"),
        (lambda: FeatureEncoder.from_pretrained(LITE0.name, weights), "EfficientNet-Lite0.*missing"),
        (lambda: encoder(cases.images(), 0), "batch_size 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()


def test_the_command_that_converts_weights_is_documented():
    assert INCEPTION.conversion_command() in (ROOT / "docs" / "metrics.md").read_text()
