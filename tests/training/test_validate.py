"""Meshes that a run is refused on, since its gradients would be wrong."""

import jax
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.training.validate import check_training
from tests.helpers.configs import base_config


def test_two_rows_on_two_devices_are_refused():
    config = base_config(**{"mesh.data": 4, "mesh.spatial": 2, "training.batch_size": 8})
    rows = {size: config.with_changes({"image_size": size * config.model.side_multiple}) for size in (2, 4)}
    with pytest.raises(ConfigError, match="two rows at the coarsest level, .* wrong gradients"):
        check_training(rows[2])
    check_training(rows[4])
    check_training(rows[2].with_changes({"mesh.data": 1}), jax.devices()[:2])
