"""All faults, each a function `(bench, trials) -> Result`."""

import contextlib
import logging
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.io import checksums
from imagen_jax.io.claims import LOCK_FILE
from imagen_jax.pipelines import output_dir
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages import stage as stages
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_state
from tests.conftest import CACHE
from tests.faults.by_tests import TESTED
from tests.faults.converted import (
    cut_files_of_cascade,
    cut_files_of_pipeline,
    flipped_bits_of_cascade,
    flipped_bits_of_folder,
    flipped_bits_of_pipeline,
    full_disk_of_conversion,
    killed_conversion,
)
from tests.faults.harness import Result, Training, leftovers, losses, resumed_step, small_disk, steps_in, trained
from tests.faults.in_bucket import kill_in_bucket
from tests.faults.inputs import killed_embedding, mutated_configs
from tests.faults.long_runs import blocking_saves, flat_memory, goodput_under_kills
from tests.faults.serving import killed_server
from tests.faults.several import killed_member, other_devices, other_processes, stalled_member
from tests.faults.tiny import SAVE_EVERY, STEPS, get_config
from tests.helpers.configs import contents, eight_devices, one_device, restored, split_devices


def kill_at_random(bench, trials):
    """Kills the same run repeatedly, every third time during the start, else in training; then runs it to the end."""
    rng = np.random.default_rng(0)
    workdir, passed, lost = bench.new_workdir("killed"), 0, 0
    for trial in range(trials):
        if steps_in(workdir)[-1:] == [STEPS]:  # it has finished: the next trial starts a new run
            passed = passed if bench.difference(workdir) == 0 else -trials
            workdir = bench.new_workdir("killed")
        with Training(workdir) as training:
            if trial % 3 < 2:
                training.reach(min(STEPS, max(losses(workdir), default=0) + int(rng.integers(1, 12))))
            with contextlib.suppress(subprocess.TimeoutExpired):
                training.process.wait(rng.uniform(0, 1.0 if trial % 3 < 2 else 0.8 * bench.seconds))
            training.send(signal.SIGKILL)
        reached = max(losses(workdir), default=0)
        lost = max(lost, reached - max(steps_in(workdir), default=0))
        passed += 1
    trained(workdir)
    worst = bench.difference(workdir)
    # an incomplete save costs the steps since the previous one
    passed = passed if worst == 0 and lost <= 2 * SAVE_EVERY and not leftovers(workdir) else 0
    return Result("kill -9 at a random moment", trials, max(passed, 0), f"difference {worst:g}; {lost} steps lost")


SAVE_PHASES = {
    "Orbax begins": lambda names, inner: any("orbax-checkpoint-tmp" in name for name in names),
    "Orbax is done": lambda names, inner: any(name.endswith(".unfinished") for name in names),
    "checksums are written": lambda names, inner: "SHA256SUMS.0" in inner,
    "checksums are joined": lambda names, inner: "SHA256SUMS" in inner,
    "it has its name": lambda names, inner: "12" in names,
    "an old one goes": lambda names, inner: "12" in names and "4" not in names,
}


def kill_while_saving(bench, trials):
    """Kills as soon as the folder shows that a save has reached a phase."""
    passed, worst = 0, 0.0
    for phase in list(SAVE_PHASES)[:trials]:
        workdir = bench.new_workdir("saving")
        folder = workdir / "checkpoints"

        def reached_phase(phase=phase, folder=folder):
            names = os.listdir(folder) if folder.exists() else []
            unfinished = [folder / name for name in names if name.endswith(".unfinished")]
            inner = []
            with contextlib.suppress(OSError):
                inner = [name for path in unfinished for name in os.listdir(path)]
            return SAVE_PHASES[phase](names, inner)

        with Training(workdir) as training:
            training.until(reached_phase)
            training.send(signal.SIGKILL)
        before = max(steps_in(workdir), default=0)
        trained(workdir)
        worst = max(worst, bench.difference(workdir))
        passed += resumed_step(workdir) == before and not leftovers(workdir)
    return Result("kill -9 in each phase of a save", len(list(SAVE_PHASES)[:trials]), passed, f"difference {worst:g}")


def sigterm(bench, trials):
    """Sends SIGTERM, or SIGINT as Ctrl-C does, after a few steps."""
    passed, slowest, worst = 0, 0.0, 0.0
    for number in (signal.SIGTERM, signal.SIGINT)[:trials]:
        workdir = bench.new_workdir("stopped")
        with Training(workdir) as training:
            training.reach(6)
            start = time.monotonic()
            training.send(number)
            code, output = training.wait_for_end()
        slowest = max(slowest, time.monotonic() - start)
        saved, reached = max(steps_in(workdir), default=0), max(losses(workdir))
        stopped = "the same command" in output
        trained(workdir)
        worst = max(worst, bench.difference(workdir))
        passed += code == 0 and stopped and saved == reached and slowest < 30 and worst == 0
    return Result("SIGTERM, Ctrl-C", min(trials, 2), passed, f"{slowest:.1f} s to exit; difference {worst:g}")


def second_signal(bench, trials):
    """Sends SIGTERM twice; sends SIGINT while the step is compiled."""
    workdir, start = bench.new_workdir("twice"), 0.0
    with Training(workdir) as training:
        training.reach(6)
        training.send(signal.SIGTERM)
        training.until(lambda: "a second signal" in training.text())
        training.send(signal.SIGTERM)
        code, _ = training.wait_for_end()
    trained(workdir)
    passed = code in (0, 1) and bench.difference(workdir) == 0
    with Training(bench.new_workdir("compiling")) as training:
        training.until(lambda: "compiling the training step" in training.text())
        start = time.monotonic()
        training.send(signal.SIGINT)
        code, output = training.wait_for_end()
    slowest = time.monotonic() - start
    passed += code == 0 and "before the first step" in output and "Traceback" not in output
    return Result("SIGTERM twice; Ctrl-C in compilation", 2, int(passed), f"{slowest:.1f} s to exit")


@contextlib.contextmanager
def altered(path, change):
    """Changes a file within a `with` block."""
    before = path.read_bytes()
    change(path)
    try:
        yield
    finally:
        path.write_bytes(before)


def checkpoint_files(workdir):
    step = workdir / "checkpoints" / str(max(steps_in(workdir)))
    return step, sorted(path for path in step.rglob("*") if path.is_file())


def flipped_bits(bench, trials):
    """Flips one bit at a time, in all files of a checkpoint in turn."""
    rng = np.random.default_rng(0)
    step, files = checkpoint_files(bench.undisturbed)
    files = [path for path in files if path.stat().st_size]
    passed = 0
    for trial in range(trials):
        path = files[trial % len(files)]
        offset, bit = int(rng.integers(path.stat().st_size)), 1 << int(rng.integers(8))

        def flip(path, offset=offset, bit=bit):
            data = bytearray(path.read_bytes())
            data[offset] ^= bit
            path.write_bytes(data)

        with altered(path, flip):
            passed += bool(checksums.verify(step, lambda name: True))
    return Result(f"a bit flipped in any of {len(files)} checkpoint files", trials, passed, "detected at restore")


def cut_or_deleted(bench, trials):
    """Truncates each file slightly, to half and to nothing, and deletes it."""
    step, files = checkpoint_files(bench.undisturbed)
    changes = [lambda path, keep=keep: os.truncate(path, int(keep * path.stat().st_size)) for keep in (0.999, 0.5, 0)]
    changes.append(lambda path: path.unlink())
    done = passed = 0
    for path in files[:trials]:
        for change in changes if path.stat().st_size else changes[-1:]:
            with altered(path, change):
                passed += bool(checksums.verify(step, lambda name: True))
            done += 1
    return Result("a checkpoint file truncated or deleted", done, passed, f"each of {len(files[:trials])} files")


def damaged_then_trained(bench, trials):
    """Flips a bit, and runs the command again: it names the file, sets the step aside, and restores the one before."""
    workdir = bench.new_workdir("damaged")
    with Training(workdir) as training:
        training.until(lambda: len(steps_in(workdir)) == 2 and max(losses(workdir), default=0) >= 10)
        training.send(signal.SIGTERM)
        training.wait_for_end()
    before, last = steps_in(workdir)
    _, files = checkpoint_files(workdir)
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    output = trained(workdir)
    log = (workdir / "log.txt").read_text()
    named = path.name in output and path.name in log and f"{last}.damaged" in log
    worst = bench.difference(workdir)
    passed = named and resumed_step(workdir) == before and worst == 0 and leftovers(workdir) == [f"{last}.damaged"]
    return Result("a damaged checkpoint, then train again", 1, int(passed), f"difference {worst:g}")


def disk_full(bench, trials):
    """Limits the size of files below that of a checkpoint's largest file; then runs without the limit."""
    workdir = bench.killed_after_save("full")
    before = steps_in(workdir)
    step = workdir / "checkpoints" / str(before[-1])
    kept = contents(step)  # without partial files beside it, which the next start deletes
    largest = max(path.stat().st_size for path in checkpoint_files(workdir)[1])
    with Training(workdir, limits={resource.RLIMIT_FSIZE: int(0.8 * largest)}) as training:
        code, output = training.wait_for_end()
    passed = code == 1 and "could not be written" in output and "free" in output and "Traceback" not in output
    passed = passed and steps_in(workdir) == before and contents(step) == kept
    trained(workdir)
    worst = bench.difference(workdir)
    return Result("no space for a checkpoint", 1, int(passed and worst == 0), f"difference {worst:g} after it")


def disk_full_for(steps):
    """Returns a row: the disk is full in these steps, while logs, curves and previews are written and saves fail."""

    def row(bench, trials):
        first, last = steps
        folder = bench.new_workdir(f"full_{first}_{last}").parent
        with small_disk(folder, 64) as mounted:
            if not mounted:
                return Result("a full disk", 0, 0, "not tried: only root can mount one")
            workdir, log_file = folder / "stage", bench.folder / f"full_{first}_{last}.out"
            output = trained(
                workdir,
                log_file=log_file,
                fault=f"full:{first}:{last}",
                variables={"FILLER": str(folder / "filler")},
                on_failed_save="continue",
                stall_seconds=60,
            )
            worst, steps_done = bench.difference(workdir), losses(workdir)
            log = (workdir / "log.txt").read_text()
            names = {path.name for path in workdir.iterdir()}
        sentence = r"cannot be written: No space left on device \(\d+ bytes are free in "
        passed = worst == 0 and list(steps_done) == list(range(1, STEPS + 1))
        for text in (output, log):
            passed = (
                passed and len(re.findall(sentence, text)) == 1 and text.count("written again; no record is lost") == 1
            )
        passed = passed and {"loss.png", "diagnostics.png", "previews"} <= names and "Traceback" not in output
        return Result(f"a disk that is full in steps {first} to {last}", 1, int(passed), f"difference {worst:g}")

    return row


@contextlib.contextmanager
def read_only(folder):
    """Makes a folder that root cannot write to, if file systems can be mounted here; else a file of that name."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], capture_output=True).returncode == 0
    if not mounted:
        folder.rmdir()
        folder.touch()
    try:
        yield folder, "a read-only file system" if mounted else "a file of that name"
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def unwritable(bench, trials):
    """A workdir that cannot be created."""
    log_file = bench.folder / "unwritable.out"
    with (
        read_only(bench.folder / "readonly") as (folder, kind),
        Training(folder / "stage", log_file=log_file) as training,
    ):
        code, output = training.wait_for_end()
        seconds = time.monotonic() - training.start_time
    passed = code == 2 and "cannot be written" in output and "compiling" not in output and "Traceback" not in output
    return Result(f"a workdir that is not writable: {kind}", 1, int(passed), f"{seconds:.1f} s to exit")


def other_meshes(bench, trials):
    """Restores a checkpoint of one device on one, on eight, and on eight with FSDP over four."""
    states = [restored(bench.undisturbed, get_config(), mesh()) for mesh in (one_device, eight_devices, split_devices)]
    passed = sum(
        all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state, states[0])), strict=True))
        for state in states
    )
    return Result("another mesh: 1, 8, 2 × 4 devices", len(states), passed, "restored bit-exactly")


def without_lock(files):
    """Returns the files of a folder without its lock, which any next run replaces if its owner is dead."""
    return {name: content for name, content in files.items() if name != LOCK_FILE}


def other_batch(bench, trials):
    """Another global batch size: refused, then allowed."""
    workdir = bench.killed_after_save("batch")
    before = contents(workdir)
    with Training(workdir, batch_size=16) as training:
        code, output = training.wait_for_end()
    passed = code == 2 and "training.batch_size" in output
    passed = passed and without_lock(before) == without_lock(contents(workdir))
    saved = max(steps_in(workdir))
    output = trained(workdir, batch_size=16, allow_batch_change=True, steps=saved + 2)
    passed += re.search(rf"batch {saved // 2}\b.*\b0 example", output) is not None
    return Result("another global batch: refused; allowed", 2, passed, "no example skipped")


def stalled(bench, trials):
    """A step that never ends."""
    workdir, limit = bench.new_workdir("stalled"), 5
    with Training(workdir, fault="stall:8:8", stall_seconds=limit) as training:
        training.reach(6)
        start = time.monotonic()
        code, output = training.wait_for_end()
    seconds = time.monotonic() - start
    passed = code == 1 and re.search(r"step 8 .*'step'", output) is not None
    passed = passed and "broken_train.py" in (workdir / "stacks.txt.0").read_text() and "broken_train.py" in output
    trained(workdir)
    worst = bench.difference(workdir)
    return Result(f"a stalled step; limit {limit} s", 1, int(passed and worst == 0), f"{seconds:.1f} s to exit")


def second_writer(bench, trials):
    """Starts a second run in the same folder, and a third one after the first was killed."""
    workdir = bench.new_workdir("shared")
    with Training(workdir) as first:
        first.reach(1)
        with Training(workdir, log_file=bench.folder / "second.out") as second:
            code, output = second.wait_for_end()
        passed = code == 2 and f"process {first.process.pid} " in output
    trained(workdir)
    worst = bench.difference(workdir)
    return Result("a second writer; a dead owner's lock", 2, passed + (worst == 0), f"difference {worst:g}")


def bad_gradients(bench, trials):
    """NaN gradients in one step; and in every step after a save, until the run ends itself."""
    workdir = bench.new_workdir("nan")
    trained(workdir, fault="nan:5:5", steps=SAVE_EVERY + 4)
    state, _ = restored(workdir, get_config(), one_device())
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    passed = int(state.opt_state.skipped) == 1 and finite and int(state.step) == SAVE_EVERY + 4
    workdir, last = bench.new_workdir("nans"), 2 * SAVE_EVERY
    with Training(workdir, fault=f"nan:{SAVE_EVERY + 1}:99", max_skipped_updates=SAVE_EVERY) as training:
        code, output = training.wait_for_end()
    reported = "training.max_skipped_updates" in output and f"step {last}" in output
    reported = reported and code == 1 and "examples" in output and "Traceback" not in output
    after, _ = restored(workdir, get_config(), one_device())
    shutil.rmtree(workdir / "checkpoints" / str(last))
    before, _ = restored(workdir, get_config(), one_device())
    kept = [(state.params, state.ema_params, state.opt_state.inner) for state in (before, after)]
    same = all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, kept), strict=True))
    passed += reported and same and int(before.step) == SAVE_EVERY and int(after.step) == last
    return Result(f"non-finite gradients: once; {SAVE_EVERY} in a row", 2, passed, "parameters unchanged")


def another_model(bench, trials):
    """Restores a checkpoint into a model with wider layers."""
    config = get_config()
    config = config.with_changes({"model.channels": config.model.channels * 2})
    init = stages.build(config).init
    abstract, _ = abstract_state(
        init, make_optimizer(config.optimizer, config.training.steps), config.seed, one_device()
    )
    checkpoints = Checkpoints(bench.undisturbed)
    try:
        checkpoints.restore(abstract)
        passed, output = 0, ""
    except ConfigError as error:
        passed, output = 1, str(error)
    checkpoints.close()
    differing = re.search(r"in (\d+) array", output)
    return Result("a checkpoint of another model", 1, passed, f"{differing[1] if differing else 0} arrays differ")


def surroundings(bench, trials):
    """A corrupt compilation cache; a limit of 64 open files; a port that is in use."""
    workdir, noise = bench.new_workdir("noise"), bench.folder / "noise" / "cache"
    noise.mkdir(parents=True)
    for path in CACHE.iterdir():
        (noise / path.name).write_bytes(os.urandom(200))
    trained(workdir, variables={"JAX_COMPILATION_CACHE_DIR": str(noise)})
    worst = bench.difference(workdir)
    passed = int(worst == 0)
    with Training(bench.new_workdir("descriptors"), limits={resource.RLIMIT_NOFILE: 64}) as training:
        code, output = training.wait_for_end()
    passed += (
        code == 2
        and "open files, but the limit of this process is 64: run `ulimit -n " in output
        and "compiling" not in output
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        with Training(bench.new_workdir("port"), variables=variables) as training:
            code, output = training.wait_for_end()
    passed += code == 2 and f"process 0 cannot listen at {address}" in output and "Traceback" not in output
    return Result("a corrupt compilation cache; 64 open files; a port in use", 3, passed, f"difference {worst:g}")


class _Warnings(logging.Handler):
    """Counts warnings and errors, of whatever library."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def sampled_while_training(bench, trials):
    """Loads a stage again and again while it trains, saves each step and keeps one checkpoint."""
    workdir, steps, warnings = bench.new_workdir("beside"), [], _Warnings()
    logging.getLogger().addHandler(warnings)
    try:
        with Training(workdir, steps=10**6, save_every=1, keep_checkpoints=1, log_every=100) as training:
            assert training.until(lambda: steps_in(workdir)), training.text()
            for trial in range(trials):
                choice = {"kind": ("ema", "raw")[trial % 2]}
                pipeline = ImagenPipeline.from_pretrained([workdir], one_device(), weights=choice)
                output_dir.stages_manifest(pipeline.stages)
                steps.append(pipeline.stages[0].step)
            assert training.process.poll() is None, training.text()
    finally:
        logging.getLogger().removeHandler(warnings)
    passed = trials if steps == sorted(steps) and not warnings.texts else 0
    output = f"steps {steps[0]} to {steps[-1]}; {len(warnings.texts)} warnings"
    return Result("loaded while it trains, with one checkpoint kept", trials, passed, output)


# fault -> (function, trials)
ROWS = {
    "kill": (kill_at_random, 100),
    "bucket": (kill_in_bucket, 20),
    "saving": (kill_while_saving, len(SAVE_PHASES)),
    "sigterm": (sigterm, 2),
    "twice": (second_signal, 2),
    "flip": (flipped_bits, 1000),
    "cut": (cut_or_deleted, 1000),
    "damaged": (damaged_then_trained, 1),
    "full": (disk_full, 1),
    "full_briefly": (disk_full_for((6, 8)), 1),
    "full_for_long": (disk_full_for((6, STEPS - 2)), 1),
    "unwritable": (unwritable, 1),
    "mesh": (other_meshes, 3),
    "batch": (other_batch, 2),
    "stall": (stalled, 1),
    "writers": (second_writer, 2),
    "nan": (bad_gradients, 2),
    "model": (another_model, 1),
    "surroundings": (surroundings, 3),
    "beside": (sampled_while_training, 20),
    "member": (killed_member, 2),
    "stalled_member": (stalled_member, 1),
    "processes": (other_processes, 3),
    "devices": (other_devices, 4),
    "configs": (mutated_configs, 10_000),
    "embed": (killed_embedding, 20),
    "flip_converted": (flipped_bits_of_cascade, 500),
    "cut_converted": (cut_files_of_cascade, 1000),
    "flip_pipeline": (flipped_bits_of_pipeline, 600),
    "cut_pipeline": (cut_files_of_pipeline, 1000),
    "flip_folder": (flipped_bits_of_folder, 600),
    "kill_convert": (killed_conversion, 20),
    "full_convert": (full_disk_of_conversion, 10),
    "memory": (flat_memory, 10_000),
    "blocking": (blocking_saves, 4),
    "server": (killed_server, 20),
    "goodput": (goodput_under_kills, 3),
    **{name: (row, 1) for name, row in TESTED.items()},
}
