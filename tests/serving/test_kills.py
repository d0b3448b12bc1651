"""An engine that is killed at random moments loses nothing, and does nothing twice."""

import contextlib
import dataclasses
import sqlite3
import time

import numpy as np
import pytest

from imagen_jax.serving.engine import Engine
from imagen_jax.serving.store import DATABASE
from tests.serving.jobs import check_images, request, until, wait
from tests.serving.killed import EngineProcess


def kept(out):
    """Returns when each image was written that the database knows of."""
    with contextlib.closing(sqlite3.connect(out / DATABASE)) as database:
        rows = database.execute("SELECT id, position FROM images JOIN jobs ON job = number").fetchall()
    paths = [out / "images" / f"{job}-{position}.png" for job, position in rows]
    return {path.name: path.stat().st_mtime_ns for path in paths}


@pytest.mark.slow
def test_kills(shapes, tmp_path):
    rng, accepted, before = np.random.default_rng(0), {}, {}
    for trial in range(2):
        with EngineProcess(tmp_path) as engine:
            for number in range(3 * trial + 3):  # those of the life before are sent again
                asked = request(
                    f"a red circle {number}", count=1 + number % 3, seed=number, idempotency_key=f"{number}"
                )
                job_id = engine.submit(dataclasses.asdict(asked))
                assert accepted.setdefault(number, job_id) == job_id
            target = len(kept(tmp_path)) + int(rng.integers(1, 4))
            until(lambda target=target: len(kept(tmp_path)) >= target)
            time.sleep(rng.uniform(0, 0.2))
        written = kept(tmp_path)
        assert before.items() <= written.items()
        before = written
    engine = Engine(shapes, tmp_path, batch_sizes=(1, 4), warm_up=False)
    engine.start()
    try:
        for number, job in enumerate(wait(engine, *accepted.values())):
            assert (job.status, job.request.prompts) == ("done", [f"a red circle {number}"])
            check_images(engine, job, shapes)
        assert len(engine.history()[0]) == len(accepted)
        assert before.items() <= kept(tmp_path).items()
    finally:
        engine.stop(60)
    files = {path.name for path in (tmp_path / "images").iterdir()}
    assert files == set(kept(tmp_path))
