"""Sampler trajectories, min-SNR weights and Karras sigmas match those of diffusers in golden.npz.

diffusers has discrete times: our samplers get a schedule and times that reproduce its alphas_cumprod, see `cases`.
"""

import functools
from pathlib import Path

import numpy as np
import pytest

from tests.goldens.samplers.cases import BETAS, SAMPLERS, STEPS, TOLERANCE, karras_levels, min_snr, ours

GOLDEN = Path(__file__).parents[1] / "goldens" / "samplers" / "golden.npz"


@functools.cache
def goldens():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("betas", BETAS)
def test_trajectories_match_diffusers(betas, name, steps):
    golden = goldens()[f"{betas}/{name}/{steps}"]
    calls = 2 * steps - 1 if name == "heun" else steps
    assert golden.shape[0] == calls + 1
    np.testing.assert_allclose(ours(name, steps, goldens()[f"{betas}/alphas_cumprod"]), golden, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("betas", BETAS)
def test_min_snr_weights_match_diffusers(betas):
    golden = goldens()[f"{betas}/min_snr"]
    assert golden.shape == (3, 1000) and golden.max() == 5
    np.testing.assert_allclose(min_snr(goldens()[f"{betas}/alphas_cumprod"]), golden, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("steps", STEPS)
def test_karras_sigmas_match_diffusers(steps):
    golden = goldens()[f"karras/{steps}"]
    assert golden.shape == (steps,)
    np.testing.assert_allclose(karras_levels(steps), golden, rtol=0, atol=TOLERANCE)


def test_betas_match_papers():
    linear = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # arXiv:2006.11239, Section 4
    ends = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2  # arXiv:2102.09672, Eq. 17
    squaredcos = np.cumprod(1 - np.minimum(1 - ends[1:] / ends[:-1], 0.999))
    for betas, expected in zip(BETAS, (linear, squaredcos), strict=True):
        np.testing.assert_allclose(goldens()[f"{betas}/alphas_cumprod"], expected, rtol=1e-4)


def test_goldens_are_small():
    assert GOLDEN.stat().st_size < 300_000
