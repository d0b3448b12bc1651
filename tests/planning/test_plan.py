"""The plan command with and without libtpu, and the searches."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import imagen_base_64
from imagen_jax.cli import plan as plan_command
from imagen_jax.config.load import load_config
from imagen_jax.errors import ConfigError
from imagen_jax.parallel import sharding
from imagen_jax.parallel.mesh import abstract_mesh, check_batch_size, make_mesh
from imagen_jax.planning import aot, hlo_cost, search
from imagen_jax.planning import plan as plans
from imagen_jax.planning.cost import stage_cost
from imagen_jax.planning.encoders import abstract_encoder, cached_encoder, published_t5_fields
from imagen_jax.planning.hardware import CHIPS, GIB, parse_topology
from imagen_jax.planning.programs import bytes_per_chip, count_params, train_program
from imagen_jax.planning.roofline import collective_seconds
from imagen_jax.stages import stage as stages
from imagen_jax.stages.text import make_encoder
from tests.helpers.cli import run_command
from tests.helpers.configs import ROOT, base_config, split_devices, sr_config
from tests.helpers.hlo import compile_module, largest_result, total_flops

BASE = f"--config={ROOT}/configs/imagen_base_64.py"
needs_libtpu = pytest.mark.skipif(not aot.has_compiler(), reason="libtpu is not installed")
# ml_collections loads config files by it
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
# scripts read these keys of a plan
KEYS = {
    "chips",
    "fits",
    "peak_bytes_per_chip",
    "capacity_bytes_per_chip",
    "params",
    "model_flops_per_step",
    "executed_flops_per_step",
    "bytes_accessed_per_chip",
    "collectives",
    "compute_s",
    "hbm_s",
    "ici_s",
    "step_s_lower_bound",
    "images_per_s_upper_bound",
    "mfu_upper_bound",
    "compile_s",
}


@pytest.fixture
def run_plan(monkeypatch, capsys):
    """Returns a function that runs the command without libtpu, and returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(plan_command, "has_compiler", lambda: False)

    def run_plan(*arguments):
        return run_command("plan", *arguments), *capsys.readouterr()

    return run_plan


def make_request(config, topology="v4:2x2x1", **changes):
    fields = {"command": "train", "cached_text": False, "batch_size": 8, "quick": True, **changes}
    return plans.PlanRequest(config=config, topology=parse_topology(topology), **fields)


def test_without_libtpu(run_plan):
    code, out, error = run_plan(BASE, "--topology=v4:8x8x4", "--cached_text", "--json=-")
    assert code == 0
    assert error.count("\n") == 1
    assert "pip install" in error
    plan = json.loads(out)
    assert plan["chips"] == 256
    assert plan["mesh"] == {"data": 32, "fsdp": 8, "spatial": 1}
    assert round(plan["params"] / 1e6) == 2402
    assert plan["model_flops_per_step"] / 2048e12 == pytest.approx(4.528, rel=1e-3)
    num_bytes = plan["bytes_per_chip"]
    assert num_bytes["parameters"] == num_bytes["ema"] == pytest.approx(4 * plan["params"] / 8, rel=1e-2)
    assert plan["fits"] is plan["peak_bytes_per_chip"] is None


def test_overrides_and_text_encoder(run_plan):
    arguments = [f"{BASE}:200m", "--topology=v5e:4x4", "--json=-", "--config.training.batch_size=128"]
    with_encoder, without = (json.loads(run_plan(*arguments, *more)[1]) for more in ([], ["--cached_text"]))
    assert with_encoder["examples_per_step"] == 128
    embedding = (with_encoder["model_flops_per_step"] - without["model_flops_per_step"]) / 128
    # two operations per parameter and token, without the token embeddings; attention adds some
    matrices = 24 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
    assert embedding == pytest.approx(2 * 128 * matrices, rel=0.05)
    assert with_encoder["bytes_per_chip"]["text encoder"] > without["bytes_per_chip"]["text encoder"] == 0


@pytest.mark.parametrize("preset", ["codec_256", "latent_256"])
def test_plan_of_latents(run_plan, preset):
    """The parameters of the codec have no moments in the run of a stage, and those of the stage have."""
    code, out, _ = run_plan(f"--config={ROOT}/configs/{preset}.py", "--topology=v5e:4x4", "--cached_text", "--json=-")
    assert code == 0
    plan = json.loads(out)
    codec = plan["params"] - plan["trainable_params"]
    assert (codec == 0) if preset == "codec_256" else (8e7 < codec < 9e7)  # that of latent diffusion has 84 million
    assert plan["bytes_per_chip"]["ema"] == 4 * plan["trainable_params"]
    assert plan["model_flops_per_step"] > 0


@pytest.mark.slow
def test_plan_of_fine_tuning(run_plan):
    """1% of the 400M preset: the optimizer and the gradients have bytes for that part alone."""
    arguments = [f"{BASE}:400m", "--topology=v5e:2x2", "--cached_text", "--json=-", "--config.optimizer.name=adam"]
    patterns = ("down_[0-9]_.*query/kernel$",)
    full, tuned = (
        json.loads(run_plan(*arguments, *more)[1]) for more in ([], [f"--config.training.trainable={patterns!r}"])
    )
    trained = tuned["trainable_params"]
    assert 0.005 < trained / full["params"] < 0.015
    assert full["trainable_params"] == full["params"] == tuned["params"]
    # two float32 moments of each parameter that is trained, a few scalars, and its float32 gradient
    assert 0 < tuned["bytes_per_chip"]["optimizer"] - 8 * trained < 100
    assert tuned["gradient_bytes_per_chip"] == tuned["bytes_per_chip"]["ema"] == 4 * trained
    assert full["gradient_bytes_per_chip"] == 4 * full["params"]
    assert tuned["bytes_per_chip"]["parameters"] == full["bytes_per_chip"]["parameters"] == 4 * full["params"]
    # forward, and backward through the activations; no gradients of frozen kernels
    assert 0.6 < tuned["model_flops_per_step"] / full["model_flops_per_step"] < 0.7


def test_plans_of_sampling_and_embedding():
    config = sr_config(
        **{"sampling.num_inference_steps": 3, "sampling.guidance_scale": 2.0, "sampling.sampler": "ddpm"}
    )
    request = make_request(config, "v5e:2x2", command="sample", batch_size=6)
    sampling = plans.plan_without_compiler(request)
    encoder = abstract_encoder(config.text)
    forward = stage_cost(config, encoder.width).training_flops // 3
    assert sampling["examples_per_step"] == 8  # the same number on each chip
    # two predictions in each of three steps; resizing the low-resolution image adds some products
    expected = 8 * 6 * forward
    assert expected < sampling["model_flops_per_step"] < 1.01 * expected
    sharded = plans.plan_without_compiler(
        dataclasses.replace(request, sampling_axes={"data": -1, "fsdp": 2, "spatial": 2}, batch_size=1)
    )
    assert sharded["mesh"] == {"data": 1, "fsdp": 2, "spatial": 2}
    assert sharded["examples_per_step"] == 2
    assert sharded["bytes_per_chip"]["text encoder"] < sampling["bytes_per_chip"]["text encoder"]
    embedding = plans.plan_without_compiler(dataclasses.replace(request, command="embed"))
    assert embedding["mesh"] == {"data": 1, "fsdp": 4, "spatial": 1}
    assert embedding["params"] == count_params(encoder.shapes)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([BASE], "--topology is missing"),
        (["--topology=v4:2x2x1"], "--config is missing"),
        ([BASE, "--topology=v5p-8"], "'v5p-8'"),
        ([BASE, "--topology=v4:8x8"], "use for example v4:4x4x4"),
        ([BASE, "--topology=h100:8"], "choose v4, v5e, v5p, v6e"),
        ([BASE, "--topology=v4:1x1x3", "--cached_text"], "fsdp=8 does not fit 3 devices"),
        ([BASE, "--topology=v4:2x2x2", "--what=sample", "--cached_text"], "--cached_text"),
        ([BASE, "--topology=v4:2x2x2", "--fsdp=4"], "--fsdp and --spatial"),
        ([BASE, "--topology=v4:2x2x2", "--what=sample", "--fsdp=3"], "fsdp=3 does not fit 8 devices"),
        (
            [BASE, "--topology=v4:2x2x2", "--what=sample", "--spatial=32"],
            "spatial=32 does not fit 8 devices",
        ),
    ],
)
def test_usage_error(run_plan, arguments, message):
    code, out, error = run_plan(*arguments)
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_topology_with_slices():
    topology = parse_topology("v5e:4x8*3")
    assert (topology.num_chips, topology.num_slices, topology.slice_name, str(topology)) == (
        96,
        3,
        "v5e:4x8",
        "v5e:4x8*3",
    )


def test_published_encoder_sizes():
    """T5 1.1 XXL has 11 billion parameters with its decoder; the encoder has half of them."""
    config = load_config(imagen_base_64.get_config()).text
    encoder = abstract_encoder(config)
    assert encoder.width == 4096
    assert count_params(encoder.shapes) == pytest.approx(4.76e9, rel=0.01)
    assert (
        published_t5_fields("google/flan-t5-xxl")
        == published_t5_fields("city96/t5-v1_1-xxl-encoder-bf16")
        == published_t5_fields(config.model)
    )
    assert published_t5_fields("google/mt5-small") is None
    with pytest.raises(ValueError, match="cannot be read"):
        encoder.read(("token_embedding", "embedding"), ())


def test_bytes_per_chip():
    mesh, config = split_devices(), sr_config()
    params = jax.eval_shape(stages.build(config).init, jax.random.key(0))
    sharded = sharding.with_shardings(params, mesh)
    zeros = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), sharded)
    on_first = [array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(zeros)]
    assert bytes_per_chip(sharded) == sum(on_first)


@pytest.fixture(scope="module")
def sharded_step():
    """Returns (program, HLO module) of a training step over 2 × 4 devices, of a U-Net with every kind of block.

    Two blocks of its first level are scanned, in the encoder and in the decoder.
    """
    wide = {
        "model.channels": 64,
        "model.channel_mult": (1, 2),
        "model.num_res_blocks": (2, 1),
        "model.head_channels": 64,
    }
    config = base_config(
        **wide,
        **{
            "image_size": 16,
            "model.attention_types": ((), ()),
            "model.middle_attention_types": ("self+text",),
            "model.scan_blocks": True,
            "training.batch_size": 32,
        },
    )
    program = train_program(config, split_devices(), cached_encoder(make_encoder(config.text)))
    return program, compile_module(program.lower())


@pytest.mark.xla
@pytest.mark.slow
def test_executed_flops_match_model_flops(sharded_step):
    """A device must not compute convolutions for examples of others. First layers need no input gradient."""
    program, module = sharded_step
    assert 0.9 < 8 * total_flops(module) / program.model_flops < 1.05


@pytest.mark.xla
def test_step_gathers_single_parameters(sharded_step):
    program, module = sharded_step
    gathers = [collective for collective in hlo_cost.find_collectives(module) if collective.kind == "all-gather"]
    assert gathers
    all_bytes = 8 * program.argument_bytes["parameters"] / 2  # approximately: small ones are replicated
    # 3 × 3 × 256 × 128, the largest kernel
    assert largest_result(gathers) <= 4 * 9 * 256 * 128 < all_bytes / 2


@pytest.mark.xla
def test_scanned_blocks_exchange_parameters_only(sharded_step):
    _, module = sharded_step
    scanned = [collective for collective in hlo_cost.find_collectives(module) if collective.count > 1]
    assert {collective.count for collective in scanned} == {2}
    assert {collective.kind for collective in scanned} == {"all-gather", "all-reduce"}
    # 3 × 3 × 128 × 64, the largest kernel of the level
    assert largest_result([collective for collective in scanned if collective.kind == "all-gather"]) <= 4 * 9 * 128 * 64


def test_collective_seconds():
    """A ring of two chips has one link, a longer one two for each axis."""
    chip = CHIPS["v4"]
    coordinates = np.array([(x, y, 0) for x in range(4) for y in range(2)])

    def seconds(*group, groups=()):
        groups = np.array(groups or [group])
        return collective_seconds(hlo_cost.Collective("all-reduce", 1, 8_000_000, groups), coordinates, chip)

    assert seconds(0, 1) == 8e6 / chip.ici_link_bytes_per_s
    assert seconds(0, 2, 4, 6) == pytest.approx(12e6 / (2 * chip.ici_link_bytes_per_s))
    assert seconds(*range(8)) == pytest.approx(14e6 / (3 * chip.ici_link_bytes_per_s))
    # what is sent from a chip to itself takes no link; others of the permutation do
    assert seconds(groups=[(0, 0), (1, 1)]) == 0
    assert seconds(groups=[(0, 0), (0, 1)]) == seconds(0, 1)


def fake_planner(fits):
    """Returns a planner that compiles nothing: a run fits if `fits(config)` is true."""

    def planner(request):
        config = request.config
        check_batch_size(config.training.batch_size, abstract_mesh(config.mesh.axes, request.topology.num_chips))
        images = config.training.batch_size / (1 + ["none", "dots", "full"].index(config.training.remat))
        return {
            "fits": fits(config),
            "peak_bytes_per_chip": 20 * GIB,
            "held_bytes_per_chip": GIB,
            "capacity_bytes_per_chip": 16 * GIB,
            "mfu_upper_bound_of_kernels": images / 1000,
        }

    return planner


@pytest.mark.parametrize(
    "fits, changes",
    [
        (lambda config: config.mesh.fsdp == 16, {"mesh.data": -1, "mesh.fsdp": 16}),
        (lambda config: config.training.remat == "dots", {"training.remat": "dots"}),
        (lambda config: config.training.grad_accum_steps >= 4, {"training.grad_accum_steps": 4}),
        (lambda config: config.training.batch_size <= 64, {"training.batch_size": 64}),
    ],
)
def test_search_fit(fits, changes):
    request = make_request(load_config(imagen_base_64.get_config("200m")), "v5e:4x4").config
    request = make_request(search.with_changes(make_request(request), {"training.batch_size": 256}).config, "v5e:4x4")
    planner = fake_planner(fits)
    trials = list(search.search_fit(request, planner(request), planner))
    assert [trial["fits"] for trial in trials] == [False] * (len(trials) - 1) + [True]
    assert trials[-1]["changes"] == changes


def test_search_fit_changes_mesh_if_arguments_do_not_fit():
    request = make_request(load_config(imagen_base_64.get_config("200m")), "v5e:4x4")
    planner = fake_planner(lambda config: False)
    plan = planner(request) | {"held_bytes_per_chip": 17 * GIB}
    assert {tuple(trial["changes"]) for trial in search.search_fit(request, plan, planner)} == {
        ("mesh.data", "mesh.fsdp")
    }


def test_search_fastest():
    request = make_request(load_config(imagen_base_64.get_config("200m")), "v5e:4x4")
    trials = list(
        search.search_fastest(
            request, fake_planner(lambda config: config.mesh.fsdp > 1 and config.training.remat != "none")
        )
    )
    combinations = {tuple(trial["changes"].values()) for trial in trials}
    assert len(combinations) == len(trials) == 5 * 3 * 3
    best = search.select_fastest(trials)
    assert best["changes"]["training.remat"] == "dots"
    assert best["changes"]["training.batch_size"] == 128
    assert not any(trial["fits"] for trial in trials if trial["changes"]["mesh.fsdp"] == 1)
    assert search.select_fastest([]) is None


def test_search_without_valid_plan_raises():
    request = make_request(load_config(imagen_base_64.get_config("200m")), "v5e:4x4")
    request = search.with_changes(request, {"training.batch_size": 10})
    with pytest.raises(ConfigError, match="batch_size 10|batch_size=10"):
        list(search.search_fastest(request, fake_planner(lambda config: True)))


@pytest.mark.parametrize(
    "message, peak, temporary",
    [
        ("the total memory required for HLO temporaries (66.50G) exceeds available HBM (30.75G)", 67.5, 66.5),
        ("Ran out of memory in memory space hbm. Used 40.00G of 15.75G hbm.", 40, 39),
    ],
)
def test_parse_out_of_memory(message, peak, temporary):
    assert aot.parse_out_of_memory(f"RESOURCE_EXHAUSTED: {message}", GIB) == (peak * GIB, temporary * GIB)
    with pytest.raises(ValueError, match="of patience"):
        aot.parse_out_of_memory("RESOURCE_EXHAUSTED: of patience", GIB)


@needs_libtpu
def test_plan_of_training():
    plan = plans.compile_plan(make_request(base_config()))
    assert plan.keys() >= KEYS
    assert plan["fits"]
    assert plan["chips"] == 4
    assert plan["loops_of_unknown_length"] == []
    assert {kind["kind"] for kind in plan["collectives"]} == {"all-reduce"}
    assert 0 < plan["mfu_upper_bound"] <= 1
    assert plan["network_s"] == 0


@needs_libtpu
def test_gradients_cross_slices_over_dcn():
    """In two slices of four chips each chip sends a part of the gradients, small ones padded to full tiles."""
    plan = plans.compile_plan(make_request(base_config(), "v5e:2x2*2"))
    assert plan["chips"] == 8
    assert {kind["chips_in_group"] for kind in plan["collectives"]} == {4}
    assert 1 <= plan["network_bytes_per_chip"] / plan["params"] < 8
    assert plan["network_s"] > 0


@needs_libtpu
@pytest.mark.parametrize("topology", ["v6e:16x16", "v5e:16x16", "v4:4x4x4", "v5p:4x4x8"])
def test_mesh_of_presets_on_every_generation(topology):
    devices = aot.topology_devices(parse_topology(topology))
    mesh = make_mesh({"data": -1, "fsdp": 8}, devices)
    assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in devices)
    assert mesh.shape == {"data": len(devices) // 8, "fsdp": 8, "spatial": 1}


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1", "v4:1x1x1"])
def test_single_chip_topology(topology):
    assert len(aot.topology_devices(parse_topology(topology))) == 1


@needs_libtpu
def test_unknown_topology_raises():
    with pytest.raises(ConfigError, match="v4:5x5x5"):
        plans.compile_plan(make_request(base_config(), "v4:5x5x5"))


def test_public_plan_without_libtpu(monkeypatch, caplog):
    monkeypatch.setattr(plans, "has_compiler", lambda: False)
    plan = plans.plan(base_config(), "v4:2x2x1")
    assert plan["chips"] == 4
    assert plan["fits"] is None
    assert plan["params"] > 0
    assert "pip install 'imagen_jax[plan]'" in caplog.text


@pytest.mark.parametrize("settings, name", [({"command": "draw"}, "draw"), ({"sampling_axes": {"fsdp": 4}}, "fsdp")])
def test_public_plan_refuses_wrong_arguments(settings, name):
    with pytest.raises(ConfigError, match=name):
        plans.plan(base_config(), "v4:2x2x1", **settings)
