"""Faults of weights from elsewhere: of a pipeline of DeepFloyd IF, its conversion, and the cascade that becomes of it.

Each trial ends with the same result to the bit, or is refused in one sentence that names the file.
"""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from imagen_jax.conversion.download import METADATA
from imagen_jax.conversion.from_diffusers import ConvertSettings, convert
from imagen_jax.errors import ConfigError
from imagen_jax.io import checksums
from imagen_jax.pipelines.imagen import ImagenPipeline
from tests.faults.harness import ENVIRONMENT, LIMITED, TIMEOUT, Result, small_disk
from tests.goldens.if_pipelines.cases import FIRST, HALF, SECOND
from tests.helpers.configs import ROOT, contents, one_device

CUTS = (0.999, 0.5, 0)  # of a file's size
# files for people: the card, and what they do not read a cascade's images from
_FOR_PEOPLE = ("README.md", "LICENSE", checksums.MANIFEST)


def flipped_bits_of_cascade(bench, trials):
    """Flips one bit at a time in all files of a converted cascade in turn, and loads it."""
    folder = bench.new_workdir("converted").parent
    convert([str(FIRST), str(SECOND)], folder)
    outcomes = _outcomes(_flips(folder, trials), folder, _loader(folder))
    return _result("a bit flipped in any file of a converted cascade", outcomes)


def cut_files_of_cascade(bench, trials):
    """Truncates and deletes each file of a converted cascade, and loads it."""
    folder = bench.new_workdir("cut_converted").parent
    convert([str(FIRST), str(SECOND)], folder)
    outcomes = _outcomes(_cuts(folder, trials), folder, _loader(folder))
    return _result("a file of a converted cascade truncated or deleted", outcomes)


def flipped_bits_of_pipeline(bench, trials):
    """Flips one bit at a time in all files of downloaded pipelines in turn, and converts them."""
    return _result("a bit flipped in any file of a downloaded pipeline", _converted(bench, _flips, trials, True))


def cut_files_of_pipeline(bench, trials):
    """Truncates and deletes each file of downloaded pipelines, and converts them."""
    return _result("a file of a downloaded pipeline truncated or deleted", _converted(bench, _cuts, trials, True))


def flipped_bits_of_folder(bench, trials):
    """The same in pipelines without the checksums of a download, where values of weights and configs may be others."""
    outcomes = _converted(bench, _flips, trials, False)
    others = outcomes.pop("other", 0)
    result = _result("a bit flipped in any file of a pipeline that was not downloaded", outcomes)
    text = f"{result.worst}; {others:,} converted with another value"
    return Result(result.fault, result.trials + others, result.passed + others, text)


def _converted(bench, changes, trials, downloaded):
    """Returns the outcomes of conversions of pipelines with changed files."""
    outcomes, out = {}, bench.new_workdir("conversions").parent / "out"
    sources = ([FIRST, SECOND], [HALF])
    for number, pipelines in enumerate(sources):
        folder = bench.new_workdir(f"pipelines_{number}").parent
        names = [str(shutil.copytree(path, folder / path.name)) for path in pipelines]
        for name in names if downloaded else []:
            _write_metadata(Path(name))

        def load(names=names):
            convert(names, out, ConvertSettings(overwrite=True))
            return _cascade_files(out)

        share = trials // len(sources)
        for outcome, count in _outcomes(changes(folder, share), folder, load).items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    return outcomes


def _write_metadata(folder):
    """Writes what `hf download --local-dir` leaves beside the files of a repository."""
    for name, data in contents(folder).items():
        if isinstance(data, bytes):
            large = name.endswith(".safetensors")
            blob = data if large else f"blob {len(data)}\0".encode() + data
            checksum = hashlib.new("sha256" if large else "sha1", blob).hexdigest()
            path = folder / METADATA / f"{name}.metadata"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{'0' * 40}\n{checksum}\n{time.time()}\n")


def _cascade_files(folder):
    """Returns what decides the images of a cascade, and what it becomes in the format of diffusers."""
    files = {
        name: data for name, data in contents(folder).items() if isinstance(data, bytes) and name not in _FOR_PEOPLE
    }
    for name in files:
        if name.endswith("diffusers.json"):
            origin = json.loads(files[name])
            origin["license"], origin["texts"]["LICENSE"] = {}, ""
            files[name] = origin
    return files


def _loader(folder):
    """Returns a function that loads a cascade, and returns what its images depend on."""

    def load():
        pipeline = ImagenPipeline.from_pretrained(folder, one_device())
        params = [np.asarray(leaf).tobytes() for stage in pipeline.stages for leaf in jax.tree.leaves(stage.params)]
        return params, [stage.stage.config for stage in pipeline.stages]

    return load


def _flips(folder, trials):
    """Yields changes (path, data) by one bit each, of all files in turn; half of those of weights in their headers."""
    rng, files = np.random.default_rng(0), _files(folder)
    for trial in range(trials):
        path = files[trial % len(files)]
        data = bytearray(path.read_bytes())
        is_header = path.suffix == ".safetensors" and (trial // len(files)) % 2
        size = min(len(data), 8 + int.from_bytes(data[:8], "little")) if is_header else len(data)
        data[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
        yield path, bytes(data)


def _cuts(folder, trials):
    """Yields changes (path, data) that cut a file, or delete it: None."""
    for path in _files(folder)[:trials]:
        data = path.read_bytes()
        yield from ((path, data[: int(keep * len(data))]) for keep in CUTS)
        yield path, None


def _files(folder):
    """Returns the files of a folder that are not empty, without the checksums of downloads."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return sorted(path for path in files if path.suffix != ".metadata")


def _outcomes(changes, folder, load):
    """Returns how many changes of files end in each way: "same", "refused", or one that must not be."""
    undisturbed, outcomes = load(), {}
    for path, data in changes:
        before = path.read_bytes()
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        outcome = _outcome(load, undisturbed, path)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        path.write_bytes(before)
    assert load() == undisturbed
    return outcomes


def _outcome(load, undisturbed, path):
    try:
        return "same" if load() == undisturbed else "other"
    except ConfigError as error:
        text = str(error)
        return "refused" if "\n" not in text and path.name in text else f"{path.name}: {text[:300]}"
    except Exception as error:  # a traceback, which must not be
        return f"{path.name}: {error!r}"[:300]


def _result(fault, outcomes):
    refused, same = (outcomes.pop(outcome, 0) for outcome in ("refused", "same"))
    text = "; ".join([f"{refused:,} refused by name, {same:,} the same", *outcomes])
    return Result(fault, refused + same + sum(outcomes.values()), refused + same, text)


@contextlib.contextmanager
def _conversion(out, limits=None, overwrite=False):
    """Runs `imagen convert` in a process of its own; yields it. It is killed at the end."""
    command = [sys.executable, "-m", "imagen_jax", "convert", f"--from={FIRST},{SECOND}", f"--out={out}"]
    command += ["--overwrite"] * overwrite
    if limits:
        command = [sys.executable, "-c", LIMITED, json.dumps(limits), *command]
    out.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _convert(out, **options):
    """Returns the exit code and the errors of `imagen convert`, which is not interrupted."""
    with _conversion(out, **options) as process:
        _, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, errors


def killed_conversion(bench, trials):
    """Kills conversions while they write, every second one in the place of a cascade; then runs the same command."""
    rng, passed, unfinished = np.random.default_rng(0), 0, 0
    undisturbed = bench.new_workdir("undisturbed_conversion")
    convert([str(FIRST), str(SECOND)], undisturbed)
    seconds = _seconds_of_writing(bench)
    expected = _cascade_files(undisturbed)
    for trial in range(trials):
        out, replaces = bench.new_workdir("killed_conversion"), bool(trial % 2)
        if replaces:
            convert([str(HALF)], out)
        before = contents(out) if replaces else {}
        with _conversion(out, overwrite=replaces) as process:
            _wait_for_writing(out, process)
            time.sleep(rng.uniform(0, seconds))
        left = {path.name for path in out.parent.iterdir()} - {out.name}
        unfinished += any(".unfinished-" in name for name in left)
        is_whole = not out.exists() or contents(out) == before or _cascade_files(out) == expected
        if out.exists():
            ImagenPipeline.from_pretrained(out, one_device())
        code, errors = _convert(out, overwrite=out.exists())
        passed += is_whole and code == 0 and _cascade_files(out) == expected and "Traceback" not in errors
    text = f"{unfinished} left an unfinished folder, which nothing reads"
    return Result("kill -9 of a conversion; the same command again", trials, passed, text)


def _wait_for_writing(out, process):
    """Waits until a conversion has begun to write, or has ended."""
    while process.poll() is None and not any(".unfinished-" in path.name for path in out.parent.iterdir()):
        time.sleep(0.001)
    return time.monotonic()


def _seconds_of_writing(bench):
    out = bench.new_workdir("timed_conversion")
    with _conversion(out) as process:
        start = _wait_for_writing(out, process)
        while not out.exists() and process.poll() is None:
            time.sleep(0.001)
        return time.monotonic() - start


def full_disk_of_conversion(bench, trials):
    """Converts to disks with too little space for one file after another; and with room for none of its files."""
    out = bench.new_workdir("full_conversion")
    convert([str(FIRST), str(SECOND)], out)
    size, expected, passed = sum(len(data or b"") for data in contents(out).values()), _cascade_files(out), 0
    folder = bench.new_workdir("small_disk").parent
    with small_disk(folder, -(-2 * size // 2**20)) as mounted:
        if not mounted:
            return Result("a disk that is full for a conversion", 0, 0, "not tried: only root can mount one")
        filler, out = folder / "filler", folder / out.name
        for trial in range(trials):
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - size * trial // trials)
            code, errors = _convert(out)
            left = {path.name for path in folder.iterdir()} - {filler.name}
            is_told = "No space left on device" in errors and str(folder) in errors and errors.count("\n") == 1
            passed += code != 0 and is_told and not left
        filler.unlink()
        code, _ = _convert(out)
        if code or _cascade_files(out) != expected:
            passed = 0
    limits = {resource.RLIMIT_FSIZE: size // 10}
    code, errors = _convert(bench.new_workdir("limited_conversion"), limits=limits)
    is_told = code != 0 and errors.count("\n") == 1 and "Traceback" not in errors
    text = "one sentence with the folder; nothing is left of it; then the same command works"
    return Result("a disk that is full for a conversion; a limit of a file's size", trials + 1, passed + is_told, text)
