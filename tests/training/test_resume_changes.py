"""What changed between two starts of a run is said when it resumes."""

import shutil

import jax
import numpy as np
import pytest

from imagen_jax.config.load import to_json
from imagen_jax.errors import ConfigError
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from imagen_jax.training.optimizers import learning_rate_schedule, make_optimizer
from imagen_jax.training.resume import describe_changes
from imagen_jax.training.state import TrainState
from tests.helpers.archives import encode_image
from tests.helpers.configs import STEPS, base_config, contents
from tests.helpers.denoising import DenoisingTask

pytest_plugins = ("tests.helpers.fixtures",)
FOLLOWING = {"optimizer.decay_steps": 0}


def state(step, skipped=0):
    return TrainState(np.int32(step), {}, type("Counts", (), {"skipped": np.int32(skipped)}), {})


def described(before, now, *, step=STEPS, saved=(10,), count=(10,)):
    metadata = {"config": to_json(before)} | ({} if saved is None else {"num_examples": list(saved)})
    return describe_changes(metadata, now, state(step), count)


def test_nothing_changed():
    config = base_config()
    assert described(config, config) == []
    assert described(config, config, saved=None) == []  # of an earlier version


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.learning_rate": 1e-4},
        {"optimizer.ema_decay": 0.5, "training.log_every": 7},
        {"sampling.guidance_scale": 9.0},
        {"mesh.data": 2, "mesh.fsdp": 4},
        {"text.cache": "elsewhere"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_each_changed_key_with_both_values(changes):
    before, now = base_config(), base_config(**changes)
    lines = described(before, now)
    for key, value in changes.items():
        (line,) = [line for line in lines if line.startswith(f"{key} was ")]
        assert repr(value) in line


def test_extended_run_moves_the_end_of_the_schedule():
    before, now = (base_config(**FOLLOWING, **{"training.steps": steps}) for steps in (20, 40))
    steps_line, rate_line = described(before, now, step=20)
    assert "training.steps was 20 and is now 40" in steps_line
    assert all(text in rate_line for text in ("0.005 instead of 0,", "step 40", "step 20"))
    # a schedule of its own stays, and there is nothing to say
    fixed = [base_config(**{"training.steps": steps}) for steps in (10, 20)]
    assert len(described(*fixed)) == 1


def test_the_same_schedule_under_another_key_is_no_change_of_it():
    before = base_config(**{"optimizer.decay_steps": STEPS})
    assert len(described(before, base_config(**FOLLOWING))) == 1


def test_more_or_fewer_examples():
    config = base_config()
    (line,) = described(config, config, saved=(10,), count=(12,))
    assert "12 training examples instead of 10" in line
    (line,) = described(config, config, saved=(6, 4), count=(5, 5))
    assert "[5, 5] instead of [6, 4]" in line


@pytest.fixture
def photos(tmp_path):
    """Returns a function that makes a folder of so many images."""

    def make(name, count):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").write_bytes(encode_image(number, (16, 16)))
            (folder / f"{number}.txt").write_text(f"picture {number}")
        return str(folder)

    return make


def test_a_run_that_resumes_on_other_data_says_so(photos, tmp_path, caplog):
    data = {"data.source": "folder", "data.validation_fraction": 0.3, "data.threads": 2, **FOLLOWING}
    first = base_config(**data, **{"data.path": photos("a", 12), "training.steps": 2})
    train(first, tmp_path / "run", task=DenoisingTask)
    metadata = Checkpoints(tmp_path / "run").metadata(2)
    (count,) = metadata["num_examples"]
    assert 0 < count < 12
    second = first.with_changes({"data.path": photos("b", 20), "training.steps": 4, "optimizer.learning_rate": 1e-3})
    train(second, tmp_path / "run", task=DenoisingTask)
    log = (tmp_path / "run" / "log.txt").read_text()
    for text in ("data.path was", "optimizer.learning_rate was 0.01 and is now 0.001", f"instead of {count}"):
        assert text in log and text in caplog.text
    train(second.with_changes({"training.steps": 3}), tmp_path / "run", task=DenoisingTask)
    assert "training.steps 3 is reached" in (tmp_path / "run" / "log.txt").read_text()


def test_the_learning_rate_is_recorded(base_folder):
    config = base_config()
    rate = learning_rate_schedule(config.optimizer, config.training.steps)
    recorded = {line["step"]: line["learning_rate"] for line in read_metrics(base_folder) if "loss" in line}
    assert recorded == pytest.approx({step: float(rate(step - 1)) for step in range(1, STEPS + 1)}, rel=1e-6)
    assert "learning_rate 0.01" in (base_folder / "log.txt").read_text()


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_another_optimizer_is_refused_by_its_key(base_folder, name):
    before = contents(base_folder)
    with pytest.raises(ConfigError, match=f"optimizer.name was 'adam' and is now {name!r}") as caught:
        train(base_config(**{"optimizer.name": name}), base_folder)
    assert len(str(caught.value)) < 600 and "init_from" in str(caught.value)
    assert contents(base_folder) == before


def test_before_the_first_checkpoint_any_optimizer_will_do(base_folder, tmp_path):
    shutil.copy(base_folder / "config.json", tmp_path)
    config = base_config(**{"optimizer.name": "muon", "training.steps": 1})
    assert train(config, tmp_path, task=DenoisingTask).step == 1


def test_skipped_updates_do_not_move_the_schedule():
    """The schedule counts applied updates; so does the recorded rate, step - skipped."""
    config = base_config(**{"optimizer.warmup_steps": 5}).optimizer
    optimizer, params = make_optimizer(config, STEPS), {"a": jax.numpy.ones(3)}
    opt_state, gradients = optimizer.init(params), {"a": jax.numpy.ones(3)}
    moved = []
    for loss in (1.0, np.nan, np.nan, 1.0, 1.0):
        updates, opt_state = optimizer.update(gradients, opt_state, params, loss=loss)
        moved.append(float(-updates["a"][0]))
    rate = learning_rate_schedule(config, STEPS)
    assert int(opt_state.skipped) == 2
    assert moved == pytest.approx([float(rate(0)), 0, 0, float(rate(1)), float(rate(2))], rel=1e-3)
