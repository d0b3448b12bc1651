"""Seeds: which are accepted, and the random keys and NumPy entropy that they stand for. No two seeds share a stream."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import ConfigError

MAX_SEED = 2**64 - 1
MAX_INDEX = 2**32 - 1  # of a sample: `jax.random.fold_in` takes 32 bits
_WORD = 2**32


def check_seed(seed: Any, name: str = "seed") -> int:
    """Returns a seed as an int.

    Args:
        seed: the value given.
        name: of the argument, for the message.

    Raises:
        ConfigError: it is not an integer in [0, 2^64).
    """
    try:
        value = None if isinstance(seed, (bool, np.bool_)) else operator.index(seed)
    except TypeError:
        value = None
    if value is None or not 0 <= value <= MAX_SEED:
        raise ConfigError(f"{name} {seed!r} is not an integer in [0, 2^64): give for example {name}=0")
    return value


def key_from_seed(seed: int) -> jax.Array:
    """Returns the random key of a seed, a scalar.

    The key's words are the seed's upper and lower half, as those of `jax.random.key` with 64-bit integers enabled;
    without, that function drops the upper half.

    Raises:
        ConfigError: the seed is not an integer in [0, 2^64).
    """
    high, low = divmod(check_seed(seed), _WORD)
    key = jax.random.key(low)
    if not high:
        return key
    # the pair of words occurs once in keys of Threefry, twice in those of other generators
    pairs = jax.random.key_data(key).size // 2
    return jax.random.wrap_key_data(jnp.tile(jnp.array([high, low], jnp.uint32), pairs))


def keys_from_seeds(seeds: Sequence[int]) -> jax.Array:
    """Returns the random keys of N seeds, [N], see `key_from_seed`; nothing is compiled for other seeds.

    Raises:
        ConfigError: a seed is not an integer in [0, 2^64).
    """
    words = np.array([divmod(check_seed(seed), _WORD) for seed in seeds], np.uint32)
    data: Any = np.tile(words, (1, _key_size() // 2))  # a host array: nothing is compiled for it
    return jax.random.wrap_key_data(data)


@functools.cache
def _key_size() -> int:
    """Returns how many words the key of JAX's default generator has."""
    size: int = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).size
    return size


def seed_entropy(seed: int, index: int) -> tuple[int, ...]:
    """Returns the entropy for NumPy's `SeedSequence` or `default_rng` of part `index` of a seed's randomness.

    NumPy concatenates the 32-bit words of all numbers and ignores zeros at the end: the words of (2^32 · i + s, 0)
    are those of (s, i). So a large seed has a fourth word, which no smaller one has.

    Args:
        seed: in [0, 2^64).
        index: in [0, 2^32).
    """
    high, low = divmod(seed, _WORD)
    return (low, index, high, 1) if high else (low, index)
