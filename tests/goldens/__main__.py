"""Reference values from diffusers, transformers, torch-fidelity and clean-fid, which need torch. Run manually.

`make goldens` writes the values that tests compare with; `make parity` compares with the installed libraries directly.
"""

import argparse
import importlib.metadata
import sys

from tests.goldens.captions import make as captions
from tests.goldens.clip import make as clip
from tests.goldens.deepfloyd_if import make as deepfloyd_if
from tests.goldens.encoders import make as encoders
from tests.goldens.if_lora import make as if_lora
from tests.goldens.if_pipelines import make as if_pipelines
from tests.goldens.metrics import make as metrics
from tests.goldens.safety_checker import make as safety_checker
from tests.goldens.samplers import make as samplers
from tests.goldens.t5 import make as t5

PARTS = (samplers, t5, clip, captions, deepfloyd_if, if_pipelines, if_lora, safety_checker, encoders, metrics)
LIBRARIES = ("diffusers", "transformers", "torch-fidelity", "clean-fid", "torch", "jax")


def compare():
    """Prints all differences, and returns whether they are within their tolerances."""
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES))
    passed = [part.compare() for part in PARTS]
    print("all passed" if all(passed) else "FAILED")
    return all(passed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", action="store_true", help="write the goldens")
    group.add_argument("--compare", action="store_true", help="print how far apart the two are")
    if parser.parse_args().write:
        for part in PARTS:
            part.write()
    else:
        sys.exit(not compare())
