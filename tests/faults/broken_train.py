"""The train command with a fault in its steps, which TRAIN_FAULT names: ``nan:FIRST:LAST`` or ``stall:STEP:STEP``."""

import os
import time

import jax
import jax.numpy as jnp

from imagen_jax import commands
from imagen_jax.training import loop


def with_fault(make_train_step, kind, first, last):
    def make(*arguments):
        train_step = make_train_step(*arguments)

        def broken(state, encoder_params, batch):
            if first <= int(state.step) + 1 <= last:
                if kind == "stall":
                    time.sleep(1e6)
                # embeddings that are no numbers give gradients that are none
                encoder_params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), encoder_params)
            return train_step(state, encoder_params, batch)

        return broken

    return make


if __name__ == "__main__":
    kind, first, last = os.environ["TRAIN_FAULT"].split(":")
    loop.make_train_step = with_fault(loop.make_train_step, kind, int(first), int(last))
    commands.run(loop.main, several_processes=True)
