"""The order in which images of several clients are sampled."""

import collections

import pytest

from imagen_jax.serving.fair_queue import FairQueue, QueuedJob


class Jobs:
    """A queue, and jobs for it."""

    def __init__(self):
        self.queue = FairQueue()
        self._numbers = 0

    def add(self, name, client, images=1, *, priority=0, program="p", cost=1.0):
        self._numbers += 1
        job = QueuedJob(name, client, priority, self._numbers, program, cost, collections.deque(range(images)))
        self.queue.add(job)
        return job

    def take(self, size=1):
        return [(job.id, index) for job, index in self.queue.take(lambda *args: min(size, args[-1]))]

    def clients(self, count):
        """Takes so many images one by one, and returns the client of each."""
        return "".join(job.client for _ in range(count) for job, _ in self.queue.take(lambda *_: 1))


@pytest.fixture
def jobs():
    return Jobs()


def test_an_empty_queue(jobs):
    assert (jobs.take(), len(jobs.queue), list(jobs.queue.order())) == ([], 0, [])


def test_clients_take_turns_by_images(jobs):
    jobs.add("many", "a", 6)
    jobs.add("few", "b", 2)
    jobs.add("other", "c", 2)
    assert jobs.clients(10) == "abcabcaaaa"


def test_expensive_images_count_more(jobs):
    jobs.add("slow", "a", 4, cost=3)
    jobs.add("fast", "b", 9)
    assert jobs.clients(8) == "bbabbbab"


def test_a_cheap_image_need_not_wait_for_the_expensive_ones_of_many(jobs):
    for number in range(50):
        jobs.add(f"slow {number}", f"client {number}", 8, cost=100)
    jobs.take()
    jobs.add("fast", "late", 300)
    begun = [jobs.take()[0][0] for _ in range(150)]
    # it is next until its images have cost as much as one of the others', and then they are
    assert begun[:99] == ["fast"] * 99
    assert not {"fast"} & {*begun[100:148]}


def test_a_client_that_was_idle_has_no_credit(jobs):
    jobs.add("first", "a", 100)
    jobs.clients(50)
    jobs.add("late", "b", 100)
    assert collections.Counter(jobs.clients(20)) == {"a": 10, "b": 10}


def test_a_client_has_no_more_by_coming_and_going(jobs):
    jobs.add("long", "a", 20)
    taken = collections.Counter()
    for trial in range(10):
        jobs.add(f"short {trial}", "b")
        taken.update(jobs.clients(2))
    assert taken == {"a": 10, "b": 10}


def test_priority_is_among_the_jobs_of_a_client(jobs):
    jobs.add("low", "a")
    jobs.add("high", "a", priority=5)
    jobs.add("other", "b", priority=-100)
    assert jobs.take(3) == [("high", 0), ("other", 0), ("low", 0)]


def test_a_batch_has_one_program(jobs):
    jobs.add("p1", "a", 2, program="p")
    jobs.add("q", "a", 2, program="q")
    jobs.add("p2", "b", 2, program="p")
    assert jobs.take(8) == [("p1", 0), ("p2", 0), ("p1", 1), ("p2", 1)]
    assert jobs.take(8) == [("q", 0), ("q", 1)]


def test_a_rare_program_has_its_turn(jobs):
    jobs.add("common", "a", 100)
    jobs.add("rare", "b", program="q")
    batches = [jobs.take(4) for _ in range(3)]
    assert [("rare", 0)] in batches


def test_the_size_is_chosen_from_what_is_available(jobs):
    jobs.add("one", "a", 3)
    jobs.add("two", "b", 2)
    jobs.add("other", "b", 9, program="q")
    seen = []
    jobs.queue.take(lambda *args: seen.append(args) or 1)
    assert seen == [("p", 1.0, 5)]


def test_jobs_alone_share_no_batch(jobs):
    jobs.add("bad", "a", 2).alone = True
    jobs.add("good", "b", 2)
    assert jobs.take(8) == [("bad", 0), ("bad", 1)]
    assert jobs.take(8) == [("good", 0), ("good", 1)]


def test_images_are_put_back_in_order(jobs):
    job = jobs.add("job", "a", 4)
    assert jobs.take(3) == [("job", 0), ("job", 1), ("job", 2)]
    jobs.queue.put_back(job, [0, 2])
    assert jobs.take(3) == [("job", 0), ("job", 2), ("job", 3)]
    assert "job" not in jobs.queue
    jobs.queue.put_back(job, [3])
    assert jobs.queue.images() == jobs.queue.images("a") == 1


def test_order_is_that_in_which_jobs_begin(jobs):
    for number, client in enumerate("aabcabcc"):
        jobs.add(str(number), client, images=1 + number % 3, priority=number % 2)
    expected = list(jobs.queue.order())
    begun = []
    while len(jobs.queue):
        begun += [job_id for job_id, index in jobs.take() if index == 0]
    assert sorted(begun) == sorted(expected)
    assert begun[0] == expected[0]


def test_a_removed_job_is_gone(jobs):
    jobs.add("job", "a", 3)
    assert jobs.queue.remove("job").id == "job"
    assert jobs.queue.remove("job") is None
    assert (jobs.take(), jobs.queue.images(), jobs.queue.clients) == ([], 0, 0)
