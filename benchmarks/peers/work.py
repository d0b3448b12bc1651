"""The work of every contestant, and how it reports. Imports neither jax nor torch."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable

THREADS = 2
SIZE = 32
BATCH_SIZE = 16
CHANNELS = 64
CHANNEL_MULT = (1, 2, 4)
BLOCKS = 2  # of each level; attention at the two lower resolutions
HEAD_CHANNELS = 64
TEXT_LENGTH = 16
TEXT_WIDTH = 64  # of the untrained encoder of configs with text.model "random"
SAMPLES = 4  # images at once
SAMPLING_STEPS = 50
GUIDANCE_SCALE = 3.0
LEARNING_RATE = 1e-4
WARM_UP, TRAINING_STEPS = 2, 6
# a backward pass computes the gradients of inputs and of weights
FORWARD_AND_BACKWARD = 3


@dataclasses.dataclass(frozen=True)
class Result:
    """Speed of one contestant in one process.

    Attributes:
        num_params: parameters of its network.
        forward_flops: operations of convolutions and matrix products for one image, 2 for each multiply-add.
        step_s: seconds of a training step, the median of `TRAINING_STEPS`.
        sampling_s: seconds of sampling `SAMPLES` images.
    """

    num_params: int
    forward_flops: float
    step_s: float
    sampling_s: float

    @property
    def step_flops(self) -> float:
        """Returns the operations of a training step."""
        return self.forward_flops * BATCH_SIZE * FORWARD_AND_BACKWARD

    @property
    def training_gflops_per_s(self) -> float:
        """Returns the speed of training in GFLOP/s."""
        return self.step_flops / self.step_s / 1e9

    @property
    def trained_images_per_s(self) -> float:
        """Returns the speed of training in images/s."""
        return BATCH_SIZE / self.step_s

    @property
    def sampled_images_per_s(self) -> float:
        """Returns the speed of sampling in images/s."""
        return SAMPLES / self.sampling_s


def time_steps(step: Callable[[], object]) -> float:
    """Returns the median seconds of a training step, which must have ended when `step` returns."""
    seconds = [time_call(step) for _ in range(WARM_UP + TRAINING_STEPS)]
    return statistics.median(seconds[WARM_UP:])


def time_call(function: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(result: Result) -> None:
    """Prints a result as the last line of a contestant's output, for `parse_report`."""
    print(json.dumps(dataclasses.asdict(result)), flush=True)


def parse_report(output: str) -> Result:
    """Returns the result that a contestant printed last."""
    return Result(**json.loads(output.strip().splitlines()[-1]))
