"""A stage trains on few images without further settings, and says what of their folder it does not use."""

import pytest

from imagen_jax.training.loop import train
from tests.helpers.archives import encode_image
from tests.helpers.configs import MIDDLE, config_of


@pytest.mark.slow
def test_five_images_train_and_say_so_once(tmp_path):
    folder = tmp_path / "five"
    folder.mkdir()
    for i in range(5):
        (folder / f"sks_{i}.png").write_bytes(encode_image(i, (20, 20)))
        (folder / f"sks_{i}.TXT").write_text("photo of sks dog")
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / "sks_6.psd").write_bytes(b"")
    changes = {"image_size": 8, "model.patch_size": 2, "sampling.sampler": "ddpm", "training.steps": 2, **MIDDLE}
    config = config_of(
        "folder_base.py", **{**changes, "data.path": str(folder), "data.validation_fraction": 0.01, "data.prefetch": 2}
    )
    train(config, tmp_path / "stage")
    log = (tmp_path / "stage" / "log.txt").read_text()
    for text in ("Thumbs.db", "sks_6.psd", "5 image(s) trained on and validated on"):
        assert log.count(text) == 1
    assert list((tmp_path / "stage" / "previews").iterdir())
