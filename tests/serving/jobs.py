"""Jobs for tests, and what their images should be."""

import time

import numpy as np

from imagen_jax.images.grid import read_png
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from imagen_jax.serving.jobs import ACTIVE, JobRequest

TIMEOUT = 300  # seconds after which a job counts as hanging


def request(*prompts, count=1, seed=0, settings=None, **others):
    """Returns a request; the seeds of its images follow each other."""
    prompts = list(prompts or ["a red circle"])
    seeds = [seed + index for index in range(len(prompts) * count)]
    return JobRequest(prompts, others.pop("negative_prompt", None), count, seeds, settings or [{}, {}], **others)


def wait(engine, *job_ids):
    """Waits until jobs have ended, and returns them."""
    ends = time.monotonic() + TIMEOUT
    while any(engine.get(job_id).status in ACTIVE for job_id in job_ids):
        assert time.monotonic() < ends, engine.stats()
        time.sleep(0.005)
    return [engine.get(job_id) for job_id in job_ids]


def until(condition):
    """Waits until a condition is true."""
    ends = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.001)


def sampled_alone(pipeline, asked):
    """Returns the images of a request, each sampled by a call of its own."""
    pipeline, images = pipeline.with_settings(asked.settings), []
    for index, seed in enumerate(asked.seeds):
        negative = None if asked.negative_prompt is None else [asked.negative_prompt]
        size = pipeline.as_size(asked.height, asked.width)
        images.append(
            pipeline.sample_all(SampleRequest(Texts([asked.prompt(index)], negative), seed, size=size))[-1][0]
        )
    return images


def check_images(engine, job, pipeline):
    """Checks that the images of a job are those that a call alone gives, to the bit."""
    for image, expected in zip(job.images, sampled_alone(pipeline, job.request), strict=True):
        np.testing.assert_array_equal(read_png(engine.image_path(image.file)), expected)
