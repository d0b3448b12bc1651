import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.clip import CLIPTextTower, CLIPVisionTower, end_positions
from tests.goldens.clip import cases

TINY = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 6,
}
EOS = 30


@pytest.fixture(scope="module")
def golden():
    with np.load(cases.GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def clips():
    return {name: cases.load(name) for name in cases.VARIANTS}


def text_tower(**fields):
    return CLIPTextTower(**TINY, vocab_size=40, max_position_embeddings=12, eos_token_id=EOS, **fields)


@pytest.fixture(scope="module")
def text_params():
    params = text_tower().init(jax.random.key(0), jnp.zeros((1, 12), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32), params)


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_images_match_transformers(golden, clips, name):
    ours = clips[name].encode_images(cases.images())
    assert cases.error(ours, golden[f"{name}/images"]) < cases.TOLERANCE
    np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["quick", "exact"])
def test_texts_match_transformers(golden, clips, name):
    ours = clips[name].encode_text(cases.TEXTS)
    assert cases.error(ours, golden[f"{name}/texts"]) < cases.TOLERANCE


@pytest.mark.parametrize("name", ["quick", "exact"])
def test_bfloat16_matches_transformers(golden, name):
    clip = cases.load(name, jnp.bfloat16)
    for ours, kind in ((clip.encode_images(cases.images()), "images"), (clip.encode_text(cases.TEXTS), "texts")):
        assert ours.dtype == np.float32
        assert (ours * golden[f"{name}/{kind}"]).sum(-1).mean() > cases.COSINE


def test_end_of_text_is_found_as_transformers_does():
    tokens = jnp.array([[1, 7, EOS, 39, EOS], [1, EOS, EOS, EOS, EOS], [1, 2, 3, 39, EOS]])
    np.testing.assert_array_equal(end_positions(tokens, EOS), [2, 1, 4])
    # the first of the largest token, whatever it is
    np.testing.assert_array_equal(end_positions(tokens, 2), [3, 1, 3])


def test_what_follows_the_end_has_no_effect(text_params):
    encode = jax.jit(text_tower().apply)
    tokens = np.array([[1, 5, 6, EOS, *[EOS] * 8]], np.int32)
    other = tokens.copy()
    other[:, 4:] = 9
    np.testing.assert_array_equal(encode({"params": text_params}, tokens), encode({"params": text_params}, other))
    other[:, 1] = 9
    changed = encode({"params": text_params}, tokens) - encode({"params": text_params}, other)
    assert np.abs(changed).max() > 1e-2


def test_shorter_texts_need_no_padding(text_params):
    tokens = np.array([[1, 5, 6, EOS, *[EOS] * 8]], np.int32)
    short, full = (text_tower().apply({"params": text_params}, part) for part in (tokens[:, :4], tokens))
    np.testing.assert_allclose(short, full, atol=1e-6)


@pytest.mark.parametrize(("size", "patch", "patches"), [(32, 8, 16), (31, 7, 16), (18, 5, 9)])
def test_pixels_beyond_the_last_patch_are_not_seen(size, patch, patches):
    tower = CLIPVisionTower(**TINY, image_size=size, patch_size=patch)
    images = np.random.default_rng(0).standard_normal((1, size, size, 3), np.float32)
    params = tower.init(jax.random.key(0), images)["params"]
    assert params["position_embedding"].shape == (patches + 1, 12)
    seen, other = size // patch * patch, images.copy()
    other[:, seen:], other[:, :, seen:] = 9, 9
    expected = tower.apply({"params": params}, images)
    np.testing.assert_array_equal(tower.apply({"params": params}, other), expected)
    other[:, seen - 1, seen - 1] = 9
    assert np.abs(tower.apply({"params": params}, other) - expected).max() > 1e-4


def test_fields_that_cannot_work_raise():
    with pytest.raises(ValueError, match="hidden_act 'swish'"):
        text_tower(hidden_act="swish")
    with pytest.raises(ValueError, match="num_attention_heads 5"):
        CLIPVisionTower(**TINY | {"num_attention_heads": 5})
