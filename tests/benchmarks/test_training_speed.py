import pytest

from configs import shapes_base, shapes_sr
from tests.helpers.flags import imported


@pytest.fixture(scope="module")
def training_speed():
    """The benchmark."""
    with imported("benchmarks.training_speed", "config", "steps", "json") as benchmark:
        yield benchmark


@pytest.mark.parametrize("preset", [shapes_base, shapes_sr])
def test_the_step_of_a_config_is_measured_on_all_devices(training_speed, preset):
    config = preset.get_config("tiny")
    config.mesh.update(data=-1, fsdp=2)
    found = training_speed.measure(config, steps=1, peak_flops=1e12)
    assert found.mesh == {"data": 4, "fsdp": 2, "spatial": 1}
    assert found.images == config.training.batch_size
    assert found.peak_bytes is None  # simulated devices do not tell
    assert len(found.step_s) == training_speed.TIMINGS
    slowest_rate, fastest_rate = found.images / max(found.step_s), found.images / min(found.step_s)
    assert slowest_rate <= found.images_per_s <= fastest_rate
    # the whole step's operations, at the devices' peak, take the share of its time
    assert found.share_of_peak * found.images / found.images_per_s == pytest.approx(found.flops / (8 * 1e12))
    assert "| 4 data × 2 fsdp |" in training_speed.row(found)


@pytest.mark.parametrize(
    "device, tflops",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v4", 275),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name(training_speed, device, tflops):
    assert training_speed.peak_of(device) == tflops * 1e12


def test_of_an_unknown_device_no_share_is_said(training_speed):
    assert training_speed.peak_of("NVIDIA TITAN V") is None
