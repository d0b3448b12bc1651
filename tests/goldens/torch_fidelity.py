"""Imports torch-fidelity without torchvision, which it needs for data sets and other networks only.

A torchvision of another build than torch's, as pip chooses it beside a torch without CUDA, breaks transformers.
"""

import importlib
import sys
from unittest.mock import MagicMock

NAMES = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")


def torch_fidelity():
    """Returns the package."""
    if "torch_fidelity" in sys.modules:
        return sys.modules["torch_fidelity"]
    present = {name: sys.modules.get(name) for name in NAMES}
    sys.modules.update({name: MagicMock() for name in NAMES})
    try:
        return importlib.import_module("torch_fidelity")
    finally:
        for name, module in present.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
