import doctest

from imagen_jax import diffusion


def test_doctest():
    result = doctest.testmod(diffusion)
    assert result.attempted >= 6 and result.failed == 0


def test_all_names_resolve():
    assert all(getattr(diffusion, name) is not None for name in diffusion.__all__)
