"""How many images share a batch."""

import dataclasses

import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.serving.batch_sampler import BatchSampler
from imagen_jax.serving.plans import default_request, make_plan


@pytest.fixture
def plan(shapes):
    return make_plan(shapes, default_request(2))


def test_the_largest_size_that_waiting_images_fill(shapes, plan):
    sampler = BatchSampler(shapes, (1, 4, 16))
    chosen = [sampler.choose_size(plan.program, 1.0, available) for available in (1, 3, 4, 15, 16, 99)]
    assert chosen == [1, 1, 4, 4, 16, 16]


def test_larger_images_are_fewer(shapes, plan):
    sampler = BatchSampler(shapes, (1, 4, 16))
    larger = dataclasses.replace(plan.program, size=(128, 128))
    assert sampler.choose_size(larger, 4.0, 99) == 4


def test_images_that_take_long_are_fewer(shapes, plan):
    """Whoever comes next waits for a batch of seconds, not of minutes."""
    sampler = BatchSampler(shapes, (1, 4))
    sampler.sample([(plan, 0)], lambda _: None)
    seconds = sampler.seconds_for(1.0)
    assert seconds > 0
    chosen = [sampler.choose_size(plan.program, takes / seconds, 99) for takes in (1.2, 1.3, 100.0)]
    assert chosen == [4, 1, 1]


@pytest.mark.parametrize("sizes", [(), (0,), (4, -1)])
def test_sizes_are_positive(shapes, sizes):
    with pytest.raises(ConfigError, match="sizes of at least 1"):
        BatchSampler(shapes, sizes)
