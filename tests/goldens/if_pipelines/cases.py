"""Folders of DeepFloyd IF's pipelines with random weights, as diffusers writes them."""

from pathlib import Path

HERE = Path(__file__).parent
FIRST, SECOND = HERE / "first", HERE / "second"  # stages I and II, float32
HALF = HERE / "half"  # stage I, float16, variant fp16, in several files
# of predictions in float32, relative to the largest one
TOLERANCE = 1e-5
