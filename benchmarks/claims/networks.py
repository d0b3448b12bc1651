"""The Efficient U-Net against the U-Net in super-resolution, at equal parameters (arXiv:2205.11487, Section 4.4)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from matplotlib.figure import Figure

from benchmarks.claims.experiment import Figures, Workplace, draw, examples, load
from benchmarks.claims.measures import NOISE_LEVELS, denoising_errors, judged, mean_error, shrunk
from benchmarks.claims.report import change, interval, table
from imagen_jax.config.schema import StageConfig
from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.parallel import batching
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.planning.cost import stage_cost
from imagen_jax.stages import stage as stages
from imagen_jax.stages.stage import load_encoder_params
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_state
from imagen_jax.training.step import make_train_step

TITLE = "The Efficient U-Net"
CLAIM = "in super-resolution the Efficient U-Net trains faster than a U-Net, to better pictures"
STEPS = 200
PICTURES = 128
PAIRS = 24
SHARED = {
    "model.patch_size": 2,
    "model.channel_mult": (1, 2),
    "model.num_res_blocks": (1, 1),
    "model.attention_types": ((), ()),
    "model.num_groups": 4,
}
# channels: as many as make parameters equal, as nearly as a multiple of the groups can
NETWORKS = {"unet": {"model.channels": 24}, "efficient_unet": {"model.channels": 36}}
NAMES = {"unet": "U-Net", "efficient_unet": "Efficient U-Net"}


def network_config(work: Workplace, network: str, steps: int) -> StageConfig:
    """The super-resolution stage of the demo with one of the networks."""
    middle = {"model.middle_attention_types": ()} if network == "unet" else {}
    return work.config("sr", steps, {"model.network": network} | SHARED | NETWORKS[network] | middle)


def measure(work: Workplace) -> Figures:
    """See ``Claim``."""
    speed = work.remember("networks/speed", lambda: measure_speed(work))
    # as many steps as the faster one makes in the time of the slower one's
    longer = round(STEPS * speed["ratio"])
    runs = [("unet", STEPS), ("efficient_unet", STEPS), ("efficient_unet", longer)]
    return speed | {
        "pictures": work.pictures(PICTURES),
        "runs": [measure_one(work, network, steps) for network, steps in runs],
    }


def measure_speed(work: Workplace) -> Figures:
    """Images/s of both in training, step by step in turn, so that what else the machine does meets both."""
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
        "costs": {network: costs_of(network_config(work, network, STEPS)) for network in NETWORKS},
    }


def training_step(config: StageConfig) -> Callable[[], Any]:
    """A function that makes one step of training on one and the same batch and waits for it; compiled already."""
    mesh = make_mesh(config.mesh.axes)
    stage = stages.build(config)
    batches = training_batches(
        make_examples(config.data, config.data.split, config.image_size, config.channels),
        text_features=stage.encoder.tokenize.as_features,
        batch_size=config.training.batch_size,
        seed=config.seed,
        threads=1,
        prefetch=1,
    )
    batch = batching.shard_local_batch(next(batches), mesh)
    optimizer = make_optimizer(config.optimizer)
    abstract, init_state = abstract_state(stage.init, optimizer, config.seed, mesh)
    encoder_params = load_encoder_params(stage, mesh)
    train_step = make_train_step(stage, optimizer, abstract, mesh)
    state = init_state()

    def step() -> None:
        nonlocal state
        state, metrics = train_step(state, encoder_params, batch)
        jax.block_until_ready(metrics)

    step()
    return step


def costs_of(config: StageConfig) -> Figures:
    """Parameters, and operations of an image in training."""
    spent = stage_cost(config, stages.build(config).encoder.width)
    return {"parameters": spent.num_params, "training_flops": spent.training_flops}


def measure_one(work: Workplace, network: str, steps: int) -> Figures:
    """What a network comes to after some steps."""
    name = f"networks/{network}_{work.steps(steps)}"

    def figures() -> Figures:
        trained = load(work.train(name, network_config(work, network, steps)))
        size = trained.stage.config.image_size
        seen = examples("validation", size, work.pictures(PICTURES))
        asked = examples("held_out", size, work.pictures(PICTURES))
        true = shrunk(asked.images, trained.stage.config.low_res_size)
        base = draw(load(work.stages[0]), asked.captions)[0]
        return {
            "network": network,
            "steps": work.steps(steps),
            "errors": denoising_errors(trained, seen),
            "true": judged(draw(trained, asked.captions, true)[0], asked),
            "drawn": judged(draw(trained, asked.captions, base)[0], asked),
        }

    return work.remember(f"{name}/figures", figures)


def find(figures: Figures) -> str:
    """See ``Claim``."""
    unet, *efficient = figures["runs"]
    comparisons = [
        f"{given} its error is {mean_error(run['errors']) / mean_error(unet['errors']):.2f} times the U-Net's and its "
        f"PSNR {run['true']['psnr'] - unet['true']['psnr']:+.1f} dB, right in all of the base's pictures "
        f"{change(unet['drawn']['scores']['all'], run['drawn']['scores']['all'])}"
        for given, run in zip(("at equal steps", "at equal time"), efficient, strict=True)
    ]
    return (
        f"it trains at {figures['ratio']:.2f} times the images/s of a U-Net of as many parameters; "
        f"{'; '.join(comparisons)}."
    )


def tell(figures: Figures) -> str:
    """See ``Claim``."""
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
            interval(run["true"]["scores"]["all"]),
            interval(run["drawn"]["scores"]["all"]),
        ]
        for run in figures["runs"]
    ]
    return "\n\n".join(
        [
            "Two networks of two levels, one residual block each way and patches of 2×2 take the place of the demo's "
            "super-resolution network, their channels chosen for equal parameters. The Efficient U-Net does its work "
            "at half the size, as in the paper: it halves before its blocks and doubles after them. Images/s are "
            "medians of training steps made in turn, so that whatever else the machine does meets both: the Efficient "
            f"U-Net makes {figures['ratio']:.2f} steps in the time of one of the U-Net's, the median of pairs, which "
            "says more than either figure.",
            table(["network", "parameters", "MFLOP an image in training", "images/s in training"], size),
            "Trained for equal steps, and the Efficient U-Net for equal time. *Error* is the mean squared error of x̂ "
            f"on validation pictures, the geometric mean of noise levels {', '.join(map(str, NOISE_LEVELS))}; the rest "
            f"is of {figures['pictures']} held-out captions: enlarged true pictures, and those of the demo's base.",
            table(["network", "steps", "error", "PSNR, dB", "all right, true", "all right, the base's"], quality),
        ]
    )


def plot(figures: Figures) -> Figure:
    """See ``Claim``."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    speeds = figures["images_per_second"]
    left.bar([NAMES[network] for network in speeds], list(speeds.values()), color=["tab:blue", "tab:orange"])
    left.set(ylabel="images/s in training")
    for run, style in zip(figures["runs"], ("-", "-", "--"), strict=True):
        colour = "tab:blue" if run["network"] == "unet" else "tab:orange"
        label = f"{NAMES[run['network']]}, {run['steps']} steps"
        right.plot(NOISE_LEVELS, run["errors"], style, color=colour, marker="o", label=label)
    right.set(xlabel="noise level", ylabel="mean squared error of x̂", yscale="log")
    right.grid(alpha=0.3)
    right.legend()
    return figure
