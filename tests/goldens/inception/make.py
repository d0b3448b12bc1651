"""Inception-v3 of torch-fidelity, which is that of pytorch-fid, and resizing of torch-fidelity and clean-fid."""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch

from tests.goldens.inception.cases import (
    COSINE,
    FEATURES_KEPT,
    GOLDEN,
    INPUT_TOLERANCE,
    RESIZED,
    TOLERANCE,
    images,
    inputs,
    load,
    tensors,
    write_weights,
)
from tests.goldens.torch_fidelity import torch_fidelity


def extractor():
    """Returns their network with our random weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors().items()}, path)
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )


def theirs():
    """Returns features and logits of images, and inputs by resizing."""
    torch_fidelity()
    network = extractor()
    outputs = [network(torch.from_numpy(image.transpose(2, 0, 1)[None])) for image in images()]
    features, logits = (torch.cat(parts).numpy() for parts in zip(*outputs, strict=True))
    return {"features": features, "logits": logits, **{f"inputs/{k}": v for k, v in their_inputs().items()}}


def their_inputs():
    from cleanfid.resize import make_resizer

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
    arrays = theirs()
    for name in ("features", "logits"):
        arrays[name] = arrays[name][:, FEATURES_KEPT]
    np.savez_compressed(GOLDEN, **arrays)
    print(GOLDEN)


def compare():
    """Prints the largest differences, and returns whether all are within the tolerance."""
    expected, passed = theirs(), []
    print("\nInception-v3 with random weights: features and logits of images of several sizes")
    with tempfile.TemporaryDirectory() as folder:
        path = write_weights(Path(folder))
        ours, low = load(path)(images()), load(path, dtype=jnp.bfloat16)(images())
    for name in ("features", "logits"):
        other = expected[name]
        difference = np.abs(getattr(ours, name) - other).max()
        print(f"{f'{name}, largest {np.abs(other).max():.2f}':64}{difference:10.1e}{TOLERANCE:10.0e}")
        passed.append(difference <= TOLERANCE)
    cosine = np.mean(
        [
            np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
            for a, b in zip(low.features, expected["features"], strict=True)
        ]
    )
    print(f"{'features in bfloat16, mean cosine':64}{cosine:10.5f}{COSINE:10}")
    passed.append(cosine >= COSINE)
    for name, mine in inputs().items():
        difference = np.abs(mine - expected[f"inputs/{name}"]).max()
        print(f"{f'resizing {name}':64}{difference:10.1e}{INPUT_TOLERANCE:10.0e}")
        passed.append(difference <= INPUT_TOLERANCE)
    return all(passed)
