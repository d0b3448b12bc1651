"""`imagen train` with a fault in its steps, given by $TRAIN_FAULT.

`nan:FIRST:LAST`, `stall:STEP:STEP`, or `full:FIRST:LAST`, which fills the disk of the run's folder during these steps.
"""

import contextlib
import os
import sys
import time

import jax
import jax.numpy as jnp

from imagen_jax.cli import app
from imagen_jax.training import loop


def with_fault(make_train_step, kind, first, last):
    """Wraps `make_train_step`: steps FIRST to LAST get NaN embeddings, or a full disk, or never end."""

    def make(*arguments):
        train_step = make_train_step(*arguments)

        def broken_step(state, encoder_params, batch):
            if kind == "full":
                fill_or_free(first <= int(state.step) + 1 <= last)
            elif first <= int(state.step) + 1 <= last:
                if kind == "stall":
                    time.sleep(1e6)
                # NaN embeddings give NaN gradients
                encoder_params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), encoder_params)
            return train_step(state, encoder_params, batch)

        return broken_step

    return make


def fill_or_free(is_full):
    """Fills the disk of $FILLER, or removes that file, in steps that last long enough for a few attempts to write."""
    filler = os.environ["FILLER"]
    if not is_full:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(filler)
            time.sleep(1.5)
        return
    time.sleep(0.2)
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        for size in (2**20, 2**10, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


if __name__ == "__main__":
    kind, first, last = os.environ["TRAIN_FAULT"].split(":")
    loop.make_train_step = with_fault(loop.make_train_step, kind, int(first), int(last))
    app.main(["train", *sys.argv[1:]])
