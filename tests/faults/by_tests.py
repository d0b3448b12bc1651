"""The faults that tests of their own cover, without a run that is broken: each row runs those tests."""

import os
import subprocess
import sys
from xml.etree import ElementTree

from tests.faults.harness import Result
from tests.helpers.configs import ROOT


def of_tests(fault, *paths):
    """A row whose trials are the tests of files; which of them the machine cannot run are none."""

    def row(bench, trials):
        report = bench.new("tests").with_suffix(".xml")
        report.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *(f"tests/{path}" for path in paths)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
        assert report.exists(), done.stdout + done.stderr
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
        ran, skipped, *failed = (int(suite.get(name)) for name in ("tests", "skipped", "failures", "errors"))
        return Result(fault, ran - skipped, ran - skipped - sum(failed), f"tests of `{'`, `'.join(paths)}`")

    return row


TESTED = {
    "images": of_tests(
        "images that are cut, corrupt, empty or not there; a folder without any; only broken ones",
        "data/test_folder.py",
        "training/test_progress.py",
    ),
    "shards": of_tests(
        "a shard that is cut, corrupt or missing; members that lead elsewhere; `pipe:` and `http:` for shards",
        "data/test_tar.py",
        "data/test_webdataset.py",
    ),
    "decoders": of_tests(
        "image bombs; 16 bits, CMYK, palettes, alpha, animations, odd EXIF",
        "data/test_transforms.py",
        "data/test_hostile.py",
    ),
    "embeddings": of_tests(
        "embeddings of another width, or of another encoder of the same width",
        "test_embedding.py",
        "test_training_from_cache.py",
    ),
    "captions": of_tests("captions that are empty, long, of odd Unicode, or no Unicode", "text/test_tokens.py"),
    "room": of_tests("memory that does not suffice", "training/test_stopping.py"),
    "spike": of_tests("a loss that jumps", "training/test_guard.py"),
    "pickles": of_tests(
        "pickled weights; damaged safetensors", "text/test_encoder.py", "text/test_hub.py", "test_safe_inputs.py"
    ),
    "drawing": of_tests("drawing, kill -9; prompts with a meaning to a path or a page", "test_pictures.py"),
    "launchers": of_tests(
        "names with a meaning to a shell, in launchers",
        "launch/test_tpu.py",
        "launch/test_worker.py",
        "launch/test_launchers.py",
    ),
}
