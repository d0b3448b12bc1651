"""A server of a cascade with a safety checker: flagged images are black, marked as such, and never shown before."""

import contextlib
import copy
import sqlite3

import numpy as np
import pytest

from imagen_jax.images.grid import read_png
from imagen_jax.pipelines import image_record
from imagen_jax.serving.auth import Tokens
from imagen_jax.serving.engine import Engine
from imagen_jax.serving.store import DATABASE
from imagen_jax.serving.views import job_view
from tests.goldens.safety_checker import cases
from tests.serving.jobs import request, sampled_alone, until, wait

ASKED = request("a red circle", "a large green ring on a white background", "two blue squares", seed=5)


@pytest.fixture(scope="module")
def expected(shapes):
    """The images of the request without a checker."""
    return np.stack(sampled_alone(shapes, ASKED))


@pytest.fixture(scope="module")
def checked(shapes, expected, tmp_path_factory):
    """The cascade with a checker that flags one of the images, by the programs that it has compiled."""
    folder = tmp_path_factory.mktemp("checker")
    nsfw, _ = cases.load(folder / "before").scores(expected, 4)
    pipeline = copy.copy(shapes)
    shift = 0.5 - np.sort(nsfw)[1:].mean()
    pipeline.safety_checker = cases.load(folder / "checker", nsfw=shift, watermark=-99)
    return pipeline


@contextlib.contextmanager
def started(pipeline, out, **settings):
    engine = Engine(pipeline, out, **({"batch_sizes": (1, 4), "warm_up": False} | settings))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop(60)


def check(engine, job, expected):
    """Checks that one image is black and marked, and that the others are as without a checker."""
    flagged = [image.flagged for image in job.images]
    assert sum(flagged) == 1
    for image, plain in zip(job.images, expected, strict=True):
        path = engine.image_path(image.file)
        np.testing.assert_array_equal(read_png(path), np.zeros_like(plain) if image.flagged else plain)
        assert image_record.read_record(path).flagged == image.flagged
    view = job_view(job, Tokens([]), None, None)
    assert [image.flagged for image in view.images] == flagged


def test_flagged_images_are_black_and_marked(checked, expected, tmp_path):
    with started(checked, tmp_path) as engine:
        subscribed = engine.events(engine.submit(ASKED, "a").id)
        (job,) = wait(engine, engine.history()[0][0].id)
        check(engine, job, expected)
        until(lambda: engine.progress(job.id) is None)
        names = [event.name for event in iter(lambda: subscribed.get(timeout=0), None)]
        assert "image" in names and "preview" not in names
    # kept over a restart, and over a kill between the files and the database
    for statement in ("", "DELETE FROM images; UPDATE jobs SET status = 'running', finished = NULL;"):
        with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
            database.executescript(statement)
        with started(checked, tmp_path) as engine:
            (job,) = wait(engine, job.id)
            check(engine, job, expected)
            assert engine.stats()["batches"] == 0


def test_nothing_is_compiled_after_the_warm_up(checked, tmp_path):
    with started(checked, tmp_path, warm_up=True) as engine:
        until(lambda: engine.ready)
        warm = engine.stats()["compilations"]
        wait(engine, *[engine.submit(request("a ring", "two", count=count), "a").id for count in (1, 2, 3)])
        stats = engine.stats()
        assert (stats["compilations_unexpected"], stats["compilations"]) == (0, warm)


def test_without_a_checker_nothing_is_marked(shapes, expected, tmp_path):
    with started(shapes, tmp_path) as engine:
        (job,) = wait(engine, engine.submit(ASKED, "a").id)
        assert not any(image.flagged for image in job.images)
        for image, plain in zip(job.images, expected, strict=True):
            np.testing.assert_array_equal(read_png(engine.image_path(image.file)), plain)
