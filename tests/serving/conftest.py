"""One cascade, that which ships with the package, for all tests of the server; each process compiles it once."""

import pytest

from imagen_jax.pipelines.imagen import ImagenPipeline
from tests.helpers.configs import one_device


@pytest.fixture(scope="session")
def shapes():
    pipeline = ImagenPipeline.from_pretrained("shapes", one_device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
