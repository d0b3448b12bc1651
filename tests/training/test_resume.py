"""A run that was stopped and resumed is the run that was never stopped, to the bit."""

import shutil

import jax
import numpy as np
import pytest

from imagen_jax.stages import stage as stages
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from tests.helpers.configs import STEPS, base_config, eight_devices, fresh_params, one_device, restored

pytest_plugins = ("tests.helpers.fixtures",)
OF_THE_CLOCK = ("images_per_second", "data_wait", "time/", "goodput")


@pytest.fixture(scope="module")
def resumed_folder(tmp_path_factory):
    """Trained to step 3, killed between steps 5 and 6 in the middle of a save and of a line, and trained to the end."""
    folder = tmp_path_factory.mktemp("resumed") / "base"
    train(base_config(**{"training.steps": 3}), folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 99.0}\n{"step": 5, "loss": 99.0}\n{"step": 6, "lo')
    checkpoints = folder / "checkpoints"
    shutil.copytree(checkpoints / "3", checkpoints / "5.orbax-checkpoint-tmp")
    train(base_config(), folder)
    return folder


def state_of(folder, mesh):
    return restored(folder, base_config(), mesh)


def test_the_resumed_run_is_the_unbroken_run(base_folder, resumed_folder):
    (unbroken, position), (resumed, resumed_position) = (
        state_of(folder, eight_devices()) for folder in (base_folder, resumed_folder)
    )
    assert int(unbroken.step) == STEPS
    assert position == resumed_position
    assert jax.tree.structure(unbroken) == jax.tree.structure(resumed)
    for leaf, other in zip(jax.tree.leaves(unbroken), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_the_resumed_run_tells_the_same_story(base_folder, resumed_folder):
    told = [
        [
            {name: value for name, value in line.items() if not name.startswith(OF_THE_CLOCK)}
            for line in read_metrics(folder)
        ]
        for folder in (base_folder, resumed_folder)
    ]
    losses = [(line["step"], line["loss"]) for line in told[0] if "loss" in line]
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert len({loss for _, loss in losses}) == STEPS
    # in any order: a step's loss is read after its preview is drawn
    assert sorted(told[0], key=str) == sorted(told[1], key=str)


def test_the_resumed_run_draws_the_same_previews(base_folder, resumed_folder):
    for step in (3, 6):
        name = f"previews/{step:08d}.png"
        assert (base_folder / name).read_bytes() == (resumed_folder / name).read_bytes()


def test_the_position_in_the_data_is_that_of_the_examples_seen(base_folder):
    _, position = state_of(base_folder, one_device())
    # the pipeline reads ahead, but counts the batches that it handed out
    assert position == {"next_index": STEPS}


@pytest.mark.trap("EMA swapped into parameters")
def test_training_moved_parameters_and_the_average_apart(base_folder):
    state, _ = state_of(base_folder, one_device())
    fresh = fresh_params(stages.build(base_config()))
    pairs = zip(*map(jax.tree.leaves, (state.params, state.ema_params, fresh)), strict=True)
    moved = [not (np.array_equal(p, e) or np.array_equal(p, f)) for p, e, f in pairs]
    assert np.mean(moved) > 0.9


def test_a_finished_run_is_left_as_it_is(resumed_folder):
    before, _ = state_of(resumed_folder, one_device())
    train(base_config(), resumed_folder)
    after, _ = state_of(resumed_folder, one_device())
    for leaf, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(leaf, other)
    assert [line["step"] for line in read_metrics(resumed_folder) if "loss" in line] == list(range(1, STEPS + 1))
