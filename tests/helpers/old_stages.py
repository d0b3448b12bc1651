"""The stage folders of earlier versions."""

import tarfile

from tests.helpers.configs import ROOT


def extract_old_stages(folder):
    """Extracts the stage folders of version 0.1.0, `base` and `sr`, and the images that it sampled from them."""
    with tarfile.open(ROOT / "tests" / "fixtures" / "stages_v0.tar.xz") as archive:
        # Python before 3.11.4 has no filters
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder
