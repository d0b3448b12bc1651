"""Where an image is put together, nothing tells: gradients there are as strong as elsewhere."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.diffusion import samplers, schedules, tiling
from imagen_jax.diffusion.tiling import tiled_predict
from imagen_jax.parallel import batching
from imagen_jax.stages import stage as stages
from imagen_jax.stages import stage_sampler
from imagen_jax.stages.sampling import make_sample_fn
from imagen_jax.stages.stage_sampler import NoiseSource, StageSampler, make_request
from imagen_jax.stages.text import PromptEncoder, make_encoder
from imagen_jax.text.encoder import TextCondition
from imagen_jax.training.diffusion import DiffusionObjective
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.stage_objective import TRAINING_AXES
from imagen_jax.training.state import Frozen, abstract_state
from imagen_jax.training.step import make_train_step
from tests.helpers.configs import one_device, sr_config

pytestmark = pytest.mark.slow

COUNT = 64
STEPS_OF_TRAINING = 150
SCHEDULE = schedules.cosine()


def gradients(images):
    """Mean squares of the differences across each border between columns, [W - 1], relative to what is usual."""
    energy = np.mean(np.diff(images, axis=2) ** 2, axis=(0, 1, 3))
    return energy / np.median(energy)


def side_by_side(monkeypatch, side):
    """Makes of tiles that overlap ones that do not: what a seam looks like."""

    def cut(whole, *_):
        starts = list(range(0, whole, side))
        return starts, [np.ones(side)] * len(starts)

    monkeypatch.setattr(tiling, "_tile_starts_and_weights", cut)


class TestOfAGaussianField:
    """Images of a smooth random field, whose denoiser is exact: of a tile, it knows nothing of what lies beyond."""

    SIDE, TILE = 48, 24

    @staticmethod
    def denoise(z, t):
        """E[x | z_t] where x has the covariance exp(-d² / 18) of pixels d apart."""
        rows, columns = (np.arange(side) for side in z.shape[1:3])
        (by_row, row_modes), (by_column, column_modes) = (
            np.linalg.eigh(np.exp(-((place[:, None] - place) ** 2) / 18) + 1e-3 * np.eye(len(place)))
            for place in (rows, columns)
        )
        variance = jnp.float32(np.outer(by_row, by_column))[..., None]
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        modes = jnp.einsum("ri,brcx,cj->bijx", jnp.float32(row_modes), z, jnp.float32(column_modes))
        modes *= alpha * variance / (alpha**2 * variance + sigma**2)
        return jnp.einsum("ri,bijx,cj->brcx", jnp.float32(row_modes), modes, jnp.float32(column_modes))

    def drawn(self, overlap=None):
        def denoise(z, t):
            if overlap is None:
                return self.denoise(z, t)
            return tiled_predict(lambda tile: self.denoise(tile, t), [z], (self.TILE, self.TILE), overlap)

        keys = samplers.sample_keys(0, jnp.arange(COUNT))
        z = samplers.gaussian_noise(keys, 0, (self.SIDE, self.SIDE, 1))
        sampler = samplers.ddpm(SCHEDULE)
        return np.asarray(jax.jit(lambda z: sampler(denoise, z, sampler.times(20), keys))(z))

    @pytest.mark.parametrize("overlap", [4, 8])
    def test_overlapping_tiles_have_no_seams(self, overlap):
        found, whole = self.drawn(overlap), self.drawn()
        assert gradients(found).max() < 1.25
        # nor are tiles blurred where they overlap
        assert gradients(found).min() > 0.75
        assert np.diff(found, axis=2).std() == pytest.approx(np.diff(whole, axis=2).std(), rel=0.05)
        assert found.std() == pytest.approx(whole.std(), rel=0.1)

    def test_adjacent_tiles_have_seams(self, monkeypatch):
        side_by_side(monkeypatch, self.TILE)
        assert gradients(self.drawn(0))[self.TILE - 1] > 10


# Super-resolution to 32×32, trained on crops of 16×16. Patches of 2×2 pixels have gradients of their own.
LARGE, CROP = 32, 16


def crop_config(**changes):
    return sr_config(
        **{
            "image_size": LARGE,
            "low_res_size": LARGE // 2,
            "data.crop_size": CROP,
            "model.patch_size": 2,
            "model.channels": 16,
            "model.num_res_blocks": (0,),
            "model.attention_types": ((),),
            "model.middle_attention_types": (),
            "training.batch_size": 16,
            "sampling.num_inference_steps": 4,
            "sampling.aug_level": 0.3,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def params():
    config = crop_config()
    encoder, mesh = make_encoder(config.text), one_device()
    stage = stages.build(config, encoder.width)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    abstract, init = abstract_state(stage.init, optimizer, config.seed, mesh)
    batches = training_batches(
        make_examples(config.data, "train", config.image_size, config.channels),
        encoder.tokenize.as_features,
        config.training.batch_size,
        config.seed,
        threads=2,
        prefetch=2,
    )
    state, step = init(), make_train_step(DiffusionObjective(stage, encoder), config, optimizer, abstract, mesh)
    losses = []
    for _ in range(STEPS_OF_TRAINING):
        batch = batching.shard_local_batch(next(batches), TRAINING_AXES, mesh)
        state, metrics = step(state, Frozen(encoder.params), batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-20:]) < 0.5 * losses[0]
    return state.ema_params


@pytest.fixture(scope="module")
def low_res():
    """Smooth pictures that are everywhere alike: what differs between places is not theirs."""
    frequency = np.fft.fftfreq(LARGE // 2)
    smooth = np.exp(-60 * (frequency[:, None] ** 2 + frequency**2))[..., None]
    noise = np.random.default_rng(0).standard_normal((COUNT, LARGE // 2, LARGE // 2, 3))
    fields = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) * smooth, axes=(1, 2)).real
    return jnp.float32(0.4 * fields / fields.std())


def enlarged(params, low_res, **settings):
    """Gradients across the borders of patches; entry i is of column 2 i + 2."""
    stage = stages.build(crop_config(**{f"sampling.{name}": value for name, value in settings.items()}))
    encoder = PromptEncoder(make_encoder(stage.config.text), one_device())
    request = make_request(stage, encoder, [""] * COUNT, NoiseSource(stage_index=1), np.asarray(low_res))
    images = np.asarray(StageSampler(stage, one_device()).sample(params, request))
    assert images.shape == (COUNT, LARGE, LARGE, 3)
    return gradients(images)[1::2]


def test_full_image_has_no_seam_at_crop_size(params, low_res):
    found = enlarged(params, low_res)
    assert found[CROP // 2 - 1] == pytest.approx(np.median(found), rel=0.2)


def test_trained_stage_has_no_seams_at_tile_borders(params, low_res):
    found = enlarged(params, low_res, tile_size=CROP, tile_overlap=8)
    for border in (8, 16, 24):
        assert found[border // 2 - 1] == pytest.approx(np.median(found), rel=0.2)


def test_trained_stage_has_seams_between_adjacent_tiles(params, low_res, monkeypatch):
    side_by_side(monkeypatch, CROP)
    monkeypatch.setattr(stage_sampler, "_programs", collections.OrderedDict())  # none from before the patch
    found = enlarged(params, low_res, tile_size=CROP, tile_overlap=8)
    assert found[CROP // 2 - 1] > 3 * np.median(found)


def test_tiling_saves_memory():
    def needed(**settings):
        sampling = {f"sampling.{name}": value for name, value in settings.items()}
        stage = stages.build(crop_config(**{"image_size": 256, "low_res_size": 128, "model.channels": 64}, **sampling))
        params = jax.eval_shape(stage.init, jax.random.key(0))
        low_res = jax.ShapeDtypeStruct((1, *stage.low_res_shape), jnp.float32)
        sample = jax.jit(make_sample_fn(stage, stage.config.sampling))
        text = TextCondition(
            jnp.zeros((1, stage.config.text.length, stage.text_width)), jnp.zeros((1, stage.config.text.length), bool)
        )
        compiled = sample.lower(params, text, text, jax.random.split(jax.random.key(0), 1), low_res).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(tile_size=64, tile_overlap=16) < needed() / 2
