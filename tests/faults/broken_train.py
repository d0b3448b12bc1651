"""`imagen train` with a fault in its steps, given by $TRAIN_FAULT: `nan:FIRST:LAST` or `stall:STEP:STEP`."""

import os
import sys
import time

import jax
import jax.numpy as jnp

from imagen_jax.cli import app
from imagen_jax.training import loop


def with_fault(make_train_step, kind, first, last):
    """Wraps `make_train_step`: steps FIRST to LAST get NaN embeddings, or never end."""

    def make(*arguments):
        train_step = make_train_step(*arguments)

        def broken_step(state, encoder_params, batch):
            if first <= int(state.step) + 1 <= last:
                if kind == "stall":
                    time.sleep(1e6)
                # NaN embeddings give NaN gradients
                encoder_params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), encoder_params)
            return train_step(state, encoder_params, batch)

        return broken_step

    return make


if __name__ == "__main__":
    kind, first, last = os.environ["TRAIN_FAULT"].split(":")
    loop.make_train_step = with_fault(loop.make_train_step, kind, int(first), int(last))
    app.main(["train", *sys.argv[1:]])
