import numpy as np
import pytest

from benchmarks import editing
from imagen_jax.datasets.shapes.captions import parse_caption
from imagen_jax.datasets.shapes.judge import judge
from imagen_jax.datasets.shapes.render import render


@pytest.mark.parametrize("size", [32, 64])
def test_ring_tasks(size):
    tasks = editing.ring_tasks(24, size)
    truth = np.stack([render(task.expected, size) for task in tasks])
    assert editing.inpainting_figures(tasks, truth)[:4] == ["100.0%"] * 4
    given = np.stack([task.image for task in tasks])
    assert editing.inpainting_figures(tasks, given)[:4] == ["0.0%", "100.0%", "0.0%", "100.0%"]
    for task in tasks:
        assert task.image.shape == (size, size, 3)
        assert not judge(task.image, parse_caption(task.prompt)).all
        assert 0 < task.mask.mean() < 0.5


def test_ring_tasks_are_the_same_at_all_sizes():
    small, large = editing.ring_tasks(8, 32), editing.ring_tasks(8, 64)
    assert [(task.prompt, task.expected) for task in small] == [(task.prompt, task.expected) for task in large]


def test_altered_known_pixels_are_seen():
    tasks = editing.ring_tasks(4)
    images = np.stack([render(task.expected, editing.SIZE) for task in tasks])
    images[0][~tasks[0].mask] ^= 1
    assert editing.inpainting_figures(tasks, images)[3] == "75.0%"
