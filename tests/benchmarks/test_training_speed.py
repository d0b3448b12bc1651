import pytest

from benchmarks import training_speed
from configs import shapes_base, shapes_sr
from imagen_jax.config.load import load_config


@pytest.mark.parametrize("preset", [shapes_base, shapes_sr])
@pytest.mark.slow
def test_measure_on_all_devices(preset):
    config = load_config(preset.get_config("tiny"), {"mesh.data": -1, "mesh.fsdp": 2})
    measurement = training_speed.measure(config, steps=1, peak_flops=1e12)
    assert measurement.mesh == {"data": 4, "fsdp": 2, "spatial": 1}
    assert measurement.batch_size == config.training.batch_size
    assert measurement.peak_bytes is None  # simulated devices do not report it
    assert len(measurement.step_s) == training_speed.TIMINGS
    slowest = measurement.batch_size / max(measurement.step_s)
    fastest = measurement.batch_size / min(measurement.step_s)
    assert slowest <= measurement.images_per_s <= fastest
    # the time that the step's operations take at the devices' peak is this share of the step's time
    assert measurement.mfu * measurement.batch_size / measurement.images_per_s == pytest.approx(
        measurement.model_flops / (8 * 1e12)
    )
    assert "| 4 data × 2 fsdp |" in training_speed.format_row(measurement)


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
def test_peak_flops_by_device_name(device, tflops):
    assert training_speed.peak_flops_of(device) == tflops * 1e12


def test_peak_flops_of_unknown_device():
    assert training_speed.peak_flops_of("NVIDIA TITAN V") is None
