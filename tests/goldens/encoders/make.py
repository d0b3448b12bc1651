"""Networks of torch-fidelity, whose Inception-v3 is pytorch-fid's, and of efficientnet-lite-pytorch, and resizing.

Where `make metrics` has been run, real weights of EfficientNet-Lite0 are compared too.
"""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from cleanfid.resize import make_resizer
from safetensors.torch import load_file

from imagen_jax.images.measured_inputs import LITE0_SIZE
from tests.goldens.encoders.cases import (
    COSINE,
    FEATURES_KEPT,
    GOLDEN,
    INCEPTION,
    INPUT_TOLERANCE,
    LITE0,
    NETWORKS,
    REAL_LITE0,
    RESIZED,
    TOLERANCE,
    images,
    inputs,
    load,
    mean_cosine,
    tensors,
    write_weights,
)
from tests.goldens.torch_fidelity import torch_fidelity


def their_networks(state):
    """Returns by network a function from an image to features and logits.

    Args:
        state: of each network, torch tensors by name.
    """
    torch_fidelity()
    from efficientnet_lite_pytorch import EfficientNet
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(state[INCEPTION], path)
        inception = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    lite0 = EfficientNet.from_name("efficientnet-lite0").eval()
    # without counts of training steps in random weights
    missing, unexpected = lite0.load_state_dict(state[LITE0], strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)

    def run_lite0(image):
        pixels = make_resizer("PIL", False, "bicubic", LITE0_SIZE)(image)
        inputs = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None].contiguous()
        return lite0.extract_features(inputs).mean((2, 3)), lite0(inputs)

    return {INCEPTION: lambda image: inception(torch.from_numpy(image.transpose(2, 0, 1)[None])), LITE0: run_lite0}


def their_features(state):
    """Returns features and logits of images, by network and kind."""
    result = {}
    for name, network in their_networks(state).items():
        with torch.no_grad():
            outputs = [network(image) for image in images()]
        for kind, parts in zip(("features", "logits"), zip(*outputs, strict=True), strict=True):
            result[f"{name}/{kind}"] = torch.cat(parts).numpy()
    return result


def random_state():
    return {name: {key: torch.from_numpy(value) for key, value in tensors(name).items()} for name in NETWORKS}


def their_inputs():
    fidelity = torch_fidelity().interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x
    clean = make_resizer("PIL", False, "bicubic", RESIZED[::-1])
    result = {"clean": [], "legacy_tensorflow": [], "legacy_pytorch": []}
    for image in images():
        result["clean"].append((clean(image) - 128) / 128)
        pixels = torch.from_numpy(image.transpose(2, 0, 1)[None]).float()
        result["legacy_tensorflow"].append(
            (fidelity(pixels, size=RESIZED, align_corners=False)[0].permute(1, 2, 0).numpy() - 128) / 128
        )
        resized = torch.nn.functional.interpolate(pixels / 255, size=RESIZED, mode="bilinear", align_corners=False)
        result["legacy_pytorch"].append(2 * resized[0].permute(1, 2, 0).numpy() - 1)
    return {name: np.stack(arrays) for name, arrays in result.items()}


def write():
    """Writes a part of their outputs to GOLDEN."""
    arrays = {name: array[:, FEATURES_KEPT] for name, array in their_features(random_state()).items()}
    np.savez_compressed(GOLDEN, **arrays, **{f"inputs/{name}": array for name, array in their_inputs().items()})
    print(GOLDEN)


def compare():
    """Prints the largest differences, and returns whether all are within the tolerance."""
    passed, state, given = [], random_state(), "random weights"
    print("\nNetworks that measure images: features and logits of images of several sizes")

    def row(label, difference, most):
        print(f"{label:64}{difference:10.1e}{most:10.0e}")
        passed.append(difference <= most)

    with tempfile.TemporaryDirectory() as folder:
        paths = {name: write_weights(Path(folder), name) for name in NETWORKS}
        for _ in range(2):
            expected = their_features(state)
            for name, path in paths.items():
                resizing = "legacy_tensorflow" if name == INCEPTION else "clean"
                ours, low = (load(path, resizing, dtype)(images()) for dtype in (jnp.float32, jnp.bfloat16))
                for kind, values in ours._asdict().items():
                    other = expected[f"{name}/{kind}"]
                    label = f"{name}, {given}, {kind}, largest {np.abs(other).max():.1f}"
                    row(label, np.abs(values - other).max(), TOLERANCE)
                row(f"{name}, {given}, 1 - mean cosine in bfloat16", 1 - mean_cosine(*low[:1], *ours[:1]), 1 - COSINE)
            if not REAL_LITE0.is_file():
                break
            paths, given = {LITE0: REAL_LITE0}, "real weights"
            state = {**state, LITE0: load_file(REAL_LITE0)}
    for name, mine in inputs().items():
        row(f"resizing {name}", np.abs(mine - their_inputs()[name]).max(), INPUT_TOLERANCE)
    return all(passed)
