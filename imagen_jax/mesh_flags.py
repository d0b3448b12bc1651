"""Flags that say how devices share the drawing of pictures: whole networks on each, or less where that is too much."""

from __future__ import annotations

from absl import flags
from jax.sharding import Mesh

from imagen_jax.cascade import SAMPLING_MESH
from imagen_jax.sharding import make_mesh

FSDP = flags.DEFINE_integer(
    "fsdp", 1, "Devices that parameters, those of text encoders too, are split over in drawing.", lower_bound=1
)
SPATIAL = flags.DEFINE_integer(
    "spatial", 1, "Devices that share each picture, some rows each, as large ones may need.", lower_bound=1
)


def sampling_axes() -> dict[str, int]:
    """The axes of the mesh that the flags ask for."""
    return SAMPLING_MESH | {"fsdp": FSDP.value, "spatial": SPATIAL.value}


def sampling_mesh() -> Mesh:
    """All devices, as the flags ask. Raises UsageError where that does not divide them."""
    return make_mesh(sampling_axes())
