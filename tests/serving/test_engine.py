"""The engine: accepts jobs, batches their images, keeps them, and tells how they go."""

import contextlib
import errno
import sqlite3

import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import read_png
from imagen_jax.pipelines import image_record
from imagen_jax.serving import engine as engines
from imagen_jax.serving.engine import Engine, QueueLimits
from imagen_jax.serving.jobs import QueueFullError, StorageError
from imagen_jax.serving.store import DATABASE
from tests.serving.jobs import check_images, request, until, wait

SIZES = (1, 4)


@pytest.fixture
def start(shapes, tmp_path):
    """Starts engines, which are stopped at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(out=tmp_path, pipeline=shapes, **settings):
            engine = Engine(pipeline, out, **({"batch_sizes": SIZES, "warm_up": False} | settings))
            engine.start()
            stack.callback(engine.stop, 60)
            return engine

        yield start


@pytest.fixture
def held(start, monkeypatch):
    """An engine whose worker waits before each batch until `held.go()`, or before the first only."""
    return Held(start, monkeypatch)


class Held:
    """Holds back the worker of the next engine, so that jobs wait together."""

    def __init__(self, start, monkeypatch):
        self._start, self._patch = start, monkeypatch
        self._is_free = False
        self.batches = []  # jobs of each batch

    def start(self, **settings):
        engine = None
        take = engines.FairQueue.take

        def wait_and_take(queue, choose):
            batch = take(queue, choose)
            self.batches.append([job.id for job, _ in batch])
            return batch

        self._patch.setattr(engines.FairQueue, "take", wait_and_take)
        until_free = engines.Engine._next_batch

        def next_batch(engine):
            with engine._changed:
                engine._changed.wait_for(lambda: self._is_free or engine._is_stopping)
            return until_free(engine)

        self._patch.setattr(engines.Engine, "_next_batch", next_batch)
        engine = self._start(**settings)
        self._engine = engine
        return engine

    def go(self):
        with self._engine._changed:
            self._is_free = True
            self._engine._changed.notify_all()


def test_images_are_those_sampled_alone(held, shapes):
    """Jobs of several clients, in batches of several sizes, with prompts, seeds and guidance of their own."""
    engine = held.start()
    asked = [
        request("a red circle", "", count=2, seed=3),
        request("a small blue ring above a green square", seed=2**63),
        request("a red circle", seed=9, settings=[{"guidance_scale": 3.0}, {}]),
        request("two squares", seed=1, negative_prompt="red"),
        request("two squares", seed=1, negative_prompt="a blue circle"),
        request("two squares", seed=1, settings=[{"num_inference_steps": 3}, {"num_inference_steps": 2}]),
    ]
    jobs = [engine.submit(one, f"client {number % 3}") for number, one in enumerate(asked)]
    assert [job.status for job in jobs] == ["queued"] * len(jobs)
    held.go()
    for job in wait(engine, *(job.id for job in jobs)):
        assert (job.status, job.error) == ("done", None)
        assert job.created <= job.started <= job.finished
        check_images(engine, job, shapes)
    # those that differ in prompts, seeds and guidance scales alone have shared batches
    shared = [{*batch} for batch in held.batches]
    assert any(len(batch) > 1 for batch in shared)
    assert any({jobs[1].id, jobs[2].id} <= batch for batch in shared)
    # a prompt with a negative one has another program
    assert all(batch <= {jobs[3].id, jobs[4].id} for batch in shared if jobs[3].id in batch)
    assert engine.stats()["images"] == sum(one.images for one in asked)


def test_nothing_is_compiled_after_the_warm_up(start, shapes):
    engine = start(warm_up=True)
    until(lambda: engine.ready)
    warm = engine.stats()
    asked = [
        request("a ring", "two", count=n, seed=2**40, negative_prompt=text) for n in (1, 2, 3) for text in (None, "x")
    ]
    asked.append(request(settings=[{"guidance_scale": 7.0}, {}]))
    wait(engine, *[engine.submit(one, "a").id for one in asked])
    stats = engine.stats()
    assert (stats["compilations_unexpected"], stats["compilations"]) == (0, warm["compilations"])
    (job,) = wait(engine, engine.submit(request("a ring", count=2, seed=2**64 - 2, height=128, width=64), "a").id)
    stats = engine.stats()
    assert stats["compilations_unexpected"] == 0 < stats["compilations_on_demand"]
    # the file of an image says what made it
    assert [image.file for image in job.images] == [f"{job.id}-0.png", f"{job.id}-1.png"]
    assert (job.images[1].height, job.images[1].width) == (128, 64)
    path = engine.image_path(job.images[1].file)
    record = image_record.read_record(path)
    assert (record.prompt, record.seed, record.index) == ("a ring", 2**64 - 1, 0)
    again = shapes.sample_all(image_record.like_request(record))[-1][record.batch.row]
    assert (read_png(path) == again).all() and again.shape == (128, 64, 3)


def test_events_tell_how_a_job_goes(held):
    engine = held.start()
    first, job = engine.submit(request(), "a"), engine.submit(request(count=2), "a")
    notified = []
    subscription = engine.events(job.id, lambda: notified.append(1))
    assert [engine.position(one.id) for one in (first, job)] == [0, 1]
    assert engine.progress(job.id) is None
    held.go()
    events = []
    while not events or events[-1].name != "done":
        events.append(subscription.get(60))
    names = [event.name for event in events]
    assert {"step", "preview", "image", "done"} <= {*names} and len(notified) >= len(names)
    assert [event.data.index for event in events if event.name == "image"] == [0, 1]
    fractions = [event.data["fraction"] for event in events if event.name == "step"]
    assert fractions == sorted(fractions) and 0 < fractions[0] <= fractions[-1] <= 1
    preview = next(event.data for event in events if event.name == "preview")
    assert preview["stage"] in (0, 1) and preview["images"][0]["png"].startswith("iVBORw0KGgo")
    assert events[-1].data == engine.get(job.id)
    assert engine.position(job.id) is engine.progress(job.id) is None
    subscription.close()


def test_an_idempotency_key_is_one_job(start):
    engine = start()
    asked = request("a ring", idempotency_key="k")
    job = engine.submit(asked, "a")
    assert engine.submit(asked, "a").id == job.id
    assert engine.submit(asked, "b").id != job.id
    with pytest.raises(ConfigError, match="idempotency_key"):
        engine.submit(request("another", idempotency_key="k"), "a")
    random = request(seed=1, idempotency_key="r", seeds_are_random=True)
    again = request(seed=2, idempotency_key="r", seeds_are_random=True)
    assert engine.submit(random, "a").id == engine.submit(again, "a").id
    wait(engine, job.id)
    assert engine.submit(asked, "a").status == "done"
    assert len(engine.history()[0]) == 3


def test_the_queue_has_limits(held):
    engine = held.start(limits=QueueLimits(images=8, jobs=5, client_share=0.5))
    engine.submit(request(count=3), "a")
    with pytest.raises(QueueFullError) as error:
        engine.submit(request(count=2), "a")
    assert error.value.retry_after >= 1
    engine.submit(request(count=4, idempotency_key="k"), "b")
    with pytest.raises(QueueFullError):
        engine.submit(request(count=2), "c")
    # what is accepted is not refused when it is sent again
    assert engine.submit(request(count=4, idempotency_key="k"), "b").status == "queued"
    engine.submit(request(), "c")
    held.go()
    until(lambda: not engine.stats()["queued"])
    engine.submit(request(count=3), "a")


def test_a_job_larger_than_the_limit_is_sampled_when_nothing_waits(start):
    engine = start(limits=QueueLimits(images=2))
    assert wait(engine, engine.submit(request(count=5), "a").id)[0].status == "done"


def test_clients_share_the_worker(held):
    engine = held.start(batch_sizes=(4,))
    many = [engine.submit(request(count=4, seed=n), "many").id for n in range(3)]
    few = engine.submit(request(count=2), "few").id
    held.go()
    wait(engine, *many, few)
    assert held.batches[0].count(few) == 2


def test_a_long_batch_lets_another_client_through(start, shapes):
    engine = start(warm_up=True)
    until(lambda: engine.ready)
    long = [{"num_inference_steps": 300}] * 2
    slow = engine.submit(request("a ring", "two blue squares", settings=long), "a").id
    until(lambda: engine.progress(slow) is not None)
    quick = [engine.submit(request(seed=seed), "b").id for seed in range(3)]
    done = wait(engine, *quick)
    assert engine.get(slow).status == "running"
    for job in [*done, *wait(engine, slow)]:
        check_images(engine, job, shapes)
    assert engine.stats()["compilations_unexpected"] == 0


def test_cancel(held):
    engine = held.start(batch_sizes=(1,))
    queued, running, other = (engine.submit(request(count=n, seed=n), "a").id for n in (1, 3, 1))
    events = engine.events(running)
    assert engine.cancel(queued).status == "canceled"
    assert engine.position(queued) is None and engine.position(other) == 1
    held.go()
    while events.get(60).name != "image":
        pass
    canceled = engine.cancel(running)
    assert (canceled.status, canceled.images[0].file) == ("canceled", f"{running}-0.png")
    done, after = wait(engine, other, running)
    assert (done.status, after.images[2].file, after.error) == ("done", None, None)
    assert engine.cancel(other).status == "done" and engine.cancel("x" * 16) is None
    # images of the canceled job are those that it says
    until(lambda: not engine.stats()["running_jobs"])
    files = {path.name for path in engine.image_path(done.images[0].file).parent.glob(f"{running}*")}
    assert files == {image.file for image in engine.get(running).images if image.file}


def test_cancel_spares_others_in_the_batch(held, shapes, monkeypatch):
    engine = held.start(batch_sizes=(4,))
    jobs = [engine.submit(request(seed=seed), "a").id for seed in range(4)]
    on_progress, seen = engines.Engine._on_progress, []

    def cancel_one(self, batch, progress):
        on_progress(self, batch, progress)
        seen.append(progress.fraction)
        if len(seen) == 2:
            self.cancel(jobs[1])

    monkeypatch.setattr(engines.Engine, "_on_progress", cancel_one)
    held.go()
    ended = wait(engine, *jobs)
    assert [job.status for job in ended] == ["done", "canceled", "done", "done"]
    assert ended[1].images[0].file is None and seen[-1] == 1
    for job in (ended[0], ended[2], ended[3]):
        check_images(engine, job, shapes)


def test_a_batch_ends_when_all_of_it_is_canceled(held, monkeypatch):
    engine = held.start()
    job = engine.submit(request(), "a").id
    on_progress, seen = engines.Engine._on_progress, []

    def cancel_it(self, batch, progress):
        seen.append(progress.fraction)
        self.cancel(job)
        on_progress(self, batch, progress)

    monkeypatch.setattr(engines.Engine, "_on_progress", cancel_it)
    held.go()
    until(lambda: seen and not engine.stats()["running_jobs"])
    assert len(seen) == 1 and seen[0] < 1


@pytest.mark.parametrize(
    ("settings", "others", "what"),
    [
        ([{"num_inference_steps": 0}, {}], {}, "num_inference_steps"),
        ([{"sampler": "dimm"}, {}], {}, "ddim"),
        ([{"no_such": 1}, {}], {}, "no_such"),
        ([{"guidance_scale": 1.0}, {}], {"negative_prompt": "red"}, "negative_prompt"),
        ([{}, {}], {"height": 65}, "65"),
        ([{"s_tmin": 3.0, "s_tmax": 1.0, "sampler": "heun"}, {}], {}, "s_tm"),
    ],
)
def test_what_the_cascade_cannot_do_is_refused(start, settings, others, what):
    engine = start()
    with pytest.raises(ConfigError, match=what):
        engine.submit(request(settings=settings, **others), "a")
    assert engine.history() == ([], None)


def test_a_failing_job_does_not_fail_others(held, shapes, monkeypatch, caplog):
    engine = held.start(batch_sizes=(4,))
    good, bad = engine.submit(request("a ring"), "a").id, engine.submit(request("the bad one"), "b").id
    sample = engines.BatchSampler.sample

    def fail(self, rows, callback):
        if any("bad" in plan.request.prompts[0] for plan, _ in rows):
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return sample(self, rows, callback)

    monkeypatch.setattr(engines.BatchSampler, "sample", fail)
    held.go()
    done, failed = wait(engine, good, bad)
    assert (done.status, failed.status) == ("done", "failed") and "sampling has failed" in failed.error
    check_images(engine, done, shapes)


def test_history_and_removal(start):
    engine = start()
    prompts = ["a red circle", "a BLUE Ring", "Zwei Würfel", "a red ring"]
    jobs = [engine.submit(request(prompt), "ab"[n % 2]).id for n, prompt in enumerate(prompts)]
    wait(engine, *jobs)
    first, cursor = engine.history(limit=3)
    assert [job.id for job in first] == jobs[:0:-1]
    last, end = engine.history(limit=3, before=cursor)
    assert ([job.id for job in last], end) == ([jobs[0]], None)
    assert [job.id for job in engine.history("ring RED")[0]] == [jobs[3]]
    assert [job.id for job in engine.history("würfel")[0]] == [jobs[2]]
    assert engine.history("%")[0] == engine.history("'")[0] == []
    assert [job.id for job in engine.history(client="b")[0]] == [jobs[3], jobs[1]]
    for cursor in ("x", "-1", "1" * 40, "1 OR 1"):
        with pytest.raises(ConfigError, match="before"):
            engine.history(before=cursor)
    path = engine.image_path(f"{jobs[0]}-0.png")
    assert path.exists() and engine.image_owner(path.name) == "a"
    assert engine.delete(jobs[0]) and not engine.delete(jobs[0])
    assert not path.exists() and engine.image_path(path.name) is engine.image_owner(path.name) is None
    assert engine.get(jobs[0]) is None and len(engine.history()[0]) == 3


def test_an_active_job_is_not_removed(held):
    engine = held.start()
    job = engine.submit(request(), "a").id
    assert not engine.delete(job) and engine.get(job).status == "queued"


@pytest.mark.parametrize("name", ["../jobs.sqlite3", "x-0.png", f"{'x' * 16}-0.png", "", f"{'x' * 16}-00.png"])
def test_other_names_are_no_images(start, name):
    assert start().image_path(name) is None


def test_stop_puts_back_and_start_continues(held, start, shapes, tmp_path, monkeypatch):
    engine = held.start(batch_sizes=(1,))
    jobs = [engine.submit(request(count=2, seed=seed), "a").id for seed in (1, 5)]
    events = engine.events(jobs[0])
    held.go()
    while events.get(60).name != "image":
        pass
    engine.stop(0)
    with pytest.raises(QueueFullError):
        engine.submit(request(), "a")
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        assert database.execute("SELECT status FROM jobs").fetchall() == [("queued",)] * 2
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    assert f"{jobs[0]}-0.png" in kept
    again = start()
    for job in wait(again, *jobs):
        assert job.status == "done"
        check_images(again, job, shapes)
    # what there was is not sampled again
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    assert {name: now[name] for name in kept} == kept


def test_jobs_of_another_cascade_are_sampled_from_this_one(held, start, shapes, caplog):
    engine = held.start()
    job = engine.submit(request(), "a").id
    engine.stop(0)
    start().stop(0)
    assert "another cascade" not in caplog.text
    again = start(pipeline=shapes.with_settings([{"num_inference_steps": 2}, {}]))
    assert "1 jobs were accepted for another cascade" in caplog.text and again.get(job).status == "queued"


def test_two_servers_do_not_share_a_folder(start, tmp_path):
    start()
    with pytest.raises(ConfigError, match="in use by another server"):
        start()


def test_other_databases_are_refused(start, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.execute("CREATE TABLE mine (a)")
    with pytest.raises(ConfigError, match="another program"):
        start()
    (tmp_path / DATABASE).write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        start()
    (tmp_path / DATABASE).unlink()
    start().stop(0)
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="later version"):
        start()


def test_images_wait_while_the_disk_is_full(start, shapes, monkeypatch, caplog):
    engine = start()
    monkeypatch.setattr(engines, "_DISK_PAUSE_SECONDS", (0.001, 0.01))
    save, full = engines.save_png, True

    def save_png(image, path, texts):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path, texts)

    monkeypatch.setattr(engines, "save_png", save_png)
    job, canceled = engine.submit(request(), "a").id, engine.submit(request(seed=1), "b").id
    until(lambda: engine.stats()["waits_for_disk"])
    assert engine.get(job).status == "running" and engine.get(job).images[0].file is None
    engine.cancel(canceled)
    full = False
    (done,) = wait(engine, job)
    check_images(engine, done, shapes)
    assert not engine.stats()["waits_for_disk"] and caplog.text.count("the disk is full") == 1


def test_a_job_that_cannot_be_kept_is_not_accepted(start, tmp_path):
    engine = start()
    # the database may not grow: as on a full disk
    (pages,) = engine._store._writer.execute("PRAGMA page_count").fetchone()
    engine._store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="full"):
        for seed in range(100):
            engine.submit(request("x" * 4000, seed=seed), str(seed))
    engine._store._writer.execute("PRAGMA max_page_count = 1000000")
    engine.submit(request(), "a")


def test_a_folder_in_a_bucket_is_refused(shapes):
    with pytest.raises(ConfigError, match="bucket"):
        Engine(shapes, "gs://bucket/out").start()
