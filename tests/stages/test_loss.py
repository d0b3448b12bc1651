"""The training loss is finite, and its variational bound trains only the variance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.datasets.registry import make_source
from imagen_jax.stages import stage as stages
from imagen_jax.stages.loss import diffusion_loss
from imagen_jax.stages.text import make_encoder
from imagen_jax.training.diffusion import make_diffusion_batch
from tests.helpers.configs import base_config, perturbed_params, sr_config

BATCH = 8


def training_batch(stage):
    source = make_source(stage.config.data, "train", stage.config.image_size)
    examples = [source[i] for i in range(BATCH)]
    tokens, mask = make_encoder(stage.config.text).tokenize([example.captions[0] for example in examples])
    images = np.stack([example.image for example in examples])
    return jax.tree.map(jnp.asarray, {"image": images, "tokens": tokens, "mask": mask})


def gradients(stage, batch):
    """Returns the gradients of the mean loss, where every parameter has an effect, and the losses."""

    encoder = make_encoder(stage.config.text)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def mean_loss_gradient(params, batch):
        examples = make_diffusion_batch(stage, encoder, encoder.params, batch, jax.random.key(3))
        losses = diffusion_loss(stage, params, examples)
        return losses.loss.mean(), losses

    return mean_loss_gradient(perturbed_params(stage), batch)


@pytest.mark.parametrize("make_config", [base_config, sr_config])
@pytest.mark.trap("NaN in batches")
def test_bfloat16_is_finite(make_config):
    """Constant images, and captions of which half are dropped."""
    changes = {"model.dtype": "bfloat16", "text.dtype": "bfloat16", "diffusion.cond_drop_prob": 0.5}
    stage = stages.build(make_config(**changes))
    batch = training_batch(stage)
    batch["image"] = batch["image"].at[:3].set(0).at[3:6].set(255)
    gradient, losses = gradients(stage, batch)
    assert losses.loss.shape == (BATCH,)
    assert np.isfinite(losses.loss).all()
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()


def test_vlb_trains_only_the_variance():
    results = {}
    for weight in (1e-3, 1.0):
        stage = stages.build(base_config(**{"diffusion.variance_type": "learned", "diffusion.vlb_weight": weight}))
        gradient, losses = gradients(stage, training_batch(stage))
        kernel = np.asarray(gradient["out"]["kernel"])
        # by patch and channel; the channels of the prediction come first
        results[weight] = (
            *np.split(kernel.reshape(*kernel.shape[:-1], -1, 2 * stage.config.channels), 2, axis=-1),
            losses,
        )
    (mean, v, little), (other_mean, other_v, much) = results[1e-3], results[1.0]
    np.testing.assert_allclose(other_mean, mean, rtol=1e-3, atol=1e-4 * np.abs(mean).max())
    assert np.abs(v).max() > 0
    np.testing.assert_allclose(other_v, 1e3 * v, rtol=1e-3, atol=1e-3 * np.abs(other_v).max())
    # the loss is the simple loss plus the weighted bound
    assert (np.asarray(much.vlb) >= 0).all()
    np.testing.assert_allclose(much.loss - little.loss, (1 - 1e-3) * much.vlb, rtol=1e-3)
