"""Measure what is added to the compiled samplers: `python -m benchmarks.sampling_overhead --stages=DIR,DIR`.

Two comparisons, in turn, by the ratios of the least times: walks that stop every few steps beside unbroken ones, in the
last stage; and calls of a pipeline, with prompts, a progress bar and images that come to the host, beside the samplers
of its stages alone, on text that is on the device.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
from absl import flags

from benchmarks import app
from imagen_jax import ImagenPipeline
from imagen_jax.cli.flags import CommandFlags, define_path, define_stages
from imagen_jax.cli.sample import read_prompts
from imagen_jax.pipelines.loading import make_encoders
from imagen_jax.stages.stage_sampler import NoiseSource, StageRequest, StageSampler, make_request

HEADER = ("| | seconds | of | ratio |", "|---|---|---|---|")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_stages(values)
    define_path(values, "prompts_file", "configs/shapes_prompts.txt", "A text file with a prompt a line.")
    flags.DEFINE_integer("num_images", 64, "Images of a call.", flag_values=values)
    flags.DEFINE_integer("batch_size", 16, "Images of a batch.", flag_values=values)
    flags.DEFINE_integer("num_inference_steps", 64, "Steps of each stage.", flag_values=values)
    flags.DEFINE_integer("steps_per_call", 8, "Steps of a part of a walk.", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "Times of each measurement.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Measures, and prints the table."""
    folders = [str(folder) for folder in args.stage_folders()]
    pipeline = ImagenPipeline.from_pretrained(folders)
    pipeline = pipeline.with_settings([{"num_inference_steps": args.num_inference_steps}] * len(folders))
    pipeline.set_progress_bar_config(mininterval=1)
    lines = read_prompts(None, args.prompts_file)
    prompts = [lines[index % len(lines)] for index in range(args.num_images)]
    bare = _BareCascade(pipeline, prompts, args.batch_size)
    print(*HEADER, sep="\n", flush=True)
    parts, whole = _least_seconds(
        args.rounds, lambda: bare.walk_last_stage(args.steps_per_call), lambda: bare.walk_last_stage(2**30)
    )
    print(
        f"| walk in parts of {args.steps_per_call} steps | {parts:.2f} | {whole:.2f} | {parts / whole:.3f} |",
        flush=True,
    )
    call, programs = _least_seconds(
        args.rounds, lambda: pipeline(prompts, batch_size=args.batch_size), lambda: list(bare.sample())
    )
    print(f"| call for {args.num_images} images | {call:.2f} | {programs:.2f} | {call / programs:.3f} |", flush=True)


class _BareCascade:
    """The samplers of a pipeline's stages, on batches that are on the device."""

    def __init__(self, pipeline: ImagenPipeline, prompts: list[str], batch_size: int) -> None:
        self._stages = pipeline.stages
        self._samplers = [StageSampler(trained.stage, pipeline.mesh) for trained in pipeline.stages]
        encoders = make_encoders([trained.stage.config for trained in pipeline.stages], pipeline.mesh)
        self._requests = [
            [
                make_request(trained.stage, encoder, prompts[first : first + batch_size], NoiseSource(0, first, index))
                for index, (trained, encoder) in enumerate(zip(self._stages, encoders, strict=True))
            ]
            for first in range(0, len(prompts), batch_size)
        ]
        *_, self._first_low_res, _ = [None, *self._images_of_batch(self._requests[0])]

    def _images_of_batch(self, requests: list[StageRequest]) -> Iterator[jax.Array]:
        low_res = None
        for trained, sampler, request in zip(self._stages, self._samplers, requests, strict=True):
            low_res = sampler.sample(trained.params, dataclasses.replace(request, low_res=low_res))
            yield low_res

    def sample(self) -> Iterator[jax.Array]:
        """Yields the images of each batch."""
        for requests in self._requests:
            *_, images = self._images_of_batch(requests)
            yield images.block_until_ready()

    def walk_last_stage(self, steps_per_call: int) -> None:
        """Samples the first batch in the last stage."""
        request = dataclasses.replace(self._requests[0][-1], low_res=self._first_low_res)
        *_, last = self._samplers[-1].walk(self._stages[-1].params, request, steps_per_call)
        last.state.z.block_until_ready()


def _least_seconds(rounds: int, *functions: Callable[[], object]) -> list[float]:
    """Returns the least seconds of each function, called in turn, after one call that compiles."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(1 + rounds):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [min(times[1:]) for times in seconds]


if __name__ == "__main__":
    app.main(__name__)
