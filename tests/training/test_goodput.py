"""Where the time goes adds up, over restarts too, and steps that were made twice are lost work."""

import json
import time

import jax
import numpy as np
import pytest

from imagen_jax.training.goodput import GOODPUT_FILE, PHASES, Clock, Goodput, _goodput, process_age, time_by_phase
from imagen_jax.training.run_files import RunFiles


def line(number, at, **seconds):
    return {"start_number": number, "at_step": at, **dict.fromkeys(PHASES, 0.0), **seconds}


def test_phases_add_up_to_process_age():
    before = process_age()
    clock = Clock.of_process()
    with clock.spend("step", 1):
        time.sleep(0.02)
        with clock.spend("data", 1):
            time.sleep(0.03)
        assert clock.phase.name == "step"
    spent = clock.seconds()
    assert sum(spent.values()) == pytest.approx(process_age(), abs=0.2)
    assert before > 0
    assert spent["start"] >= before
    assert spent["data"] >= 0.03
    assert spent["step"] >= 0.02
    assert spent["compile"] == 0


def test_clock_counts_from_its_start():
    assert sum(Clock().seconds().values()) < process_age() / 2


def test_recomputed_steps_are_lost():
    lines = [
        line(1, 0, start=5.0),
        line(1, 100, start=5.0, compile=10.0, step=50.0),  # saved here
        line(1, 140, start=5.0, compile=10.0, step=70.0),  # killed after this
        line(2, 100, start=6.0),
        line(2, 200, start=6.0, compile=1.0, step=50.0, checkpoint=3.0),
    ]
    spent = time_by_phase(lines)
    assert spent == {
        **dict.fromkeys(PHASES, 0.0),
        "start": 11.0,
        "compile": 11.0,
        "step": 100.0,
        "checkpoint": 3.0,
        "lost": 20.0,
    }
    assert _goodput(spent) == 100 / 145


def test_a_run_that_goes_on_adds_to_what_there_was_and_drops_a_torn_line(tmp_path):
    file = tmp_path / GOODPUT_FILE
    file.write_text(json.dumps(line(1, 4, start=1.0, step=9.0)) + "\n" + '{"start_number": 1, "at_st')
    goodput = Goodput(RunFiles(tmp_path), 4, Clock())
    goodput.tick(5)  # too soon after the last for another line
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    assert [(each["start_number"], each["at_step"]) for each in lines] == [(1, 4), (2, 4)]
    metrics = goodput.metrics()
    assert metrics["time/step"] == 9.0
    assert 0 < metrics["goodput"] == 9.0 / sum(value for name, value in metrics.items() if name.startswith("time/"))
    assert "in 2 start(s)" in goodput.summary()


def test_compilation_counts_as_such_in_any_phase():
    """The first batch of each size compiles, in a step that is not the first."""
    clock, double = Clock(), jax.jit(lambda x: 2 * x)
    phases = []

    @jax.jit
    def traced(x):
        phases.append(clock.phase)
        return x + 1

    arrays = [np.ones(size) for size in (2, 3)]
    with clock.compilation():
        for step, array in enumerate([arrays[0], arrays[0], arrays[1]], start=1):
            before = clock.seconds()["compile"]
            with clock.spend("step", step):
                double(array)
                traced(array)
                assert clock.phase.name == "step"
            assert (clock.seconds()["compile"] > before) == (step != 2)
    assert [(phase.name, phase.step, phase.watched) for phase in phases] == [
        ("compile", 1, False),
        ("compile", 3, False),
    ]
    compiled = clock.seconds()["compile"]
    jax.jit(lambda x: 3 * x)(arrays[0])
    assert clock.seconds()["compile"] == compiled


def test_damaged_start_number(tmp_path):
    """It would count as a start of its own."""
    lines = [line(1, 4, step=1.0), line(1, 8, step=2.0), line(2, 8), line(2, 12, step=1.0)]
    broken = [*lines[:1], {**lines[1], "start_number": 9}, *lines[2:]]
    (tmp_path / GOODPUT_FILE).write_text("".join(json.dumps(each) + "\n" for each in broken))
    assert "in 3 start(s)" in Goodput(RunFiles(tmp_path), 12, Clock()).summary()
    assert json.loads((tmp_path / f"{GOODPUT_FILE}.damaged").read_text())["start_number"] == 9
