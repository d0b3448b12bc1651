"""The faults, each a function ``(bench, trials) -> Result``."""

import contextlib
import os
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
from imagen_jax.stages import stage as stages
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_state
from imagen_jax.training.workdir_lock import LOCK_FILE
from tests.conftest import CACHE
from tests.faults.by_tests import TESTED
from tests.faults.harness import Result, Training, leftovers, losses, resumed_step, steps_in, trained
from tests.faults.inputs import killed_embedding, mutated_configs
from tests.faults.long_runs import blocking_saves, flat_memory, goodput_under_kills
from tests.faults.several import killed_member, other_devices, other_processes, stalled_member
from tests.faults.tiny import SAVE_EVERY, STEPS, get_config
from tests.helpers.configs import contents, eight_devices, one_device, restored, split_devices


def kill_at_random(bench, trials):
    """Kills one after another on the same run, then to the end: every third while it starts, the others in training."""
    rng = np.random.default_rng(0)
    place, held, lost = bench.new("killed"), 0, 0
    for trial in range(trials):
        if steps_in(place)[-1:] == [STEPS]:  # it got through: the next one begins anew
            held = held if bench.difference(place) == 0 else -trials
            place = bench.new("killed")
        with Training(place) as training:
            if trial % 3 < 2:
                training.reach(min(STEPS, max(losses(place), default=0) + int(rng.integers(1, 12))))
            with contextlib.suppress(subprocess.TimeoutExpired):
                training.process.wait(rng.uniform(0, 1.0 if trial % 3 < 2 else 0.8 * bench.seconds))
            training.send(signal.SIGKILL)
        reached = max(losses(place), default=0)
        lost = max(lost, reached - max(steps_in(place), default=0))
        held += 1
    trained(place)
    worst = bench.difference(place)
    # a save that was not complete costs the steps since the one before it
    held = held if worst == 0 and lost <= 2 * SAVE_EVERY and not leftovers(place) else 0
    return Result("kill -9 at a random moment", trials, max(held, 0), f"difference {worst:g}; {lost} steps lost")


MOMENTS = {
    "Orbax begins": lambda names, inner: any("orbax-checkpoint-tmp" in name for name in names),
    "Orbax is done": lambda names, inner: any(name.endswith(".unfinished") for name in names),
    "checksums are written": lambda names, inner: "SHA256SUMS.0" in inner,
    "checksums are joined": lambda names, inner: "SHA256SUMS" in inner,
    "it has its name": lambda names, inner: "12" in names,
    "an old one goes": lambda names, inner: "12" in names and "4" not in names,
}


def kill_while_saving(bench, trials):
    """Kills as soon as the folder shows that a save has come to a moment."""
    held, worst = 0, 0.0
    for moment in list(MOMENTS)[:trials]:
        place = bench.new("saving")
        folder = place / "checkpoints"

        def come(moment=moment, folder=folder):
            names = os.listdir(folder) if folder.exists() else []
            unfinished = [folder / name for name in names if name.endswith(".unfinished")]
            inner = []
            with contextlib.suppress(OSError):
                inner = [name for path in unfinished for name in os.listdir(path)]
            return MOMENTS[moment](names, inner)

        with Training(place) as training:
            training.until(come)
            training.send(signal.SIGKILL)
        before = max(steps_in(place), default=0)
        trained(place)
        worst = max(worst, bench.difference(place))
        held += resumed_step(place) == before and not leftovers(place)
    return Result("kill -9 in each phase of a save", len(list(MOMENTS)[:trials]), held, f"difference {worst:g}")


def sigterm(bench, trials):
    """SIGTERM, then Ctrl-C, after a few steps."""
    held, slowest, worst = 0, 0.0, 0.0
    for number in (signal.SIGTERM, signal.SIGINT)[:trials]:
        place = bench.new("stopped")
        with Training(place) as training:
            training.reach(6)
            begun = time.monotonic()
            training.send(number)
            code, said = training.ended()
        slowest = max(slowest, time.monotonic() - begun)
        saved, reached = max(steps_in(place), default=0), max(losses(place))
        stopped = "is saved, and the same command goes on from there" in said
        trained(place)
        worst = max(worst, bench.difference(place))
        held += code == 0 and stopped and saved == reached and slowest < 30 and worst == 0
    return Result("SIGTERM, Ctrl-C", min(trials, 2), held, f"{slowest:.1f} s to exit; difference {worst:g}")


def second_signal(bench, trials):
    """SIGTERM twice; Ctrl-C while the step is compiled."""
    place, begun = bench.new("twice"), 0.0
    with Training(place) as training:
        training.reach(6)
        training.send(signal.SIGTERM)
        training.until(lambda: "a second signal stops at once" in training.text())
        training.send(signal.SIGTERM)
        code, _ = training.ended()
    trained(place)
    held = code in (0, 1) and bench.difference(place) == 0
    with Training(bench.new("compiling")) as training:
        training.until(lambda: "compiling the training step" in training.text())
        begun = time.monotonic()
        training.send(signal.SIGINT)
        code, said = training.ended()
    slowest = time.monotonic() - begun
    held += code == 0 and "nothing is lost" in said and "Traceback" not in said
    return Result("SIGTERM twice; Ctrl-C in compilation", 2, int(held), f"{slowest:.1f} s to exit")


@contextlib.contextmanager
def altered(path, change):
    """A file that is changed for a while."""
    before = path.read_bytes()
    change(path)
    try:
        yield
    finally:
        path.write_bytes(before)


def checkpoint_files(place):
    step = place / "checkpoints" / str(max(steps_in(place)))
    return step, sorted(path for path in step.rglob("*") if path.is_file())


def flipped_bits(bench, trials):
    """One bit at a time, over all files of a checkpoint, the larger ones not preferred."""
    rng = np.random.default_rng(0)
    step, files = checkpoint_files(bench.unbroken)
    files = [path for path in files if path.stat().st_size]
    held = 0
    for trial in range(trials):
        path = files[trial % len(files)]
        place, bit = int(rng.integers(path.stat().st_size)), 1 << int(rng.integers(8))

        def flip(path, place=place, bit=bit):
            data = bytearray(path.read_bytes())
            data[place] ^= bit
            path.write_bytes(data)

        with altered(path, flip):
            held += bool(checksums.damage(step, lambda name: True))
    return Result(f"a bit flipped in any of {len(files)} checkpoint files", trials, held, "found at restore")


def cut_or_deleted(bench, trials):
    """Each file in turn: cut by a byte, to half, to nothing, and deleted; and through a whole restore, some of them."""
    step, files = checkpoint_files(bench.unbroken)
    changes = [lambda path, keep=keep: os.truncate(path, int(keep * path.stat().st_size)) for keep in (0.999, 0.5, 0)]
    changes.append(lambda path: path.unlink())
    done = held = 0
    for path in files[:trials]:
        for change in changes if path.stat().st_size else changes[-1:]:
            with altered(path, change):
                held += bool(checksums.damage(step, lambda name: True))
            done += 1
    return Result("a checkpoint file cut or deleted", done, held, f"each of {len(files[:trials])} files")


def damaged_then_trained(bench, trials):
    """A flipped bit, then the same command: the file is named, the step set aside, the one before restored."""
    place = bench.new("damaged")
    with Training(place) as training:
        training.until(lambda: len(steps_in(place)) == 2 and max(losses(place), default=0) >= 10)
        training.send(signal.SIGTERM)
        training.ended()
    before, last = steps_in(place)
    _, files = checkpoint_files(place)
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = trained(place)
    log = (place / "log.txt").read_text()
    named = path.name in said and path.name in log and f"{last}.damaged" in log
    worst = bench.difference(place)
    held = named and resumed_step(place) == before and worst == 0 and leftovers(place) == [f"{last}.damaged"]
    return Result("a damaged checkpoint, then train again", 1, int(held), f"difference {worst:g}")


def disk_full(bench, trials):
    """A limit on the size of files, below that of a checkpoint's largest; then without it."""
    place = bench.halted("full")
    before = steps_in(place)
    step = place / "checkpoints" / str(before[-1])
    kept = contents(step)  # without what the kill left beside it, which the next start deletes
    largest = max(path.stat().st_size for path in checkpoint_files(place)[1])
    with Training(place, limits={resource.RLIMIT_FSIZE: int(0.8 * largest)}) as training:
        code, said = training.ended()
    held = code == 1 and "could not be written to" in said and "bytes are free" in said and "Traceback" not in said
    held = held and steps_in(place) == before and contents(step) == kept
    trained(place)
    worst = bench.difference(place)
    return Result("no room for a checkpoint", 1, int(held and worst == 0), f"difference {worst:g} after it")


@contextlib.contextmanager
def read_only(folder):
    """A folder that not even root can write to, if file systems may be mounted here; else a file in its place."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], capture_output=True).returncode == 0
    if not mounted:
        folder.rmdir()
        folder.touch()
    try:
        yield folder, "a read-only file system" if mounted else "a file in its place"
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def unwritable(bench, trials):
    """A workdir that cannot be made."""
    said = bench.folder / "unwritable.said"
    with read_only(bench.folder / "readonly") as (folder, kind), Training(folder / "stage", said=said) as training:
        code, said = training.ended()
        seconds = time.monotonic() - training.began
    held = code == 2 and "cannot be written" in said and "compiling" not in said and "Traceback" not in said
    return Result(f"a workdir that cannot be written: {kind}", 1, int(held), f"{seconds:.1f} s to exit")


def other_meshes(bench, trials):
    """A checkpoint of one device on eight, on eight of which four split parameters, and on one."""
    states = [restored(bench.unbroken, get_config(), mesh()) for mesh in (one_device, eight_devices, split_devices)]
    held = sum(
        all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state, states[0])), strict=True))
        for state in states
    )
    return Result("another mesh: 1, 8, 2 × 4 devices", len(states), held, "restored to the bit")


def without_lock(files):
    """Files of a folder but its lock, which the next run takes from a dead owner, even one that is refused."""
    return {name: content for name, content in files.items() if name != LOCK_FILE}


def other_batch(bench, trials):
    """Another global batch: refused; then allowed."""
    place = bench.halted("batch")
    before = contents(place)
    with Training(place, batch_size=16) as training:
        code, said = training.ended()
    held = code == 2 and "training.batch_size was 8 and is now 16" in said
    held = held and without_lock(before) == without_lock(contents(place))
    saved = max(steps_in(place))
    said = trained(place, batch_size=16, allow_batch_change=True, steps=saved + 2)
    held += f"the data go on with batch {saved // 2}, 0 example(s) being skipped and none repeated" in said
    return Result("another global batch: refused; allowed", 2, held, "no example skipped")


def stalled(bench, trials):
    """A step that never ends."""
    place, limit = bench.new("stalled"), 5
    with Training(place, fault="stall:8:8", stall_seconds=limit) as training:
        training.reach(6)
        begun = time.monotonic()
        code, said = training.ended()
    seconds = time.monotonic() - begun
    held = code == 1 and "step 8 stands still: no end of its phase 'step'" in said
    held = held and "broken_train.py" in (place / "stacks.txt.0").read_text() and "broken_train.py" in said
    trained(place)
    worst = bench.difference(place)
    return Result(f"a step that stalls; limit {limit} s", 1, int(held and worst == 0), f"{seconds:.1f} s to exit")


def second_writer(bench, trials):
    """A second run in the same folder; a third after the first was killed."""
    place = bench.new("shared")
    with Training(place) as first:
        first.reach(1)
        with Training(place, said=bench.folder / "second.said") as second:
            code, said = second.ended()
        held = code == 2 and f"is in use by process {first.process.pid} on " in said
    trained(place)
    worst = bench.difference(place)
    return Result("a second writer; a dead owner's lock", 2, held + (worst == 0), f"difference {worst:g}")


def bad_gradients(bench, trials):
    """Gradients that are no numbers: of one step; of each after a save, until the run ends itself."""
    place = bench.new("nan")
    trained(place, fault="nan:5:5", steps=SAVE_EVERY + 4)
    state, _ = restored(place, get_config(), one_device())
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    held = int(state.opt_state.skipped) == 1 and finite and int(state.step) == SAVE_EVERY + 4
    place, last = bench.new("nans"), 2 * SAVE_EVERY
    with Training(place, fault=f"nan:{SAVE_EVERY + 1}:99", max_skipped_updates=SAVE_EVERY) as training:
        code, said = training.ended()
    told = f"{SAVE_EVERY} updates in a row were skipped (training.max_skipped_updates), the last at step {last}" in said
    told = told and code == 1 and "its examples are " in said and "Traceback" not in said
    after, _ = restored(place, get_config(), one_device())
    shutil.rmtree(place / "checkpoints" / str(last))
    before, _ = restored(place, get_config(), one_device())
    kept = [(state.params, state.ema_params, state.opt_state.inner) for state in (before, after)]
    same = all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, kept), strict=True))
    held += told and same and int(before.step) == SAVE_EVERY and int(after.step) == last
    return Result(f"gradients that are no numbers: once; {SAVE_EVERY} in a row", 2, held, "parameters are those before")


def another_model(bench, trials):
    """A model with wider layers."""
    config = get_config()
    config = config.with_changes({"model.channels": config.model.channels * 2})
    init = stages.build(config).init
    abstract, _ = abstract_state(init, make_optimizer(config.optimizer), config.seed, one_device())
    checkpoints = Checkpoints(bench.unbroken)
    try:
        checkpoints.restore(abstract)
        held, said = 0, ""
    except ConfigError as error:
        held, said = 1, str(error)
    checkpoints.close()
    return Result("a checkpoint of another model", 1, held, f"{said.count(' is ')} leaves named")


def surroundings(bench, trials):
    """A cache of compiled programs that holds noise; 64 file descriptors; a port that something else listens at."""
    place, noise = bench.new("noise"), bench.folder / "noise" / "cache"
    noise.mkdir(parents=True)
    for path in CACHE.iterdir():
        (noise / path.name).write_bytes(os.urandom(200))
    trained(place, variables={"JAX_COMPILATION_CACHE_DIR": str(noise)})
    worst = bench.difference(place)
    held = int(worst == 0)
    with Training(bench.new("descriptors"), limits={resource.RLIMIT_NOFILE: 64}) as training:
        code, said = training.ended()
    held += (
        code == 2 and "open files, but the limit of this process is 64: run `ulimit -n " in said and "compiling" not in said
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        with Training(bench.new("port"), variables=variables) as training:
            code, said = training.ended()
    held += code == 2 and f"process 0 cannot listen at {address}" in said and "Traceback" not in said
    return Result("a compile cache of noise; 64 open files; a port that is taken", 3, held, f"difference {worst:g}")


# fault -> (function, trials)
ROWS = {
    "kill": (kill_at_random, 100),
    "saving": (kill_while_saving, len(MOMENTS)),
    "sigterm": (sigterm, 2),
    "twice": (second_signal, 2),
    "flip": (flipped_bits, 1000),
    "cut": (cut_or_deleted, 1000),
    "damaged": (damaged_then_trained, 1),
    "full": (disk_full, 1),
    "unwritable": (unwritable, 1),
    "mesh": (other_meshes, 3),
    "batch": (other_batch, 2),
    "stall": (stalled, 1),
    "writers": (second_writer, 2),
    "nan": (bad_gradients, 2),
    "model": (another_model, 1),
    "surroundings": (surroundings, 3),
    "member": (killed_member, 2),
    "stalled_member": (stalled_member, 1),
    "processes": (other_processes, 3),
    "devices": (other_devices, 4),
    "configs": (mutated_configs, 10_000),
    "embed": (killed_embedding, 20),
    "memory": (flat_memory, 10_000),
    "blocking": (blocking_saves, 4),
    "goodput": (goodput_under_kills, 3),
    **{name: (row, 1) for name, row in TESTED.items()},
}
