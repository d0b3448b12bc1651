"""Modules whose flags have names that others use too, in one process."""

import contextlib
import importlib

from absl import flags

# what commands share stays, whoever imports it first
import imagen_jax.mesh_flags
import imagen_jax.sampling_flags  # noqa: F401


@contextlib.contextmanager
def imported(module, *names):
    """A module that defines flags of these names; those of others are put aside, and back."""
    before = {name: flags.FLAGS[name] for name in flags.FLAGS}
    for name in names:
        if name in before:
            delattr(flags.FLAGS, name)
    yield importlib.import_module(module)
    for name in list(flags.FLAGS):
        if name not in before or flags.FLAGS[name] is not before[name]:
            delattr(flags.FLAGS, name)
    for name, flag in before.items():
        if name not in flags.FLAGS:
            flags.FLAGS[name] = flag
