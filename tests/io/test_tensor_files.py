"""Safetensors files are written tensor by tensor, with the bytes that the library writes."""

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from imagen_jax.io.tensor_files import TensorFiles, TensorSpec, write_tensors
from tests.helpers.memory import rise_of_memory


def test_bytes_are_those_of_the_library(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "b.half": rng.normal(size=(3, 1)).astype(np.float16),
        "a.single": rng.normal(size=(2, 3)).astype(np.float32),
        "ü.brain": rng.normal(size=5).astype(ml_dtypes.bfloat16),
        "c.double": rng.normal(size=()).astype(np.float64),
        "a.empty": np.zeros((0, 4), np.float32),
        "0.single": rng.normal(size=(1, 2, 3)).astype(np.float32),
    }
    names = {"float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "BF16"}
    specs = {name: TensorSpec(names[array.dtype.name], array.shape) for name, array in tensors.items()}
    for number, metadata in enumerate(({"format": "pt"}, {})):
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, specs, tensors.__getitem__, metadata)
        assert path.read_bytes() == save(tensors, metadata=metadata or None)
        files = TensorFiles([path])
        assert files.metadata == {path.name: metadata}
        assert files.shapes == {name: array.shape for name, array in tensors.items()}


def test_memory_is_that_of_one_tensor(tmp_path):
    size, count = 2**22, 24  # of float32: 16 MiB each
    specs = {f"{index:02}": TensorSpec("F32", (size,)) for index in range(count)}

    def write():
        write_tensors(tmp_path / "large.safetensors", specs, lambda name: np.full(size, int(name), np.float32), {})

    assert rise_of_memory(write) < 4 * specs["00"].nbytes
    files = TensorFiles([tmp_path / "large.safetensors"])
    assert all((files.read(name, (slice(0, 2),)) == int(name)).all() for name in specs)
