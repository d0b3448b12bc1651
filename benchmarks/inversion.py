"""Measure how closely images return from their noise: `python -m benchmarks.inversion --stages=DIR`.

Images are sampled from a base stage by DDIM without guidance, walked up to their noise and down again. Prints the PSNR
of the mean squared error over all images, of the median image and of the worst one, by the evaluations in each step up.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path, define_stages
from imagen_jax.cli.sample import read_prompts
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.loading import load_stage, make_encoders, read_chain
from imagen_jax.stages.sampling import make_sampler
from imagen_jax.stages.stage_sampler import NoiseSource, StageSampler, make_request

HEADER = (
    "| evaluations a step | PSNR, dB | median | worst | standard deviation of the noise |",
    "|---|---|---|---|---|",
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_stages(values)
    define_path(values, "prompts_file", "configs/shapes_prompts.txt", "A text file with a prompt a line.")
    flags.DEFINE_integer("num_images", 16, "Images, of the first prompts.", flag_values=values)
    flags.DEFINE_integer("num_inference_steps", 50, "Steps up, and steps down.", flag_values=values)
    flags.DEFINE_list("iterations", ["1", "2", "3", "5"], "Evaluations in each step up.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Samples, inverts, and prints the table."""
    mesh = make_mesh({"data": 1, "fsdp": 1})
    settings = {"sampler": "ddim", "eta": 0.0, "guidance_scale": 1.0, "threshold": "none"}
    settings |= {"num_inference_steps": args.num_inference_steps}
    folder = args.stage_folders()[0]
    (config,) = read_chain([folder], [settings])
    trained, (encoder,) = load_stage(folder, config, mesh), make_encoders([config], mesh)
    prompts = read_prompts(None, args.prompts_file)
    request = make_request(trained.stage, encoder, prompts[: args.num_images], NoiseSource())
    down = StageSampler(trained.stage, mesh)
    images = down.sample(trained.params, request)
    sampler = make_sampler(config.sampling, trained.stage.schedule)
    times = np.asarray(sampler.times(args.num_inference_steps, config.sampling.timestep_spacing))
    print(*HEADER, sep="\n", flush=True)
    for iterations in map(int, args.iterations):
        up = StageSampler(trained.stage.with_sampling({"inversion_iterations": iterations}), mesh)
        *_, last = up.walk(trained.params, dataclasses.replace(request, times=times[::-1], z=images))
        noise = last.state.z
        again = down.sample(trained.params, dataclasses.replace(request, z=noise))
        errors = np.square(np.asarray(again) - images).mean(axis=(1, 2, 3))[: args.num_images]
        figures = (f"{_psnr(error):.1f}" for error in (errors.mean(), np.median(errors), errors.max()))
        print(f"| {iterations} | {' | '.join(figures)} | {float(np.std(noise)):.3f} |", flush=True)


def _psnr(mean_squared_error: float) -> float:
    """Returns the PSNR in dB of images in [-1, 1]."""
    return 10 * float(np.log10(4 / mean_squared_error))


if __name__ == "__main__":
    app.main(__name__)
