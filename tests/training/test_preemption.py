"""Signals, a folder of one writer, and a run that stands still, within one process; tests/faults has real ones."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.training import preemption, watchdog
from imagen_jax.training.goodput import Clock
from imagen_jax.training.oom import explain_oom
from imagen_jax.training.workdir_lock import check_writable, lock_workdir
from tests.helpers.configs import base_config, contents


def leaves(monkeypatch, module):
    ends = []
    monkeypatch.setattr(module.os, "_exit", ends.append)
    return ends


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came")


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_asks_to_stop_and_a_second_one_ends_at_once(monkeypatch, capfd, number):
    before = [signal.getsignal(each) for each in preemption.SIGNALS]
    ends = leaves(monkeypatch, preemption)
    with preemption.stop_on_signals() as stop:
        stop.ready = True
        assert not stop.should_stop()
        os.kill(os.getpid(), number)
        wait_for(lambda: stop.should_stop())
        assert stop.asked
        assert stop.reason == signal.Signals(number).name
        assert not ends
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: ends)
    assert ends == [1]
    assert "saves after this step" in capfd.readouterr().err
    assert [signal.getsignal(each) for each in preemption.SIGNALS] == before


def test_before_the_first_step_a_signal_ends_the_process_though_the_main_thread_is_busy(monkeypatch, capfd):
    ends = leaves(monkeypatch, preemption)
    with preemption.stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: ends)
        assert not stop.should_stop() or ends == [0]
    assert ends[0] == 0
    assert "nothing is lost" in capfd.readouterr().err


HOLDER = """
import fcntl, json, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(json.dumps({"pid": os.getpid(), "host": "elsewhere", "since": "noon"}))
file.flush()
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / ".lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on elsewhere, since noon: wait for it"):
            lock_workdir(tmp_path).__enter__()
    finally:
        holder.kill()
        holder.communicate()
    assert str(holder.pid) in (tmp_path / ".lock").read_text()  # what a dead one leaves
    with lock_workdir(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert contents(tmp_path) == {}
    (tmp_path / "file").write_text("mine")
    for path in ("file", "file/below"):
        with pytest.raises(ConfigError, match="--workdir .* cannot be written"):
            check_writable(tmp_path / path)


def test_a_step_that_stands_still_is_named_with_its_stacks_and_ends_the_process(monkeypatch, tmp_path, capfd):
    ends = leaves(monkeypatch, watchdog)
    clock, said = Clock(), []
    with watchdog.Watchdog(clock, 0.2, tmp_path, said.append):
        with clock.spend("compile", 1):
            time.sleep(0.4)
        with clock.spend("step", 2):  # the first of its kind: what it compiled may take long
            time.sleep(0.4)
        assert not ends
        with clock.spend("data", 3):
            pass
        with clock.spend("data", 7):
            wait_for(lambda: ends)
    assert set(ends) == {1}
    assert "step 7 is stalled: its phase 'data' has not ended for 0.2 seconds" in said[0]
    stacks = (tmp_path / "stacks.txt.0").read_text()
    assert "test_a_step_that_stands_still" in stacks
    assert "test_a_step_that_stands_still" in capfd.readouterr().err


def test_memory_that_does_not_suffice_is_told_with_what_to_change():
    said = "training.grad_accum_steps from 1 to 2, set training.remat 'none'.*now 8"
    with pytest.raises(TrainingError, match=said) as told, explain_oom(base_config()):
        jax.block_until_ready(jax.numpy.zeros((1 << 50,)))
    assert "\n" not in str(told.value)
    with pytest.raises(ZeroDivisionError), explain_oom(base_config()):
        raise ZeroDivisionError
