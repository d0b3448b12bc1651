"""Our samplers beside diffusers' schedulers. By hand: `make goldens` writes golden.npz, `make parity` compares live.

Where the two differ by design, what is comparable is compared:

- diffusers' Heun and DPM-Solver++ would start in pure noise, where ours do not: both start at the noise level 80.
- They end at sigma = 0: so does the discrete schedule that ours walk down here, and no other.
- diffusers' Heun has no churn: both go without.
- diffusers caps the scale of dynamic thresholding at 1 by default, which makes it static: here it is not capped.
- diffusers' 1 - a_t / a_s cancels in float32, to errors of 2e-4 after 250 steps: it is given float64, ours is not.
"""

import argparse
import importlib.metadata
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

from tests.goldens.samplers.cases import (
    BETAS,
    NOISE,
    PERCENTILE,
    SAMPLERS,
    STEPS,
    TOLERANCE,
    image,
    ours,
    timesteps,
    variance_share,
)

GOLDEN = Path(__file__).parent / "golden.npz"
COMMON = {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "sample"}
DDPM = {
    "ddpm small": {"clip_sample": False},
    "ddpm large": {"clip_sample": False, "variance_type": "fixed_large"},
    "ddpm learned": {"clip_sample": False, "variance_type": "learned_range"},
    "ddpm static": {"clip_sample": True},
    "ddpm dynamic": {
        "clip_sample": False,
        "thresholding": True,
        "dynamic_thresholding_ratio": PERCENTILE / 100,
        "sample_max_value": 1e6,
    },
}


def scheduler_of(name, betas):
    settings = {"beta_schedule": betas, **COMMON}
    match name.split():
        case ["ddpm", _]:
            return DDPMScheduler(**settings, **DDPM[name])
        case ["ddim", *_]:
            return DDIMScheduler(**settings, clip_sample=False)
        case ["dpm_solver"]:
            return DPMSolverMultistepScheduler(**settings, algorithm_type="dpmsolver++", solver_order=2)
        case ["heun"]:
            return HeunDiscreteScheduler(**settings)


def diffusers(name, betas, steps):
    """Every input of the model, and the result, [calls + 1, *SHAPE]."""
    scheduler = scheduler_of(name, betas)
    alphas_cumprod = scheduler.alphas_cumprod.numpy()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    chosen = timesteps(name, steps, alphas_cumprod)
    if name.startswith("dd"):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == chosen.tolist()
    else:
        scheduler.set_timesteps(timesteps=chosen.tolist())
    z, seen = torch.tensor(NOISE[0]).double(), []
    if name == "heun":
        z = z / float(alphas_cumprod[chosen[0]]) ** 0.5  # it walks in z / alpha
    for number, t in enumerate(scheduler.timesteps, start=1):
        model_input = scheduler.scale_model_input(z, t)
        seen.append(model_input.numpy())
        drawn = torch.tensor(NOISE[min(number, steps)])
        settings = {"eta": float(name[-1]), "variance_noise": drawn} if name.startswith("ddim") else {}
        output = model(name, seen[-1], float(alphas_cumprod[int(t)]))
        # the noise of our samplers in the place of its own
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", return_value=drawn):
            z = scheduler.step(output, t, z, **settings).prev_sample
    return np.stack([*seen, z.numpy()])


def model(name, z, alpha_cumprod):
    """The denoiser as a network of torch would say it: the variance after the image, on the channels."""
    z = z.astype(np.float64)
    said = image(z, alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5, np)
    if name == "ddpm learned":
        said = np.concatenate([said, variance_share(z, np)], axis=1)
    return torch.tensor(said)


def alphas_of(betas):
    return scheduler_of("ddpm small", betas).alphas_cumprod.numpy()


def write():
    arrays = {f"{betas}/alphas_cumprod": alphas_of(betas) for betas in BETAS}
    for betas in BETAS:
        for name in SAMPLERS:
            for steps in STEPS:
                arrays[f"{betas}/{name}/{steps}"] = diffusers(name, betas, steps).astype(np.float32)
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {len(arrays)} arrays, {GOLDEN.stat().st_size / 1000:.0f} kB")


def compare():
    """Prints the largest difference of each whole trajectory; whether all are within the tolerance."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "torch", "jax"))
    print(f"{versions}: largest absolute difference over whole trajectories, on the same noise, denoiser and times")
    print(f"{'':32}" + "".join(f"{steps:>6} steps" for steps in STEPS))
    worst = 0.0
    for betas in BETAS:
        for name in SAMPLERS:
            errors = [np.abs(ours(name, n, alphas_of(betas)) - diffusers(name, betas, n)).max() for n in STEPS]
            print(f"{betas:18}{name:14}" + "".join(f"{error:12.1e}" for error in errors))
            worst = max(worst, *errors)
    print(f"largest of all {worst:.1e}, tolerated {TOLERANCE:.0e}: {'passed' if worst <= TOLERANCE else 'FAILED'}")
    return worst <= TOLERANCE


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", action="store_true", help="write golden.npz")
    group.add_argument("--compare", action="store_true", help="print how far apart the two are")
    if parser.parse_args().write:
        write()
    else:
        sys.exit(not compare())
