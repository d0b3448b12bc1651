import numpy as np
import pytest

from benchmarks import try_on
from imagen_jax.datasets.figures.captions import parse_caption
from imagen_jax.datasets.figures.render import render
from imagen_jax.datasets.figures.scenes import is_held_out


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("held_out", [False, True])
def test_tasks(box, held_out):
    tasks = try_on.sample_tasks(8, box, held_out, seed=1)
    for task in tasks:
        new = task.expected.garments[task.changed]
        assert is_held_out(new) == held_out
        assert parse_caption(task.prompt).garments == task.expected.garments
        # the new garment is within the mask: all else can stay as it is
        truth = render(task.expected, try_on.SIZE)
        assert (truth != task.image).any()
        np.testing.assert_array_equal(truth[~task.mask], task.image[~task.mask])
        assert task.mask.mean() < 0.5


def test_rates():
    tasks = try_on.sample_tasks(12, False, True, seed=2)
    truth = np.stack([render(task.expected, try_on.SIZE) for task in tasks])
    given = np.stack([task.image for task in tasks])
    assert try_on.rates(tasks, truth) == ["100.0%"] * 6
    new, _, color, _, others, kept = try_on.rates(tasks, given)
    assert (new, color, others, kept) == ("0.0%", "0.0%", "100.0%", "100.0%")
