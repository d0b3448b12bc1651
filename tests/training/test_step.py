"""The training step gives the same result on any mesh, and its randomness is a function of (seed, step)."""

import dataclasses
import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.datasets.registry import make_source
from imagen_jax.diffusion import schedules
from imagen_jax.images.array import to_float
from imagen_jax.images.resize import resize
from imagen_jax.parallel import batching, sharding
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stages import stage as stages
from imagen_jax.stages.loss import Losses, diffusion_loss
from imagen_jax.stages.sampling import make_sample_fn
from imagen_jax.stages.text import make_encoder
from imagen_jax.text.encoder import TextCondition
from imagen_jax.training.diffusion import (
    NOISE_BINS,
    DiffusionObjective,
    loss_by_noise_bin,
    make_diffusion_batch,
)
from imagen_jax.training.diffusion_task import DiffusionTask
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.stage_objective import TRAINING_AXES, draw_low_res, dropped_captions, replace_text
from imagen_jax.training.state import Frozen, TrainState, abstract_state
from imagen_jax.training.step import make_train_step
from tests.helpers.configs import base_config, one_device, perturbed_params, sr_config

BATCH = 8


def once(function):
    """Caches by the identity of a stage, which is not hashable; the fixtures' stages live as long as the tests."""
    results = {}

    @functools.wraps(function)
    def call(stage, *args):
        key = id(stage), *args
        if key not in results:
            results[key] = function(stage, *args)
        return results[key]

    return call


class Run:
    """The training step of a stage on a mesh, with a state in which every parameter has an effect."""

    def __init__(self, stage, mesh, params=None):
        self.mesh = mesh
        self.compiled = None
        optimizer = make_optimizer(stage.config.optimizer, stage.config.training.steps)
        self._abstract, _ = abstract_state(stage.init, optimizer, 0, mesh)
        params = host_params(stage) if params is None else params
        self._host = TrainState(np.int32(0), params, jax.jit(optimizer.init)(params), params)
        encoder = make_encoder(stage.config.text)
        self._encoder_params = encoder.load(mesh)
        self._step = make_train_step(DiffusionObjective(stage, encoder), stage.config, optimizer, self._abstract, mesh)

    def state(self, step=0):
        host = self._host.replace(step=np.int32(step))
        # copies, because the step donates its buffers
        return jax.tree.map(lambda a, leaf: jax.device_put(np.array(a), leaf.sharding), host, self._abstract)

    def __call__(self, state, batch):
        arguments = state, Frozen(self._encoder_params), batching.shard_local_batch(batch, TRAINING_AXES, self.mesh)
        if self.compiled is None:
            self.compiled = self._step.lower(*arguments).compile()
        return self.compiled(*arguments)


def example_losses(stage, encoder, params, encoder_params, batch, key):
    return diffusion_loss(stage, params, make_diffusion_batch(stage, encoder, encoder_params, batch, key))


@once
def host_params(stage):
    return perturbed_params(stage)


@once
def batch_of(stage, first=0):
    source = make_source(stage.config.data, "train", stage.config.image_size)
    examples = [source[first + i] for i in range(BATCH)]
    tokens, mask = make_encoder(stage.config.text).tokenize([example.captions[0] for example in examples])
    return {"image": np.stack([example.image for example in examples]), "tokens": tokens, "mask": mask}


def as_device_batch(stage, first=0):
    return {name: jnp.asarray(array) for name, array in batch_of(stage, first).items()}


def changed(stage, **changes):
    config = stage.config.with_changes(changes)
    return dataclasses.replace(stage, config=config, network=stages.make_network(config))


@pytest.fixture(scope="module")
def base():
    # a large eps, because Adam would scale gradients that are rounding noise to full steps
    return stages.build(
        base_config(**{"optimizer.eps": 1e-3, "optimizer.decay_steps": 100, "diffusion.loss_weighting_bias": -3.0})
    )


@pytest.fixture(scope="module")
def super_resolution():
    """With dropout, which must not depend on an example's device or on the rest of its batch."""
    return stages.build(sr_config(**{"optimizer.name": "adafactor", "model.dropout": 0.1}))


@pytest.fixture(scope="module")
def cropping():
    return stages.build(sr_config(**{"data.crop_size": 8}))


@pytest.fixture(scope="module")
def base_run(base):
    return Run(base, one_device())


@pytest.fixture(scope="module")
def first_steps(base, base_run):
    """Four steps on the same batch, as (state after the step on the host, metrics)."""
    state, steps = base_run.state(), []
    for _ in range(4):
        state, metrics = base_run(state, batch_of(base))
        steps.append((jax.tree.map(np.array, state), jax.tree.map(np.array, metrics)))
    return steps


def test_full_captions(base, base_run):
    batch = batch_of(base)
    mask = np.array(batch["mask"])
    mask[:, -1] = [True, False, True, True, False, False, True, False]
    _, metrics = base_run(base_run.state(), {**batch, "mask": mask})
    assert float(metrics["full_captions"]) == 0.5


# (mesh axes, config changes, tolerance of the parameters against a step on one device without them)
SLOW = ("data", "accumulation", "fsdp and spatial")  # the others are compiled for the tests below anyway
VARIANTS = {
    "data": ({"data": 8, "fsdp": 1}, {}, 1e-5),
    "data and fsdp": ({"data": 2, "fsdp": 4}, {}, 1e-5),
    "fsdp and spatial": ({"data": 1, "fsdp": 2, "spatial": 4}, {}, 1e-5),
    "accumulation": ({"data": 1, "fsdp": 1}, {"training.grad_accum_steps": 4}, 1e-6),
    "fsdp, spatial, accumulation and remat": (
        {"data": 1, "fsdp": 2, "spatial": 4},
        {"training.grad_accum_steps": 2, "training.remat": "full"},
        1e-5,
    ),
    "fsdp, accumulation and remat": (
        {"data": 2, "fsdp": 2},
        {"training.grad_accum_steps": 2, "training.remat": "full"},
        1e-5,
    ),
}


@pytest.fixture(scope="module")
def variant_run(base):
    @functools.cache
    def make(name):
        axes, changes, _ = VARIANTS[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "MIN_SHARD_SIZE", 2**8)
            return Run(changed(base, **changes), some_devices(**axes), host_params(base))

    return make


def some_devices(**axes):
    return make_mesh(axes, jax.devices()[: math.prod(axes.values())])


def sharded_bytes(params):
    """Returns the bytes of the parameters that are split over devices."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params) if leaf.addressable_shards[0].data.size < leaf.size)


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in VARIANTS]
)
def test_base_step_with_adam(base, base_run, first_steps, variant_run, variant):
    run = variant_run(variant)
    start = base_run.state()
    if run.mesh.shape["fsdp"] > 1:
        assert sharded_bytes(run.state().params) > 0.6 * sum(leaf.nbytes for leaf in jax.tree.leaves(start.params))
    state, metrics = run(run.state(), batch_of(base))
    expected, expected_metrics = first_steps[0]
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    moved = 0.0
    for before, leaf, other in zip(*map(jax.tree.leaves, (start.params, state.params, expected.params)), strict=True):
        np.testing.assert_allclose(leaf, other, atol=VARIANTS[variant][2])
        moved = max(moved, np.abs(np.asarray(before) - other).max())
    assert moved > 1e-3  # far above the tolerance


GATHER = re.compile(r'= (?P<results>.*) all-gather\(.*op_name="(?P<name>[^"]*)"')


def network_gathers(run):
    """Returns (computation, number of elements) of each all-gather of a compiled step, without the text encoder's."""
    gathers, computation = [], ""
    for line in run.compiled.as_text().splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line.split()[0]
        if gather := GATHER.search(line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", gather["results"])
            size = sum(math.prod(map(int, shape.split(","))) for shape in shapes)
            if "T5Encoder" not in gather["name"]:
                gathers.append((computation, size))
    return gathers


@pytest.mark.xla
def test_parameters_are_gathered_one_at_a_time(base, variant_run):
    run = variant_run("data and fsdp")
    run(run.state(), batch_of(base))
    sizes = [size for _, size in network_gathers(run)]
    params = run.state().params
    assert max(sizes) <= max(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(sizes) > sharded_bytes(params) / 4  # four bytes each


@pytest.mark.slow
@pytest.mark.xla
def test_scanned_blocks_are_gathered_one_at_a_time(base, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARD_SIZE", 2**8)
    stage = changed(base, **{"model.num_res_blocks": (2,), "model.scan_blocks": True})
    run = Run(stage, some_devices(data=2, fsdp=4), perturbed_params(stage))
    params = run.state().params
    run(run.state(), batch_of(base))
    gathers = network_gathers(run)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    largest = max(math.prod(sharding._layer_shape(sharding.key_path(path), leaf)) for path, leaf in leaves)
    assert max(size for _, size in gathers) <= largest
    # no device ever has a full stack of the three up blocks
    stacks = [
        leaf for path, leaf in leaves if "up_0_blocks_0_to_2/res/conv" in sharding.key_path(path) and leaf.ndim == 5
    ]
    assert len(stacks) == 2
    for leaf in stacks:
        assert f"f32[{','.join(map(str, leaf.shape))}]" not in run.compiled.as_text()
    assert any(computation != "ENTRY" for computation, _ in gathers)


CONVOLUTION = re.compile(r"= \w+\[\d+,(?P<rows>\d+),(?P<columns>\d+),\d+\]\S* convolution\(.*->b01f")


@pytest.mark.xla
def test_spatial_devices_convolve_their_rows(base, variant_run):
    """Each of 4 devices computes one of four rows of patches; outputs that are not 4 wide are gradients of kernels."""
    run = variant_run("fsdp, spatial, accumulation and remat")
    run(run.state(), batch_of(base))
    rows = [int(rows) for rows, columns in CONVOLUTION.findall(run.compiled.as_text()) if columns == "4"]
    assert len(rows) > 5
    assert set(rows) == {1}


@pytest.mark.xla
@pytest.mark.parametrize("variant", [name for name in VARIANTS if "fsdp" in name and "accumulation" in name])
def test_each_micro_batch_gathers_parameters(base, variant_run, variant):
    """Gathered before the loop over micro-batches, all parameters would be held at once."""
    run = variant_run(variant)
    run(run.state(), batch_of(base))
    computations = [computation for computation, _ in network_gathers(run)]
    assert len(computations) > 10
    assert "ENTRY" not in computations


@pytest.fixture(scope="module")
def super_resolution_step(super_resolution):
    run = Run(super_resolution, one_device())
    state, metrics = run(run.state(), batch_of(super_resolution))
    return jax.tree.map(np.array, state), float(metrics["loss"]), run.state().params


@pytest.mark.parametrize(
    "axes, changes, tolerance",
    [
        ({"data": 2, "fsdp": 1, "spatial": 4}, {}, 1e-5),
        pytest.param({"data": 1, "fsdp": 1}, {"training.grad_accum_steps": 4}, 1e-6, marks=pytest.mark.slow),
        pytest.param(
            {"data": 1, "fsdp": 4},
            {"training.grad_accum_steps": 2, "training.remat": "dots"},
            1e-5,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["data and spatial", "accumulation", "fsdp, accumulation and remat"],
)
def test_super_resolution_step_with_adafactor(
    super_resolution, super_resolution_step, axes, changes, tolerance, monkeypatch
):
    monkeypatch.setattr(sharding, "MIN_SHARD_SIZE", 2**8)
    run = Run(changed(super_resolution, **changes), some_devices(**axes), host_params(super_resolution))
    state, metrics = run(run.state(), batch_of(super_resolution))
    expected, loss, start = super_resolution_step
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    compared = total = moved = 0
    # Adafactor scales any gradient to a full step: where all gradients were rounding noise, any sign is right
    squares = second_moments(expected.opt_state)
    for square, before, leaf, other in zip(
        *map(jax.tree.leaves, (squares, start, state.params, expected.params)), strict=True
    ):
        significant = np.sqrt(square) > 3e-4
        np.testing.assert_allclose(np.asarray(leaf)[significant], other[significant], atol=tolerance)
        compared, total = compared + significant.sum(), total + significant.size
        moved = max(moved, np.abs(np.asarray(before) - other).max())
    assert compared > total / 10
    assert moved > 1e-3


def second_moments(opt_state):
    """Returns Adafactor's squared gradients; no parameter of the tiny network is large enough to be factored."""
    (state,) = [
        part for part in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "v_row")) if hasattr(part, "v")
    ]
    return state.v


def test_ema_of_every_step(base, base_run, first_steps):
    expected = jax.tree.leaves(jax.tree.map(np.array, base_run.state().ema_params))
    for step, (state, _) in enumerate(first_steps):
        assert state.step == step + 1
        d = min(base.config.optimizer.ema_decay, (1 + step) / (10 + step))
        expected = [d * e + (1 - d) * p for e, p in zip(expected, jax.tree.leaves(state.params), strict=True)]
        for leaf, other in zip(jax.tree.leaves(state.ema_params), expected, strict=True):
            np.testing.assert_allclose(leaf, other, atol=1e-6)


def test_step_is_deterministic(base, base_run, first_steps):
    state, metrics = base_run(base_run.state(), batch_of(base))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, metrics), first_steps[0][1])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, state), first_steps[0][0])


def test_noise_depends_on_step(base, base_run, first_steps):
    _, metrics = base_run(base_run.state(step=7), batch_of(base))
    assert float(metrics["loss"]) != pytest.approx(first_steps[0][1]["loss"], rel=1e-2)


def test_loss_decreases_on_one_batch(base, base_run):
    state, losses = base_run.state(), []
    for _ in range(40):
        state, metrics = base_run(state, batch_of(base))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


@once
def losses_at_rate(stage, rate):
    dropped = stages.build(stage.config.with_changes({"diffusion.cond_drop_prob": rate}))
    return jax.jit(functools.partial(example_losses, dropped, make_encoder(stage.config.text)))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_captions_matter_unless_dropped(base, rate):
    batch, other = as_device_batch(base), as_device_batch(base, first=100)
    recaptioned = {**batch, "tokens": other["tokens"], "mask": other["mask"]}
    encoder_params = make_encoder(base.config.text).params
    losses, others = (
        losses_at_rate(base, rate)(host_params(base), encoder_params, inputs, jax.random.key(1)).loss
        for inputs in (batch, recaptioned)
    )
    assert losses.shape == (BATCH,)
    if rate == 1:
        np.testing.assert_array_equal(losses, others)
    else:
        assert np.abs(losses - others).min() > 1e-5


@pytest.mark.trap("half of the captions dropped")
def test_drop_text_replaces_text_and_mask():
    null_text = jnp.full((3, 2), 7.0), jnp.array([True, False, False])
    captions = jnp.ones((4000, 3, 2)), jnp.ones((4000, 3), bool)
    drop = dropped_captions(jax.random.key(0), {"mask": captions[1]}, 0.1)
    text, mask = replace_text(captions, null_text, drop)
    dropped = np.asarray(text == 7).all(axis=(1, 2))
    np.testing.assert_array_equal(mask, np.where(dropped[:, None], null_text[1], True))
    # no caption is dropped in part
    np.testing.assert_array_equal(~dropped, np.asarray(text == 1).all(axis=(1, 2)))
    assert dropped.mean() == pytest.approx(0.1, abs=0.02)
    keep = np.arange(4000) % 2 == 0
    drop = dropped_captions(jax.random.key(0), {"mask": captions[1], "keep": jnp.asarray(keep)}, 0.1)
    np.testing.assert_array_equal(drop, dropped & ~keep)


@pytest.mark.parametrize("caption, keep", [("two red circles", True), ("Circle", False), ("a semicircle", False)])
def test_captions_with_a_word_are_marked(caption, keep):
    task = DiffusionTask(base_config(**{"diffusion.never_dropped": "circle"}), one_device())
    assert task.text_features(caption)["keep"] == keep
    assert task.objective.batch_axes.keys() == {"image", *task.text_features(caption)}


def test_drop_text_keeps_masked_tokens():
    mask = jnp.array([[True, False]] * 8)
    null_text = jnp.zeros((2, 4)), jnp.ones(2, bool)
    drop = dropped_captions(jax.random.key(0), {"mask": mask}, 0.0)
    text, kept = replace_text((jnp.ones((8, 2, 4)), mask), null_text, drop)
    np.testing.assert_array_equal(kept, mask)
    np.testing.assert_array_equal(text, np.ones((8, 2, 4)))


def test_encoded_padding_in_training():
    """Captions are cleaned and their padding is encoded, as that of the empty caption in the place of dropped ones."""
    text = {"text.padding": "encoded", "text.cleaning": "if"}
    stage = stages.build(base_config(**text, **{"diffusion.null_text": "empty", "diffusion.cond_drop_prob": 0.5}))
    encoder = make_encoder(stage.config.text)
    features = [encoder.tokenize.as_features("A <b>red</b> ring") for _ in range(BATCH)]
    batch = {name: np.stack([each[name] for each in features]) for name in ("tokens", "mask")}
    batch["image"] = np.zeros((BATCH, *stage.image_shape), np.uint8)
    (embeddings, mask), expected = (
        make_diffusion_batch(stage, encoder, encoder.params, batch, jax.random.key(0)).text,
        encoder(["a red ring", ""])[0],
    )
    dropped = np.asarray(mask).sum(1) == 1
    assert 0 < dropped.sum() < BATCH
    np.testing.assert_allclose(embeddings, expected[dropped.astype(int)], atol=1e-5)
    assert np.abs(embeddings).max(axis=-1).min() > 0.01


def recorded_noise(stage, batch, key, schedule=None):
    """Returns the network's z and its condition, as the loss of a super-resolution stage makes them."""
    seen = {}

    def predict(params, z, logsnr, text, condition, control=None, dropout_keys=None):
        seen.update(z=np.asarray(z), logsnr=np.asarray(logsnr))
        return z, None

    def augment_low_res(low_res, level, eps):
        seen.update(low_res=np.asarray(low_res), level=np.asarray(level), low_res_eps=np.asarray(eps))
        return {}

    fake = types.SimpleNamespace(
        config=stage.config,
        is_super_resolution=True,
        low_res_shape=stage.low_res_shape,
        image_shape=stage.image_shape,
        aug_levels=stage.aug_levels,
        aug_schedule=stage.aug_schedule,
        schedule=schedule or schedules.cosine(),
        prediction=stage.prediction,
        predict=predict,
        z_shape=stage.z_shape,
        encode=stage.encode,
        encode_condition=stage.encode_condition,
        augment_low_res=augment_low_res,
        aug_noise_shape=lambda low_res: low_res.shape,
    )
    encoder = types.SimpleNamespace(encode=lambda params, tokens, mask: jnp.zeros((BATCH, 2, 3)), length=2, width=3)
    example_losses(fake, encoder, {}, {}, {**batch, "mask": jnp.ones((BATCH, 2), bool)}, key)
    return seen


@pytest.mark.trap("uniform noise", "shared noise")
def test_condition_noise_is_independent(super_resolution):
    batch = as_device_batch(super_resolution)
    seen = recorded_noise(super_resolution, batch, jax.random.key(0))
    signal = schedules.alpha_from_logsnr(seen["logsnr"])[:, None, None, None]
    sigma = schedules.sigma_from_logsnr(seen["logsnr"])[:, None, None, None]
    eps = np.asarray((seen["z"] - signal * to_float(batch["image"])) / sigma)
    low = seen["low_res_eps"]
    assert np.std(low) == pytest.approx(1, abs=0.1)
    assert np.std(eps) == pytest.approx(1, abs=0.1)
    # uncorrelated by position, and in the order in which the generator drew the numbers
    small = np.asarray(resize(jnp.asarray(eps), *low.shape[1:3]))
    for first, second in ((small.ravel(), low.ravel()), (eps.ravel()[: low.size], low.ravel())):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    # Gaussian: uniform noise of the same standard deviation would not exceed 1.73
    for noise in (eps, low):
        assert np.mean(noise**4) / np.mean(noise**2) ** 2 == pytest.approx(3, abs=0.3)
        assert np.abs(noise).max() > 3
    assert len(set(seen["level"].tolist())) == BATCH
    # augmentation levels are independent of the noise levels
    assert abs(np.corrcoef(seen["level"], seen["logsnr"])[0, 1]) < 0.95


def test_condition_is_downsampled_target(super_resolution):
    batch = as_device_batch(super_resolution)
    seen = recorded_noise(super_resolution, batch, jax.random.key(0))
    np.testing.assert_allclose(seen["low_res"], resize(to_float(batch["image"]), 8, 8), atol=1e-6)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.1, 0.35)])
@pytest.mark.trap("augmentation level 0")
def test_aug_levels_cover_their_range(low, high):
    levels = []
    fake = types.SimpleNamespace(
        low_res_shape=(1, 1, 3),
        image_shape=(2, 2, 3),
        aug_levels=stages.build(
            sr_config(**{"diffusion.aug_level_range": (low, high), "sampling.aug_level": low})
        ).aug_levels,
        aug_schedule=schedules.cosine(),
        augment_low_res=lambda low_res, level, eps: levels.append(level),
        aug_noise_shape=lambda low_res: low_res.shape,
    )
    draw_low_res(fake, jax.random.key(0), jnp.zeros((2000, 2, 2, 3)))
    counts, _ = np.histogram(levels[0], bins=4, range=(low, high))
    assert counts.sum() == 2000
    assert counts.min() > 400


class TestCrops:
    @staticmethod
    def cropped_batch(stage):
        """Returns a batch of crops of one place, as the data set of the stage makes them."""
        batch = as_device_batch(stage)
        return {**batch, "image": batch["image"][:, 2:10, 3:11]}

    def test_target_and_condition_show_the_same_crop(self, cropping):
        """What the network sees at almost no noise, where z is the target."""
        batch = self.cropped_batch(cropping)
        clear = schedules.Schedule("clear", lambda t: jnp.full_like(t, schedules.LOGSNR_MAX), jnp.zeros_like)
        seen = recorded_noise(cropping, batch, jax.random.key(0), clear)
        np.testing.assert_allclose(seen["z"], to_float(batch["image"]), atol=1e-3)
        np.testing.assert_allclose(seen["low_res"], resize(jnp.asarray(seen["z"]), 4, 4), atol=1e-3)

    def test_network_takes_crops(self, cropping):
        losses = jax.eval_shape(
            functools.partial(example_losses, cropping, make_encoder(cropping.config.text)),
            jax.eval_shape(cropping.init, jax.random.key(0)),
            make_encoder(cropping.config.text).params,
            self.cropped_batch(cropping),
            jax.random.key(0),
        )
        assert losses.loss.shape == (BATCH,)

    def test_sampling_ignores_crop_size(self, cropping, super_resolution):
        """The sampling programs are identical."""

        def program(stage):
            keys = jax.random.split(jax.random.key(0), 2)
            low_res = jnp.zeros((2, *stage.low_res_shape))
            params = jax.eval_shape(stage.init, jax.random.key(0))
            text = TextCondition(jnp.zeros((2, 24, stage.text_width)), jnp.zeros((2, 24), bool))
            sample = jax.jit(make_sample_fn(stage, stage.config.sampling))
            return sample.lower(params, text, text, keys, low_res).as_text()

        assert program(cropping) == program(super_resolution)


def test_bound_bits_metric():
    stage = stages.build(base_config(**{"diffusion.variance_type": "learned"}))
    run = Run(stage, one_device())
    _, metrics = run(run.state(), batch_of(stage))
    assert np.isfinite(metrics["bound_bits"])
    assert metrics["bound_bits"] > 0


def test_noise_bins_sum_to_batch(first_steps):
    for _, metrics in first_steps:
        assert metrics["band_counts"].shape == metrics["band_losses"].shape == (NOISE_BINS,)
        assert metrics["band_counts"].sum() == BATCH
        assert metrics["band_losses"].sum() / BATCH == pytest.approx(float(metrics["loss"]), rel=1e-5)
        # sampled times are antithetic: one in each eighth
        assert (metrics["band_counts"] > 0).all()


def test_loss_by_noise_bin():
    levels = jnp.array([0.0, 0.1, 0.39, 0.41, 1.0, 0.95])
    losses = jnp.array([1.0, 2.0, 3.0, jnp.nan, 5.0, 6.0])
    metrics = loss_by_noise_bin(Losses(losses, levels, None))
    np.testing.assert_array_equal(metrics["band_counts"], [2, 1, 1, 0, 2])
    np.testing.assert_array_equal(metrics["band_losses"], [3, 3, np.nan, 0, 11])
