"""Faults of a run whose folder is in a bucket, which fails and is slow on top."""

import contextlib
import signal
import subprocess

import numpy as np

from imagen_jax.io import paths
from imagen_jax.stages.checkpoint_folder import checkpoint_folder
from tests.faults.harness import Result, Training, trained
from tests.faults.tiny import STEPS
from tests.helpers import buckets

RATE, LATENCY = 0.01, 0.005  # share of requests that get 503; seconds that each waits


def kill_in_bucket(bench, trials):
    """Kills runs in a bucket, every third time during the start, else after a save or in the next; ends with the rest.

    A run that is done is compared and deleted, and the next trial starts a new one.
    """
    rng, passed, worst, runs = np.random.default_rng(0), 0, 0.0, 0
    with buckets.serve() as bucket:
        workdir = bucket / "stage"
        options = {"variables": bucket.environment, "log_file": bench.folder / "bucket.out"}
        steps = checkpoint_folder(workdir / "checkpoints").steps
        bucket.faults.rate, bucket.faults.seconds = RATE, LATENCY
        for trial in range(trials):
            before = max(steps(), default=0)
            with Training(workdir, **options) as training:
                if trial % 3 < 2:
                    training.until(lambda before=before: max(steps(), default=0) > before)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    training.process.wait(rng.uniform(0, 3.0 if trial % 3 < 2 else bench.seconds))
                training.send(signal.SIGKILL)
            passed += 1
            if max(steps(), default=0) == STEPS or trial == trials - 1:
                trained(workdir, **options)
                worst, runs = max(worst, bench.difference(workdir)), runs + 1
                paths.remove_tree(workdir)
        failed, requests = bucket.faults.failed, bucket.faults.requests
    text = f"difference {worst:g} in {runs} run(s); {failed:,} of {requests:,} requests failed"
    return Result("kill -9 at a random moment, on gs://", trials, passed if worst == 0 else 0, text)
