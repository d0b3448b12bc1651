"""The work with a network in torch: Adam training steps on the mean squared error of eps, and DDIM with guidance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import work

# (z [B, C, H, W], t [B] in [0, 1000), text [B, L, D]) -> eps [B, C, H, W]
Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def measure(network: torch.nn.Module, forward: Forward, guided: Forward) -> None:
    """Measures and reports.

    Args:
        network: the U-Net.
        forward: calls it.
        guided: calls it for classifier-free guidance.
    """
    torch.manual_seed(0)
    torch.set_num_threads(work.THREADS)
    image, text = _inputs(1)
    # other implementations of attention are not counted
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(image, torch.zeros(1), text)
    step_s = work.time_steps(_training_step(network, forward))
    work.report(
        work.Result(
            num_params=sum(parameter.numel() for parameter in network.parameters()),
            forward_flops=counter.get_total_flops(),
            step_s=step_s,
            sampling_s=work.time_call(lambda: _sample(network, guided)),
        )
    )


def _inputs(batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns random images and text embeddings."""
    text = torch.randn(batch_size, work.TEXT_LENGTH, work.TEXT_WIDTH)
    return torch.randn(batch_size, 3, work.SIZE, work.SIZE), text


def _training_step(network: torch.nn.Module, forward: Forward) -> Callable[[], object]:
    """Returns a training step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=work.LEARNING_RATE)
    schedule = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    image, text = _inputs(work.BATCH_SIZE)

    def step() -> None:
        eps, t = torch.randn_like(image), torch.randint(0, 1000, (work.BATCH_SIZE,))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(forward(schedule.add_noise(image, eps, t), t, text), eps).backward()
        optimizer.step()

    return step


@torch.no_grad()
def _sample(network: torch.nn.Module, guided: Forward) -> torch.Tensor:
    """Returns samples."""
    network.eval()
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(work.SAMPLING_STEPS)
    z, text = _inputs(work.SAMPLES)
    for t in scheduler.timesteps:
        z = scheduler.step(guided(z, t.expand(work.SAMPLES), text), t, z).prev_sample
    return z
