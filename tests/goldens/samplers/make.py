"""Compares our samplers, min-SNR weights and Karras noise levels with those of diffusers.

Where the two differ by design, the comparison is restricted:

- diffusers' Heun and DPM-Solver++ start in pure noise, ours do not: both start at noise level 80 here.
- They end at sigma = 0: so does the discrete schedule used here.
- diffusers' Heun has no churn: neither uses it here.
- diffusers caps the scale of dynamic thresholding at 1 by default, which makes it static: here it is not capped.
- diffusers' 1 - a_t / a_s cancels in float32, to errors of 2e-4 after 250 steps: it runs in float64, ours does not.
"""

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    HeunDiscreteScheduler,
)
from diffusers.training_utils import compute_snr

from imagen_jax.diffusion.process import PREDICTION_TYPES
from imagen_jax.diffusion.timesteps import KARRAS_MAX, KARRAS_MIN
from tests.goldens.samplers.cases import (
    BETAS,
    GAMMA,
    NOISE,
    PERCENTILE,
    SAMPLERS,
    STEPS,
    TOLERANCE,
    image,
    karras_levels,
    min_snr,
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
    """Returns all inputs of the model, and the result, [calls + 1, *SHAPE]."""
    scheduler = scheduler_of(name, betas)
    alphas_cumprod = scheduler.alphas_cumprod.numpy()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    times = timesteps(name, steps, alphas_cumprod)
    if name.startswith("dd"):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == times.tolist()
    else:
        scheduler.set_timesteps(timesteps=times.tolist())
    z, trajectory = torch.tensor(NOISE[0]).double(), []
    if name == "heun":
        z = z / float(alphas_cumprod[times[0]]) ** 0.5  # it integrates z / alpha
    for step, t in enumerate(scheduler.timesteps, start=1):
        model_input = scheduler.scale_model_input(z, t)
        trajectory.append(model_input.numpy())
        noise = torch.tensor(NOISE[min(step, steps)])
        settings = {"eta": float(name[-1]), "variance_noise": noise} if name.startswith("ddim") else {}
        output = model(name, trajectory[-1], float(alphas_cumprod[int(t)]))
        # uses the noise of our samplers
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", return_value=noise):
            z = scheduler.step(output, t, z, **settings).prev_sample
    return np.stack([*trajectory, z.numpy()])


def model(name, z, alpha_cumprod):
    """Returns the denoiser's output as of a torch network: image and variance concatenated by channels."""
    z = z.astype(np.float64)
    output = image(z, alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5, np)
    if name == "ddpm learned":
        output = np.concatenate([output, variance_share(z, np)], axis=1)
    return torch.tensor(output)


def alphas_of(betas):
    return scheduler_of("ddpm small", betas).alphas_cumprod.numpy()


def their_min_snr(betas):
    """Returns weights from diffusers' SNR, [types, 1000]: min(SNR, γ) for x, converted for eps and v."""
    scheduler = scheduler_of("ddpm small", betas)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    snr = compute_snr(scheduler, torch.arange(len(scheduler.alphas_cumprod))).numpy()
    per_x = {"x": 1.0, "eps": snr, "v": snr + 1}
    return np.stack([np.minimum(snr, GAMMA) / per_x[name] for name in PREDICTION_TYPES])


def their_karras_levels(steps):
    scheduler = EDMEulerScheduler(sigma_min=KARRAS_MIN, sigma_max=KARRAS_MAX)
    scheduler.set_timesteps(steps)
    return np.log(scheduler.sigmas[:-1].numpy())


def write():
    """Writes the results of diffusers to GOLDEN."""
    arrays = {f"karras/{steps}": their_karras_levels(steps) for steps in STEPS}
    for betas in BETAS:
        arrays[f"{betas}/alphas_cumprod"] = alphas_of(betas)
        arrays[f"{betas}/min_snr"] = their_min_snr(betas).astype(np.float32)
        for name in SAMPLERS:
            for steps in STEPS:
                arrays[f"{betas}/{name}/{steps}"] = diffusers(name, betas, steps).astype(np.float32)
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {len(arrays)} arrays, {GOLDEN.stat().st_size / 1000:.0f} kB")


def compare():
    """Prints the largest differences, and returns whether all are within the tolerance."""
    seen = []

    def row(name, differences):
        seen.extend(differences)
        print(f"{name:32}" + "".join(f"{difference:12.1e}" for difference in differences))

    print("\nSamplers: largest absolute difference over trajectories (all inputs of the denoiser, and the")
    print("result) with the same noise, the same times and the exact denoiser of a mixture of Gaussians")
    print(f"{'':32}" + "".join(f"{steps:>6} steps" for steps in STEPS))
    for betas in BETAS:
        for name in SAMPLERS:
            pairs = [(ours(name, n, alphas_of(betas)), diffusers(name, betas, n)) for n in STEPS]
            row(f"{betas:18}{name:14}", [np.abs(mine - other).max() for mine, other in pairs])
    print("\nKarras' noise levels: largest difference of logarithms")
    row("", [np.abs(karras_levels(steps) - their_karras_levels(steps)).max() for steps in STEPS])
    print(f"\nMin-SNR weights at all 1000 times, γ = {GAMMA:g}: largest absolute difference")
    print(f"{'':32}" + "".join(f"{name:>12}" for name in PREDICTION_TYPES))
    for betas in BETAS:
        row(betas, np.abs(min_snr(alphas_of(betas)) - their_min_snr(betas)).max(axis=1))
    print(f"tolerated {TOLERANCE:.0e}")
    return max(seen) <= TOLERANCE
