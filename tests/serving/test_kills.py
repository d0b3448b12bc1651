"""An engine that is killed at random moments loses nothing, and does nothing twice."""

import contextlib
import dataclasses
import sqlite3
import time

import numpy as np
import pytest

from imagen_jax.images import png
from imagen_jax.images.grid import read_png
from imagen_jax.pipelines.editor import ImagenEditor
from imagen_jax.serving.engine import Engine
from imagen_jax.serving.jobs import EditRequest
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
def test_what_is_edited_survives_a_kill(shapes, tmp_path):
    rng = np.random.default_rng(0)
    image, mask = rng.integers(256, size=(64, 64, 3), dtype=np.uint8), np.zeros((64, 64, 1), np.uint8)
    mask[8:40, 16:56] = 255
    settings = [{"num_inference_steps": 4}, {"num_inference_steps": 2}]
    asked = dataclasses.replace(
        request("a ring", count=6, settings=settings), edit=EditRequest("inpaint", "", "", [1.0, 1.0])
    )
    files = {"image": png.encode(image), "mask": png.encode(mask)}
    with EngineProcess(tmp_path) as engine:
        job_id = engine.submit(dataclasses.asdict(asked), files)
        until(lambda: kept(tmp_path))
    before = kept(tmp_path)
    engine = Engine(shapes, tmp_path, batch_sizes=(1, 4), warm_up=False)
    engine.start()
    try:
        (job,) = wait(engine, job_id)
        assert (job.status, job.request) == ("done", asked)
        assert before.items() <= kept(tmp_path).items()
        editor = ImagenEditor(shapes)
        for made in job.images:
            expected = editor.inpaint(image, mask[..., 0], "a ring", seed=[made.seed], num_inference_steps=[4, 2])
            np.testing.assert_array_equal(read_png(engine.image_path(made.file)), expected.images[0])
    finally:
        engine.stop(60)


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
