"""Tiny pipelines of DeepFloyd IF, converted once a session, and copies of them."""

import shutil

import pytest

from imagen_jax.conversion.from_diffusers import convert
from tests.goldens.if_pipelines.cases import FIRST, HALF, SECOND


@pytest.fixture(scope="session")
def cascade(tmp_path_factory):
    """Both stages, converted."""
    folder = tmp_path_factory.mktemp("converted") / "cascade"
    convert([str(FIRST), str(SECOND)], folder)
    return folder


@pytest.fixture(scope="session")
def half_cascade(tmp_path_factory):
    """A first stage of float16 weights in several files, converted."""
    folder = tmp_path_factory.mktemp("converted") / "half"
    convert([str(HALF)], folder)
    return folder


@pytest.fixture
def first(tmp_path):
    """A copy of the first stage's pipeline, to change."""
    return shutil.copytree(FIRST, tmp_path / "first")


@pytest.fixture
def half(tmp_path):
    """A copy of the pipeline of float16 weights, to change."""
    return shutil.copytree(HALF, tmp_path / "half")
