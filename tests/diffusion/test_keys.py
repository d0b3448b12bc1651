import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import gaussian_noise, sample_keys
from imagen_jax.diffusion.keys import MAX_SEED, check_seed, key_from_seed, seed_entropy
from imagen_jax.errors import ConfigError

# seeds that 32 or 63 bits would confuse, and both ends
SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**33 + 7, 7 * 2**32, 2**63 - 1, 2**63, 2**63 + 7, MAX_SEED]


def test_every_seed_has_its_own_key():
    keys = {tuple(jax.random.key_data(key_from_seed(seed)).tolist()) for seed in SEEDS}
    assert len(keys) == len(SEEDS)
    noise = [gaussian_noise(sample_keys(seed, jnp.arange(2)), 0, (3,)).tolist() for seed in SEEDS]
    assert all(one != other for one, other in itertools.combinations(noise, 2))


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if seed < 2**32])
def test_seeds_of_32_bits_have_the_keys_of_jax(seed):
    for made in (key_from_seed(seed), jax.jit(lambda: key_from_seed(seed))(), key_from_seed(np.int64(seed))):
        np.testing.assert_array_equal(jax.random.key_data(made), jax.random.key_data(jax.random.key(seed)))


@pytest.mark.parametrize("seed", [2**32 + 7, MAX_SEED])
@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
def test_keys_are_those_of_64_bit_integers(seed, generator):
    with jax.default_prng_impl(generator):
        made = [jax.random.key_data(key) for key in (key_from_seed(seed), jax.jit(lambda: key_from_seed(seed))())]
        with jax.enable_x64(True):
            expected = jax.random.key_data(jax.random.key(np.uint64(seed)))
    for key in made:
        np.testing.assert_array_equal(key, expected)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30, True, np.True_, 1.0, np.float32(1), "1", None, [1]], ids=repr)
def test_other_seeds_are_refused(seed):
    with pytest.raises(ConfigError, match="seed .* is not an integer in"):
        check_seed(seed)
    with pytest.raises(ConfigError, match="seed"):
        sample_keys(seed, jnp.arange(2))


def test_parts_of_seeds_share_no_entropy():
    """NumPy takes (2^32 · 3 + 5, 0) for (5, 3)."""
    pairs = list(itertools.product([0, 5, 2**32, 3 * 2**32 + 5, 2**63 + 5, MAX_SEED], [0, 1, 3, 2**31]))
    states = {tuple(np.random.SeedSequence(seed_entropy(*pair)).generate_state(4)) for pair in pairs}
    assert len(states) == len(pairs)
    small = np.random.SeedSequence(seed_entropy(5, 3)).generate_state(4)
    np.testing.assert_array_equal(small, np.random.SeedSequence((5, 3)).generate_state(4))
