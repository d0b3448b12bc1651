"""What is different when a run resumes: the keys of its config, the learning rate and the data, in sentences."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from imagen_jax.config.load import from_json, to_json
from imagen_jax.config.paths import map_paths
from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.changes import changes, flatten
from imagen_jax.training.optimizers import decay_end, learning_rate_schedule
from imagen_jax.training.state import TrainState

# What a change of a key, or of a group of keys, means for a run that resumes; the first that fits counts.
_MEANINGS = {
    "data.path": "the images there are trained on from now on",
    "diffusion.low_res_vae": "the VAE there has the same weights",
    "text.cache": "embeddings are read there; they have to be of the same encoder",
    "optimizer.ema_decay": "the EMA so far is kept",
    "optimizer.": "it takes effect from this step; the running means of gradients are kept",
    "mesh.": "results differ by rounding",
    "sharding_rules": "results differ by rounding",
    "evaluation.": "training does not depend on it",
    "sampling.": "for previews and samples; training does not depend on it",
}


def log_changes(
    saved: dict[str, Any],
    config: StageConfig,
    state: TrainState,
    num_examples: Sequence[int],
    log: Callable[[str], None],
) -> None:
    """Logs what is different in a run that resumes, and whether there is anything left to train.

    Args:
        saved: see `describe_changes`.
        config: see `describe_changes`.
        state: see `describe_changes`.
        num_examples: see `describe_changes`.
        log: gets each sentence.
    """
    step = int(state.step)
    lines = describe_changes(saved, config, state, num_examples)
    if lines:
        log(f"step {step} was trained with another config or other data:")
    for line in lines:
        log(line)
    if step >= config.training.steps:
        log(
            f"training.steps {config.training.steps} is reached, the last checkpoint is of step {step}: nothing is "
            "trained; raise training.steps to train on"
        )


def describe_changes(
    saved: dict[str, Any], config: StageConfig, state: TrainState, num_examples: Sequence[int]
) -> list[str]:
    """Returns what has changed since a checkpoint was written, one sentence each; nothing if all is as it was.

    Args:
        saved: the checkpoint's metadata; those of earlier versions have no `num_examples`.
        config: the config of the run that resumes.
        state: the restored state.
        num_examples: the number of training examples now, of each bucket of sizes.
    """
    try:
        before: StageConfig = from_json(saved["config"])
    except ConfigError as error:
        return [f"the config in the checkpoint cannot be read, and is not compared: {error}"]
    # `~/photos` and `/home/ann/photos` are the same
    trees = [flatten(to_json(map_paths(one, os.path.expanduser))) for one in (before, config)]
    found = changes(trees[0], trees[1])
    step = int(state.step)
    lines = [f"{change}{_meaning(key)}" for key, change in found.items()]
    lines += _learning_rate_changes(before, config, step, step - int(state.opt_state.skipped))
    lines += _data_changes(saved.get("num_examples"), list(num_examples))
    return lines


def _meaning(key: str) -> str:
    meaning = next((text for prefix, text in _MEANINGS.items() if key.startswith(prefix)), "")
    return f" ({meaning})" if meaning else ""


def _learning_rate_changes(before: StageConfig, now: StageConfig, step: int, updates: int) -> list[str]:
    """Returns how the learning rate and its end differ, if they do, after a number of applied updates."""
    rates, ends, last = [], [], []
    for config in (before, now):
        rate = learning_rate_schedule(config.optimizer, config.training.steps)
        ends.append(decay_end(config.optimizer, config.training.steps))
        rates.append(float(rate(updates)))
        last.append(float(rate(ends[-1])))
    if (rates[0], ends[0], last[0]) == (rates[1], ends[1], last[1]):
        return []
    return [
        f"the learning rate after step {step} is {rates[1]:.4g} instead of {rates[0]:.4g}, and its schedule ends at "
        f"step {ends[1]} with {last[1]:.3g} instead of at step {ends[0]} with {last[0]:.3g}"
    ]


def _data_changes(before: list[int] | None, now: list[int]) -> list[str]:
    """Returns what another number of examples means; nothing if it is the same, or was not saved."""
    if before is None or before == now:
        return []
    sizes = "" if len(now) == 1 else f" (by size: {now} instead of {before})"
    return [
        f"the data have {sum(now)} training examples instead of {sum(before)}{sizes}: their order depends on their "
        "number, so that until the end of this epoch some examples are repeated and others are left out; each later "
        "epoch has every example once"
    ]
