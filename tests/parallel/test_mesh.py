import types

import jax
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.parallel.mesh import _hybrid_device_grid, check_batch_size, make_mesh


@pytest.mark.parametrize(
    "axes, sizes",
    [
        ({"data": 2, "fsdp": 4, "spatial": 1}, (2, 4, 1)),
        ({"data": -1, "fsdp": 2, "spatial": 1}, (4, 2, 1)),
        ({"data": -1, "fsdp": 1, "spatial": 4}, (2, 1, 4)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1)),
        ({"data": 8, "fsdp": -1}, (8, 1, 1)),
        ({"spatial": 2, "fsdp": 1, "data": 4}, (4, 1, 2)),  # in any order
    ],
)
def test_make_mesh(axes, sizes):
    mesh = make_mesh(axes)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "spatial"), sizes, strict=True))
    assert set(mesh.devices.flat) == set(jax.devices())


def test_one_device():
    assert make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize("data, fsdp", [(3, 2), (3, -1), (2, 2), (16, 1), (0, -1), (0, 8), (-2, -4), (-2, 4)])
def test_sizes_that_do_not_fit_raise(data, fsdp):
    with pytest.raises(ConfigError, match=f"data={data}, fsdp={fsdp} does not fit 8 devices"):
        make_mesh({"data": data, "fsdp": fsdp})


def test_spatial_size_that_does_not_fit_raises():
    with pytest.raises(ConfigError, match="mesh data=2, fsdp=1, spatial=3 does not fit 8 devices"):
        make_mesh({"data": 2, "fsdp": 1, "spatial": 3})


def test_two_inferred_axes_raise():
    with pytest.raises(ConfigError, match="data=-1, fsdp=-1"):
        make_mesh({"data": -1, "fsdp": -1})


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 1, "fsdp": 1, "model": 8}, {"data": 4, "tensor": 2}, {}])
def test_unknown_axes_raise(axes):
    with pytest.raises(ConfigError, match=f"{', '.join(axes)}: give exactly data, fsdp"):
        make_mesh(axes)


def test_check_batch_size():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    check_batch_size(8, mesh)
    check_batch_size(96, mesh)
    expected = r"batch_size 100 is not divisible by 8 devices \(mesh data=2, fsdp=4\): use 96 or 104"
    with pytest.raises(ConfigError, match=expected):
        check_batch_size(100, mesh)
    with pytest.raises(ConfigError, match="use 8$"):
        check_batch_size(3, mesh)
    with pytest.raises(ConfigError, match="batch_size 0"):
        check_batch_size(0, mesh)


def test_check_batch_size_with_spatial():
    mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 4})
    check_batch_size(2, mesh)
    expected = r"batch_size 3 is not divisible by 2 groups of 4 devices \(mesh data=2, fsdp=1, spatial=4\): use 2 or 4"
    with pytest.raises(ConfigError, match=expected):
        check_batch_size(3, mesh)


def test_check_batch_size_with_micro_batches():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    check_batch_size(64, mesh, grad_accum_steps=4)
    expected = r"mesh data=2, fsdp=4\) × 4 micro-batches \(training.grad_accum_steps\): use 64 or 96$"
    with pytest.raises(ConfigError, match=expected):
        check_batch_size(72, mesh, grad_accum_steps=4)


def devices_of_slices(count, size):
    """Returns mock devices of several slices, each 2 chips wide, out of order."""
    devices = []
    for i in range(count * size):
        slice_index, within = divmod(i, size)
        fields = {"slice_index": slice_index, "coords": (within % 2, within // 2, 0), "core_on_chip": 0, "id": i}
        devices.append(types.SimpleNamespace(platform="tpu", device_kind="TPU v5", process_index=slice_index, **fields))
    return devices[::-1]


@pytest.mark.parametrize("data, fsdp, spatial", [(2, 4, 1), (4, 2, 1), (8, 1, 1), (2, 2, 2), (2, 1, 4)])
def test_fsdp_groups_do_not_span_slices(data, fsdp, spatial):
    grid = _hybrid_device_grid({"data": data, "fsdp": fsdp, "spatial": spatial}, 2, devices_of_slices(2, 4))
    assert grid.shape == (data, fsdp, spatial)
    assert {device.id for device in grid.flat} == set(range(8))
    slices = np.vectorize(lambda device: device.slice_index)(grid)
    assert (slices == slices[:, :1, :1]).all()


def test_fsdp_groups_across_slices_raise():
    with pytest.raises(ConfigError, match=r"fsdp=8 .* 2 slices.*data must be a multiple of 2"):
        make_mesh({"data": 1, "fsdp": 8}, devices_of_slices(2, 4))
