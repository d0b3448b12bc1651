"""The fine-tunings of a server without HTTP, and without training: their queue, restarts, failures and adapters."""

import dataclasses
import json
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.serving import finetuner as module
from imagen_jax.serving.adapter_switch import AdapterSwitch
from imagen_jax.serving.finetuner import Finetuner, WrongStatusError
from imagen_jax.serving.finetunings import UploadedSubject
from imagen_jax.serving.jobs import LoraChoice, QueueFullError
from imagen_jax.stages.lora_files import FILE
from imagen_jax.training.finetune import Finetuned, FinetuneSettings
from tests.pipelines.test_adapters import write_random
from tests.serving.jobs import until

pytest_plugins = ("tests.helpers.fixtures",)
SETTINGS = FinetuneSettings(token="sks dog", steps=2)
IMAGES = [
    UploadedSubject(np.zeros((16, 16, 3), np.uint8), "a sks dog"),
    UploadedSubject(np.ones((16, 16, 3), np.uint8), ""),
]


@pytest.fixture(scope="module")
def cascade(base_folder, sr_folder):
    pipeline = ImagenPipeline.from_pretrained([base_folder, sr_folder])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Training:
    """In the place of `finetune`: each call waits until it may end, or is asked to stop."""

    def __init__(self, write):
        self.calls, self.may_end, self.error, self._write = [], threading.Event(), None, write

    def __call__(self, stages, images, out, settings, *, stop, log):
        self.calls.append((images, out))
        out.mkdir(exist_ok=True)
        log("begun")
        while not self.may_end.wait(0.005):
            if stop.should_stop():
                return Finetuned(out, [], None, stop.reason)
        if isinstance(self.error, ConfigError):
            raise ConfigError(str(self.error).replace("OUT", str(out)))
        if self.error is not None:
            raise self.error
        self._write(out / "adapter" / "stage_0")
        (out / "before_after.png").write_bytes(b"a grid")
        return Finetuned(out, [], out / "adapter")


@pytest.fixture
def training(base_stage, monkeypatch):
    training = Training(lambda folder: write_random(folder, base_stage))
    monkeypatch.setattr(module, "finetune", training)
    yield training
    training.may_end.set()


@pytest.fixture
def start(cascade, training, tmp_path):
    """A function that starts a finetuner, also for the folder of one before."""
    started = []

    def start(pipeline=cascade):
        finetuner = Finetuner(tmp_path / "taught", pipeline, ["base", "sr"])
        finetuner.start()
        started.append(finetuner)
        return finetuner

    yield start
    for finetuner in started:
        finetuner.stop(10)


def status(finetuner, one):
    return finetuner.get(one.id).status


def wait(finetuner, one, *statuses):
    until(lambda: status(finetuner, one) in statuses)
    return finetuner.get(one.id)


def test_one_after_the_other(start, training):
    finetuner = start()
    ones = [finetuner.add(SETTINGS, IMAGES, "ann") for _ in range(3)]
    wait(finetuner, ones[0], "running")
    assert [finetuner.position(one) for one in ones] == [None, 1, 2]
    assert [one.name for one in ones] == ["sks-dog", "sks-dog-2", "sks-dog-3"]
    assert finetuner.add(SETTINGS, IMAGES, "bob").name == "sks-dog"
    finetuner.end(ones[1].id)
    assert status(finetuner, ones[1]) == "stopped"
    finetuner.resume(ones[1].id)  # behind the others
    assert [finetuner.position(ones[index]) for index in (2, 1)] == [1, 3]
    images, _ = training.calls[0]
    assert (images / "0000.txt").read_text() == "a sks dog" and not (images / "0001.txt").exists()
    training.may_end.set()
    until(lambda: all(one.status == "done" for one in finetuner.all_of()))
    assert [one.id for one in finetuner.all_of("ann")] == [one.id for one in ones[::-1]]
    assert len(training.calls) == 4


def test_stop_continue_and_delete(start, training, tmp_path):
    finetuner = start()
    one = finetuner.add(SETTINGS, IMAGES, "ann")
    wait(finetuner, one, "running")
    with pytest.raises(WrongStatusError, match="is running: stop it first"):
        finetuner.remove(one.id)
    with pytest.raises(WrongStatusError, match="is running: only what was stopped"):
        finetuner.resume(one.id)
    finetuner.end(one.id)
    wait(finetuner, one, "stopped")
    with pytest.raises(WrongStatusError, match="is stopped: there is nothing to stop"):
        finetuner.end(one.id)
    training.may_end.set()
    finetuner.resume(one.id)
    done = wait(finetuner, one, "done")
    assert done.error is None and finetuner.problem(done) is None
    assert finetuner.archive_path(done).stat().st_size > 1000
    path = finetuner.adapter_path(one.id)
    finetuner.remove(one.id)
    assert finetuner.get(one.id) is None and not path.exists()
    assert [each.name for each in (tmp_path / "taught").iterdir()] == [".lock"]
    with pytest.raises(ConfigError, match="was deleted"):
        finetuner.adapter_path(one.id)


def test_failures_are_one_sentence(start, training):
    finetuner = start()
    training.may_end.set()
    for error, message in (
        (TrainingError("the loss is not finite"), "the loss is not finite"),
        (RuntimeError("secret"), "training has failed (RuntimeError): see the server's log"),
        (ConfigError("OUT is empty"), "out is empty"),  # without the place of the folder on this machine
    ):
        training.error = error
        one = wait(finetuner, finetuner.add(SETTINGS, IMAGES, "ann"), "failed")
        assert one.error == message
        with pytest.raises(ConfigError, match="was deleted"):
            finetuner.adapter_path(one.id)


def test_what_ran_is_continued_after_a_restart(start, training):
    finetuner = start()
    running, waiting = (finetuner.add(SETTINGS, IMAGES, "ann") for _ in range(2))
    wait(finetuner, running, "running")
    finetuner.stop(10)
    with pytest.raises(QueueFullError, match="stopping"):
        finetuner.add(SETTINGS, IMAGES, "ann")
    again = start()
    wait(again, running, "running")
    assert status(again, waiting) == "queued"
    assert again.get(running.id).deaths == 0
    training.may_end.set()
    wait(again, waiting, "done")
    assert again.get(running.id).settings == dataclasses.replace(
        SETTINGS, prior_prompts=[], prompts=[], only=[], targets=[]
    )


def killed(finetuner, one, tmp_path):
    """Leaves the folder as a kill of the server does: with what runs marked as running."""
    path = tmp_path / "taught" / one.id / "finetuning.json"
    before = path.read_bytes()
    finetuner.stop(10)
    path.write_bytes(before)


def test_a_server_that_dies_of_it_does_not_try_for_ever(start, tmp_path):
    finetuner = start()
    one = finetuner.add(SETTINGS, IMAGES, "ann")
    for _ in range(2):
        wait(finetuner, one, "running")
        killed(finetuner, one, tmp_path)
        finetuner = start()
    wait(finetuner, one, "running")
    killed(finetuner, one, tmp_path)
    finetuner = start()
    stopped = finetuner.get(one.id)
    assert (stopped.status, stopped.error) == (
        "stopped",
        "the server has ended 3 times while this ran: its log may say why",
    )
    finetuner.resume(one.id)
    assert wait(finetuner, one, "running").deaths == 0


def test_the_queue_has_a_limit(start, monkeypatch):
    monkeypatch.setattr(module, "_MAX_WAITING", 1)
    finetuner = start()
    wait(finetuner, finetuner.add(SETTINGS, IMAGES, "ann"), "running")
    finetuner.add(SETTINGS, IMAGES, "ann")
    with pytest.raises(QueueFullError):
        finetuner.add(SETTINGS, IMAGES, "ann")


def test_damaged_folders_are_left_out(start, tmp_path, caplog):
    for name, text in (("damaged", "{"), ("foreign", json.dumps({"id": 1}))):
        (tmp_path / "taught" / name).mkdir(parents=True)
        (tmp_path / "taught" / name / "finetuning.json").write_text(text)
    (tmp_path / "taught" / ".unfinished-x").mkdir()
    finetuner = start()
    assert finetuner.all_of() == [] and caplog.text.count("is damaged, and left out") == 2
    assert not (tmp_path / "taught" / ".unfinished-x").exists()
    with pytest.raises(ConfigError, match="in use by another server"):
        Finetuner(tmp_path / "taught", finetuner._pipeline, []).start()


def test_an_adapter_that_cannot_be_used_is_known(start, training, sr_stage, tmp_path):
    """One of another network fails at its end; one that has NaN by now is refused from the next start on."""
    finetuner = start()
    training.may_end.set()
    training._write = lambda folder: write_random(folder, sr_stage, **{"model.channels": 16})
    foreign = wait(finetuner, finetuner.add(SETTINGS, IMAGES, "ann"), "failed")
    assert "is no adapter of this stage" in foreign.error and str(tmp_path) not in foreign.error
    training._write = lambda folder: write_random(folder, sr_stage)
    one = wait(finetuner, finetuner.add(SETTINGS, IMAGES, "ann"), "done")
    path = next(finetuner.adapter_path(one.id).rglob(FILE))
    finetuner.stop(10)
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    next(iter(tensors.values())).flat[0] = np.nan
    save_file(tensors, path)
    again = start()
    assert "not finite" in again.problem(again.get(one.id))
    assert str(tmp_path) not in again.problem(again.get(one.id))


def test_adapters_are_switched_between_batches(cascade, base_stage, sr_stage, tmp_path):
    """Images depend on the adapters asked for alone, to the bit, and the cascade without them stays as it is."""
    write_random(tmp_path / "one", base_stage)
    write_random(tmp_path / "other", sr_stage)
    expected = {}
    one, half, other = LoraChoice("one", "a", 1.0), LoraChoice("one", "a", 0.5), LoraChoice("other", "b", 1.0)
    asked = [[], [one], [half], [one, other], [other], [other, one], [one], [], [half]]

    def images(pipeline):
        return pipeline(["a red circle"], seed=1).images.tobytes()

    for choices in ([], [one], [half], [one, other], [other], [other, one]):
        pipeline = cascade.with_adapters_of(cascade)
        for choice in choices:
            pipeline.load_lora(tmp_path / choice.id, choice.scale, name=choice.name)
        expected[str(choices)] = images(pipeline)
    assert len(set(expected.values())) >= 5
    switch = AdapterSwitch(cascade, lambda adapter_id: tmp_path / adapter_id)
    for choices in asked:
        pipeline = switch.apply(cascade, choices)
        assert images(pipeline) == expected[str(choices)], choices
        assert pipeline.lora_scales == {choice.name: choice.scale for choice in choices}
    assert cascade.lora_scales == {}
    # settings of a job stay its own
    steps = [{"num_inference_steps": 1}, {}]
    configured = switch.apply(cascade.with_settings(steps), [one])
    assert [trained.stage.config.sampling.num_inference_steps for trained in configured.stages] == [1, 2]
