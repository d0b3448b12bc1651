"""Faults that other tests cover: each row runs these tests."""

import os
import subprocess
import sys
from xml.etree import ElementTree

from tests.faults.harness import Result
from tests.helpers.configs import ROOT


def run_tests(fault, *paths):
    """Returns a row whose trials are the tests of some files, without those that are skipped."""

    def row(bench, trials):
        report = bench.new_workdir("tests").with_suffix(".xml")
        report.parent.mkdir(parents=True, exist_ok=True)
        # -m '': also those that `make test` leaves out
        options = ("-q", "-m", "", f"--junitxml={report}")
        command = [sys.executable, "-m", "pytest", *options, *(f"tests/{path}" for path in paths)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
        assert report.exists(), done.stdout + done.stderr
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
        ran, skipped, *failed = (int(suite.get(name)) for name in ("tests", "skipped", "failures", "errors"))
        return Result(fault, ran - skipped, ran - skipped - sum(failed), f"tests of `{'`, `'.join(paths)}`")

    return row


TESTED = {
    "images": run_tests(
        "truncated, corrupt, empty or missing images; a folder without images, or with corrupt ones only",
        "datasets/test_folder.py",
        "training/test_progress_bar.py",
    ),
    "shards": run_tests(
        "a truncated, corrupt or missing shard; members outside of it; shards from `pipe:` and `http:`",
        "datasets/test_tar.py",
        "datasets/test_webdataset.py",
    ),
    "parquet": run_tests(
        "a truncated, corrupt or empty Parquet file, rows without an image, a copy that is damaged or has no space",
        "datasets/test_parquet.py",
    ),
    "decoders": run_tests(
        "image bombs; 16 bits, CMYK, palettes, alpha, animations, odd EXIF; long and damaged metadata",
        "data/test_transforms.py",
        "images/test_containers.py",
        "images/test_color_profile.py",
        "datasets/test_hostile.py",
    ),
    "embeddings": run_tests(
        "embeddings of another width, or of another encoder of the same width",
        "stages/test_precompute_text.py",
        "training/test_training_from_cache.py",
    ),
    "captions": run_tests(
        "captions that are empty, long, unusual Unicode, or invalid Unicode", "text/test_tokenizer.py"
    ),
    "left_out": run_tests(
        "captions in other encodings or under other names; a data set without any; files that are not used",
        "data/test_captions.py",
        "data/test_left_out.py",
        "datasets/test_captions.py",
    ),
    "room": run_tests("out of memory", "training/test_preemption.py"),
    "spike": run_tests("a loss spike", "training/test_skip_updates.py"),
    "pickles": run_tests(
        "pickled weights; damaged safetensors", "text/test_encoder.py", "text/test_hub.py", "test_safe_inputs.py"
    ),
    "sampling": run_tests("sampling, kill -9; prompts that are paths or HTML", "pipelines/test_output_dir.py"),
    "launchers": run_tests(
        "names with shell syntax, in launchers",
        "launch/test_tpu.py",
        "launch/test_worker.py",
        "launch/test_launchers.py",
    ),
}
