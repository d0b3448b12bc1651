"""Checks, in two processes, that states of metrics of parts of the images are merged into those of one pass."""

import os

from imagen_jax.evaluation.state_files import merge_over_hosts
from imagen_jax.parallel import multihost
from tests.evaluation.test_feature_states import COUNT, assert_complete, new_states, states_of

BOUNDS = ([(0, 30), (70, COUNT)], [(30, 70)])


def main():
    count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
    multihost.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, index)
    states = states_of(BOUNDS[index])
    merge_over_hosts(states, new_states())
    assert_complete(states)
    multihost.shutdown(0)


if __name__ == "__main__":
    main()
