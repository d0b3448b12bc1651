"""Our samplers, min-SNR weights and Karras' noise levels beside those of diffusers.

Where the two differ by design, what is comparable is compared:

- diffusers' Heun and DPM-Solver++ would start in pure noise, where ours do not: both start at the noise level 80.
- They end at sigma = 0: so does the discrete schedule that ours walk down here, and no other.
- diffusers' Heun has no churn: both go without.
- diffusers caps the scale of dynamic thresholding at 1 by default, which makes it static: here it is not capped.
- diffusers' 1 - a_t / a_s cancels in float32, to errors of 2e-4 after 250 steps: it is given float64, ours is not.
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

from imagen_jax.diffusion.process import PREDICTIONS
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


def their_min_snr(betas):
    """The weights of diffusers' SNR, [kinds, 1000]: min(SNR, γ) of x, and as many times less as eps and v are more."""
    scheduler = scheduler_of("ddpm small", betas)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    snr = compute_snr(scheduler, torch.arange(len(scheduler.alphas_cumprod))).numpy()
    per_x = {"x": 1.0, "eps": snr, "v": snr + 1}
    return np.stack([np.minimum(snr, GAMMA) / per_x[kind] for kind in PREDICTIONS])


def their_karras_levels(steps):
    scheduler = EDMEulerScheduler(sigma_min=KARRAS_MIN, sigma_max=KARRAS_MAX)
    scheduler.set_timesteps(steps)
    return np.log(scheduler.sigmas[:-1].numpy())


def write():
    """GOLDEN: what diffusers does in each case."""
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
    """Prints the largest differences; whether all are within the tolerance."""
    seen = []

    def row(name, differences):
        seen.extend(differences)
        print(f"{name:32}" + "".join(f"{difference:12.1e}" for difference in differences))

    print(
        "\nSamplers: largest absolute difference over whole trajectories (all that the denoiser is asked about, and the"
    )
    print("result) on the same noise, the same times and the exact denoiser of a mixture of Gaussians")
    print(f"{'':32}" + "".join(f"{steps:>6} steps" for steps in STEPS))
    for betas in BETAS:
        for name in SAMPLERS:
            pairs = [(ours(name, n, alphas_of(betas)), diffusers(name, betas, n)) for n in STEPS]
            row(f"{betas:18}{name:14}", [np.abs(mine - other).max() for mine, other in pairs])
    print("\nKarras' noise levels: largest difference of their logarithms")
    row("", [np.abs(karras_levels(steps) - their_karras_levels(steps)).max() for steps in STEPS])
    print(f"\nMin-SNR weights at all 1000 times, γ = {GAMMA:g}: largest absolute difference")
    print(f"{'':32}" + "".join(f"{kind:>12}" for kind in PREDICTIONS))
    for betas in BETAS:
        row(betas, np.abs(min_snr(alphas_of(betas)) - their_min_snr(betas)).max(axis=1))
    print(f"tolerated {TOLERANCE:.0e}")
    return max(seen) <= TOLERANCE
