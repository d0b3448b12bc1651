"""The Efficient U-Net against the U-Net in super-resolution, at equal parameters (arXiv:2205.11487, Section 4.4)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from matplotlib.figure import Figure

from benchmarks.claims.experiment import Figures, Workspace, examples, load, sample_images
from benchmarks.claims.measures import NOISE_LEVELS, denoising_errors, downsample, evaluate_images, mean_error
from benchmarks.claims.report import format_change, format_rate, format_table
from imagen_jax.config.schema import StageConfig
from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.parallel import batching
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.planning.cost import stage_cost
from imagen_jax.stages import stage as stages
from imagen_jax.stages.text import make_encoder
from imagen_jax.training.diffusion import DiffusionObjective
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.stage_objective import TRAINING_AXES
from imagen_jax.training.state import Frozen, abstract_state
from imagen_jax.training.step import make_train_step

TITLE = "The Efficient U-Net"
CLAIM = "in super-resolution the Efficient U-Net trains faster than a U-Net, and gives better images"
STEPS = 200
IMAGES = 128
PAIRS = 24
SHARED = {
    "model.patch_size": 2,
    "model.channel_mult": (1, 2),
    "model.num_res_blocks": (1, 1),
    "model.attention_types": ((), ()),
    "model.num_groups": 4,
}
# channels chosen for equal parameters, as far as a multiple of the groups allows
NETWORKS = {"unet": {"model.channels": 24}, "efficient_unet": {"model.channels": 36}}
NAMES = {"unet": "U-Net", "efficient_unet": "Efficient U-Net"}


def network_config(work: Workspace, network: str, steps: int) -> StageConfig:
    """Returns the config of the demo's super-resolution stage with one of the networks."""
    middle = {"model.middle_attention_types": ()} if network == "unet" else {}
    return work.config("sr", steps, {"model.network": network} | SHARED | NETWORKS[network] | middle)


def measure(work: Workspace) -> Figures:
    """Implements `Claim`."""
    speed = work.cached("networks/speed", lambda: measure_speed(work))
    # the steps of the faster network in the time of the slower one's
    equal_time_steps = round(STEPS * speed["ratio"])
    runs = [("unet", STEPS), ("efficient_unet", STEPS), ("efficient_unet", equal_time_steps)]
    return speed | {
        "images": work.num_images(IMAGES),
        "runs": [measure_one(work, network, steps) for network, steps in runs],
    }


def measure_speed(work: Workspace) -> Figures:
    """Returns the training images/s of both networks, whose steps alternate: the machine's load affects both."""
    steps = {network: training_step(network_config(work, network, STEPS)) for network in NETWORKS}
    seconds: dict[str, list[float]] = {network: [] for network in NETWORKS}
    for _ in range(work.steps(PAIRS)):
        for network, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[network].append(time.perf_counter() - start)
    batch_size = network_config(work, "unet", STEPS).training.batch_size
    return {
        "images_per_second": {network: batch_size / statistics.median(took) for network, took in seconds.items()},
        "ratio": statistics.median(
            slow / fast for slow, fast in zip(seconds["unet"], seconds["efficient_unet"], strict=True)
        ),
        "costs": {network: _network_cost(network_config(work, network, STEPS)) for network in NETWORKS},
    }


def training_step(config: StageConfig) -> Callable[[], Any]:
    """A function that makes one step of training on one and the same batch and waits for it; compiled already."""
    mesh = make_mesh(config.mesh.axes)
    encoder = make_encoder(config.text)
    stage = stages.build(config, encoder.width)
    batches = training_batches(
        make_examples(config.data, config.data.split, config.image_hw, config.channels),
        text_features=encoder.tokenize.as_features,
        batch_size=config.training.batch_size,
        seed=config.seed,
        threads=1,
        prefetch=1,
    )
    batch = batching.shard_local_batch(next(batches), TRAINING_AXES, mesh)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    abstract, init_state = abstract_state(stage.init, optimizer, config.seed, mesh)
    frozen = Frozen(encoder.load(mesh))
    train_step = make_train_step(DiffusionObjective(stage, encoder), config, optimizer, abstract, mesh)
    state = init_state()

    def step() -> None:
        nonlocal state
        state, metrics = train_step(state, frozen, batch)
        jax.block_until_ready(metrics)

    step()
    return step


def _network_cost(config: StageConfig) -> Figures:
    """Returns the parameters and the training operations per image."""
    cost = stage_cost(config, make_encoder(config.text).width)
    return {"parameters": cost.num_params, "training_flops": cost.training_flops}


def measure_one(work: Workspace, network: str, steps: int) -> Figures:
    """Returns the figures of a network after some steps."""
    name = f"networks/{network}_{work.steps(steps)}"

    def figures() -> Figures:
        trained = load(work.train(name, network_config(work, network, steps)))
        size = trained.stage.config.image_hw[0]
        validation = examples("validation", size, work.num_images(IMAGES))
        held_out = examples("held_out", size, work.num_images(IMAGES))
        true = downsample(held_out.images, trained.stage.config.low_res_hw[0])
        base = sample_images(load(work.stages[0]), held_out.captions)[0]
        return {
            "network": network,
            "steps": work.steps(steps),
            "errors": denoising_errors(trained, validation),
            "true": evaluate_images(sample_images(trained, held_out.captions, true)[0], held_out),
            "sampled": evaluate_images(sample_images(trained, held_out.captions, base)[0], held_out),
        }

    return work.cached(f"{name}/figures", figures)


def summarize(figures: Figures) -> str:
    """Implements `Claim`."""
    unet, *efficient = figures["runs"]
    comparisons = [
        f"{condition} its error is {mean_error(run['errors']) / mean_error(unet['errors']):.2f} times the U-Net's "
        f"and its PSNR {run['true']['psnr'] - unet['true']['psnr']:+.1f} dB, fully correct enlargements of "
        f"samples {format_change(unet['sampled']['scores']['all'], run['sampled']['scores']['all'])}"
        for condition, run in zip(("at equal steps", "at equal time"), efficient, strict=True)
    ]
    return (
        f"it trains at {figures['ratio']:.2f} times the images/s of a U-Net with equal parameters; "
        f"{'; '.join(comparisons)}."
    )


def describe(figures: Figures) -> str:
    """Implements `Claim`."""
    speeds, costs = figures["images_per_second"], figures["costs"]
    size = [
        [
            NAMES[network],
            f"{costs[network]['parameters']:,}",
            f"{costs[network]['training_flops'] / 1e6:,.0f}",
            f"{speeds[network]:.0f}",
        ]
        for network in NETWORKS
    ]
    quality = [
        [
            NAMES[run["network"]],
            str(run["steps"]),
            f"{mean_error(run['errors']):.5f}",
            f"{run['true']['psnr']:.1f}",
            format_rate(run["true"]["scores"]["all"]),
            format_rate(run["sampled"]["scores"]["all"]),
        ]
        for run in figures["runs"]
    ]
    return "\n\n".join(
        [
            "Two networks with two levels, one residual block per level and 2×2 patches replace the demo's "
            "super-resolution network; their channels are chosen for equal parameters. The Efficient U-Net works at "
            "half the resolution, as in the paper: it downsamples before its blocks and upsamples after them. Images/s "
            "are medians of alternating training steps, so that the machine's load affects both networks: the "
            f"Efficient U-Net makes {figures['ratio']:.2f} steps in the time of one step of the U-Net, the median of "
            "pairs, which is more reliable than either figure.",
            format_table(["network", "parameters", "training MFLOP per image", "training images/s"], size),
            "Both are trained for equal steps, and the Efficient U-Net also for equal time. *Error* is the "
            f"mean squared error of x̂ on validation images, the geometric mean over noise levels "
            f"{', '.join(map(str, NOISE_LEVELS))}; the "
            f"rest is for {figures['images']} held-out captions: enlarged true images, and samples of the demo's base.",
            format_table(["network", "steps", "error", "PSNR, dB", "correct, true", "correct, samples"], quality),
        ]
    )


def plot(figures: Figures) -> Figure:
    """Implements `Claim`."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    speeds = figures["images_per_second"]
    left.bar([NAMES[network] for network in speeds], list(speeds.values()), color=["tab:blue", "tab:orange"])
    left.set(ylabel="training images/s")
    for run, style in zip(figures["runs"], ("-", "-", "--"), strict=True):
        colour = "tab:blue" if run["network"] == "unet" else "tab:orange"
        label = f"{NAMES[run['network']]}, {run['steps']} steps"
        right.plot(NOISE_LEVELS, run["errors"], style, color=colour, marker="o", label=label)
    right.set(xlabel="noise level", ylabel="mean squared error of x̂", yscale="log")
    right.grid(alpha=0.3)
    right.legend()
    return figure
