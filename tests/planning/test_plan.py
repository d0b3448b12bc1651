"""The command, with and without a compiler of TPUs, and the levers it tries."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from configs import imagen_base_64
from imagen_jax import commands
from imagen_jax.errors import ConfigError
from imagen_jax.parallel import sharding
from imagen_jax.planning import aot, hlo, hlo_cost, search
from imagen_jax.planning import plan as plans
from imagen_jax.planning.cost import cost
from imagen_jax.planning.encoders import from_cache, planned_encoder, published
from imagen_jax.planning.hardware import CHIPS, GIB, parse_topology
from imagen_jax.planning.programs import caption_flops, chip_bytes, parameter_count, train_program
from imagen_jax.planning.roofline import exchange_seconds
from imagen_jax.stages import stage as stages
from tests.helpers.configs import ROOT, base_config, split_devices, sr_config
from tests.helpers.flags import imported

BASE = f"--config={ROOT}/configs/imagen_base_64.py"
needs_libtpu = pytest.mark.skipif(not aot.has_compiler(), reason="libtpu is not installed")
# ml_collections loads config files by it
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
# of the report that an issue of a pod is opened with; scripts read them
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


@pytest.fixture(scope="module")
def plan():
    """The command."""
    with imported("imagen_jax.plan", "config", "batch_size", "json") as command:
        yield command


@pytest.fixture
def run(plan, monkeypatch, capsys):
    """Runs the command in this process as if libtpu were not installed: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["plan", *arguments])
        monkeypatch.setattr(plan, "has_compiler", lambda: False)
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
            commands.run(plan.main)
        return ended.value.code, *capsys.readouterr()

    return run


def question(config, topology="v4:2x2x1", **changes):
    asked = {"what": "train", "cached_text": False, "batch_size": 8, "quick": True, **changes}
    return plans.Question(config=config, topology=parse_topology(topology), **asked)


def test_without_libtpu_it_says_how_to_install_it_and_all_that_needs_no_compiler(run):
    code, out, error = run(BASE, "--topology=v4:8x8x4", "--cached_text", "--json=-")
    assert code == 0
    assert error.count("\n") == 1
    assert "pip install -e '.[tpu]'" in error
    found = json.loads(out)
    assert found["chips"] == 256
    assert found["mesh"] == {"data": 32, "fsdp": 8, "spatial": 1}
    assert round(found["params"] / 1e6) == 2402
    assert found["model_flops_per_step"] / 2048e12 == pytest.approx(4.758, rel=1e-3)
    held = found["bytes_per_chip"]
    assert held["parameters"] == held["ema"] == pytest.approx(4 * found["params"] / 8, rel=1e-2)
    assert found["fits"] is found["peak_bytes_per_chip"] is None


def test_overrides_count_and_the_text_encoder_is_part_of_the_step(run):
    arguments = [f"{BASE}:200m", "--topology=v5e:4x4", "--json=-", "--config.training.batch_size=128"]
    with_encoder, without = (json.loads(run(*arguments, *more)[1]) for more in ([], ["--cached_text"]))
    assert with_encoder["examples_per_step"] == 128
    embedding = (with_encoder["model_flops_per_step"] - without["model_flops_per_step"]) / 128
    # two operations for each parameter and token, without the table of tokens, and what attention adds
    matrices = 24 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
    assert embedding == pytest.approx(2 * 128 * matrices, rel=0.05)
    assert with_encoder["bytes_per_chip"]["text encoder"] > without["bytes_per_chip"]["text encoder"] == 0


def test_sampling_and_embedding_have_plans_too():
    config = sr_config(**{"sampling.num_inference_steps": 3, "sampling.guidance_scale": 2.0, "sampling.sampler": "ddpm"})
    asked = question(config, "v5e:2x2", what="sample", batch_size=6)
    drawn = plans.plan_without_compiler(asked)
    encoder = planned_encoder(config.text)
    forward = cost(config, encoder.width).training_flops // 3
    assert drawn["examples_per_step"] == 8  # as many on each chip
    # two predictions at each of three steps, and the text; to enlarge what it starts from takes products as well
    needed = 8 * (6 * forward + caption_flops(encoder))
    assert needed < drawn["model_flops_per_step"] < 1.01 * needed
    split = plans.plan_without_compiler(
        dataclasses.replace(asked, sampling_axes={"data": -1, "fsdp": 2, "spatial": 2}, batch_size=1)
    )
    assert split["mesh"] == {"data": 1, "fsdp": 2, "spatial": 2}
    assert split["examples_per_step"] == 2
    assert split["bytes_per_chip"]["text encoder"] < drawn["bytes_per_chip"]["text encoder"]
    embedded = plans.plan_without_compiler(dataclasses.replace(asked, what="embed"))
    assert embedded["mesh"] == {"data": 1, "fsdp": 4, "spatial": 1}
    assert embedded["params"] == parameter_count(encoder.shapes)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([BASE], "--topology is missing"),
        (["--topology=v4:2x2x1"], "--config is missing"),
        ([BASE, "--topology=v5p-8"], "'v5p-8' is not KIND:CHIPSxCHIPS"),
        ([BASE, "--topology=v4:8x8"], "does not name 3 sides, as v4 has: give for example v4:4x4x4"),
        ([BASE, "--topology=h100:8"], "is of chips 'h100', which are not known: choose v4, v5e, v5p, v6e"),
        ([BASE, "--topology=v4:1x1x3", "--cached_text"], "mesh data=-1, fsdp=8 does not fit 3 devices"),
        ([BASE, "--topology=v4:2x2x2", "--what=sample", "--cached_text"], "--cached_text is of training"),
        ([BASE, "--topology=v4:2x2x2", "--fsdp=4"], "--fsdp and --spatial are of drawing, and --what is train"),
        ([BASE, "--topology=v4:2x2x2", "--what=sample", "--fsdp=3"], "mesh data=-1, fsdp=3 does not fit 8 devices"),
        (
            [BASE, "--topology=v4:2x2x2", "--what=sample", "--spatial=32"],
            "mesh data=-1, fsdp=1, spatial=32 does not fit 8 devices",
        ),
    ],
)
def test_wrong_use_is_told_in_a_sentence(run, arguments, said):
    code, out, error = run(*arguments)
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_slices_multiply_chips():
    topology = parse_topology("v5e:4x8*3")
    assert (topology.chips, topology.slices, topology.slice_name, str(topology)) == (96, 3, "v5e:4x8", "v5e:4x8*3")


def test_published_encoders_have_the_sizes_that_their_names_say():
    """Of google/t5-v1_1-… with its decoder, 77 million to 11 billion are said; the encoder alone has half of that."""
    config = imagen_base_64.get_config().text
    encoder = planned_encoder(config)
    assert encoder.width == 4096
    assert parameter_count(encoder.shapes) == pytest.approx(4.76e9, rel=0.01)
    assert published("google/flan-t5-xxl") == published("city96/t5-v1_1-xxl-encoder-bf16") == published(config.model)
    assert published("google/mt5-small") is None
    with pytest.raises(ValueError, match="cannot be read"):
        encoder.read(("token_embedding", "embedding"), ())


def test_what_a_chip_holds_is_what_devices_are_given():
    mesh, config = split_devices(), sr_config()
    params = jax.eval_shape(stages.build(config).init, jax.random.key(0))
    laid = sharding.abstract_sharded(params, mesh)
    zeros = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), laid)
    on_first = [array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(zeros)]
    assert chip_bytes(laid) == sum(on_first)


@pytest.fixture(scope="module")
def split_step():
    """(program, what it was compiled to) of a training step over 2 × 4 devices, of a U-Net with every kind of block.

    Of its first level two blocks are one that is repeated, on the way down and on the way up.
    """
    wide = {"model.channels": 64, "model.channel_mult": (1, 2), "model.num_res_blocks": (2, 1), "model.head_channels": 64}
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
    program = train_program(config, split_devices(), from_cache(stages.build(config).encoder))
    return program, hlo.parse(program.lower().compile().as_text())


def test_the_compiled_step_multiplies_no_more_than_the_model_needs(split_step):
    """Which it would if a device did convolutions for examples of others; first layers need no gradient of inputs."""
    program, module = split_step
    executed = 8 * sum(kernel.times * kernel.flops for kernel in hlo_cost.kernels(module))
    assert 0.9 < executed / program.flops < 1.05


def test_the_compiled_step_gathers_parameters_one_by_one_and_never_a_batch(split_step):
    program, module = split_step
    gathers = [found for found in hlo_cost.collectives(module) if found.kind == "all-gather"]
    assert gathers
    whole = 8 * program.held["parameters"] / 2  # nearly: small ones are not split
    # 3 × 3 × 256 × 128, its largest kernel
    assert max(found.bytes * found.groups.shape[1] for found in gathers) <= 4 * 9 * 256 * 128 < whole / 2


def test_blocks_that_are_repeated_exchange_parameters_and_gradients_and_never_features(split_step):
    _, module = split_step
    repeated = [found for found in hlo_cost.collectives(module) if found.times > 1]
    assert {found.times for found in repeated} == {2}
    assert {found.kind for found in repeated} == {"all-gather", "all-reduce"}
    # 3 × 3 × 128 × 64, the largest kernel of its level
    assert max(found.bytes * found.groups.shape[1] for found in repeated if found.kind == "all-gather") <= (
        4 * 9 * 128 * 64
    )


def test_a_ring_of_two_chips_has_one_link_and_longer_ones_two_for_each_axis():
    chip = CHIPS["v4"]
    places = np.array([(x, y, 0) for x in range(4) for y in range(2)])

    def seconds(*group):
        return exchange_seconds(hlo_cost.Collective("all-reduce", 1, 8_000_000, np.array([group])), places, chip)

    assert seconds(0, 1) == 8e6 / chip.link_bytes_per_s
    assert seconds(0, 2, 4, 6) == pytest.approx(12e6 / (2 * chip.link_bytes_per_s))
    assert seconds(*range(8)) == pytest.approx(14e6 / (3 * chip.link_bytes_per_s))


def planner_that_fits(enough):
    """A planner that compiles nothing: a run fits if ``enough`` says so of its config."""

    def planner(asked):
        config = asked.config
        sharding.check_batch(config.training.batch_size, sharding.abstract_mesh(config.mesh.axes, asked.topology.chips))
        images = config.training.batch_size / (1 + ["none", "dots", "full"].index(config.training.remat))
        return {
            "fits": enough(config),
            "peak_bytes_per_chip": 20 * GIB,
            "held_bytes_per_chip": GIB,
            "capacity_bytes_per_chip": 16 * GIB,
            "mfu_upper_bound_of_kernels": images / 1000,
        }

    return planner


@pytest.mark.parametrize(
    "enough, lever",
    [
        (lambda config: config.mesh.fsdp == 16, {"mesh.data": -1, "mesh.fsdp": 16}),
        (lambda config: config.training.remat == "dots", {"training.remat": "dots"}),
        (lambda config: config.training.grad_accum_steps >= 4, {"training.grad_accum_steps": 4}),
        (lambda config: config.training.batch_size <= 64, {"training.batch_size": 64}),
    ],
)
def test_the_first_lever_that_makes_a_run_fit_is_found_by_trying(enough, lever):
    asked = question(imagen_base_64.get_config("200m"), "v5e:4x4").config
    asked = question(search.changed(question(asked), {"training.batch_size": 256}).config, "v5e:4x4")
    planner = planner_that_fits(enough)
    trials = list(search.what_fits(asked, planner(asked), planner))
    assert [trial["fits"] for trial in trials] == [False] * (len(trials) - 1) + [True]
    assert trials[-1]["changes"] == lever


def test_what_is_given_and_does_not_fit_is_helped_by_the_mesh_alone():
    asked = question(imagen_base_64.get_config("200m"), "v5e:4x4")
    planner = planner_that_fits(lambda config: False)
    report = planner(asked) | {"held_bytes_per_chip": 17 * GIB}
    assert {tuple(trial["changes"]) for trial in search.what_fits(asked, report, planner)} == {
        ("mesh.data", "mesh.fsdp")
    }


def test_a_search_tries_all_and_finds_the_fastest_that_fits():
    asked = question(imagen_base_64.get_config("200m"), "v5e:4x4")
    trials = list(
        search.search(asked, planner_that_fits(lambda config: config.mesh.fsdp > 1 and config.training.remat != "none"))
    )
    tried = {tuple(trial["changes"].values()) for trial in trials}
    assert len(tried) == len(trials) == 5 * 3 * 3
    best = search.fastest(trials)
    assert best["changes"]["training.remat"] == "dots"
    assert best["changes"]["training.batch_size"] == 128
    assert not any(trial["fits"] for trial in trials if trial["changes"]["mesh.fsdp"] == 1)
    assert search.fastest([]) is None


def test_a_search_that_can_plan_nothing_says_why():
    asked = question(imagen_base_64.get_config("200m"), "v5e:4x4")
    asked.config.training.batch_size = 10
    with pytest.raises(ConfigError, match="batch_size 10 is not divisible by 16 devices"):
        list(search.search(asked, planner_that_fits(lambda config: True)))


@pytest.mark.parametrize(
    "message, peak, temporary",
    [
        ("the total memory required for HLO temporaries (66.50G) exceeds available HBM (30.75G)", 67.5, 66.5),
        ("Ran out of memory in memory space hbm. Used 40.00G of 15.75G hbm.", 40, 39),
    ],
)
def test_xla_says_how_much_a_program_needs_that_does_not_fit(message, peak, temporary):
    assert aot.asked_for(f"RESOURCE_EXHAUSTED: {message}", GIB) == (peak * GIB, temporary * GIB)
    with pytest.raises(ValueError, match="not how much it needs"):
        aot.asked_for("RESOURCE_EXHAUSTED: of patience", GIB)


@needs_libtpu
def test_a_step_is_compiled_for_chips_that_are_not_there():
    found = plans.plan(question(base_config()))
    assert found.keys() >= KEYS
    assert found["fits"]
    assert found["chips"] == 4
    assert found["loops_of_unknown_length"] == []
    assert {kind["kind"] for kind in found["collectives"]} == {"all-reduce"}
    assert 0 < found["mfu_upper_bound"] <= 1
    assert found["network_s"] == 0


@needs_libtpu
def test_gradients_go_between_slices_over_the_network():
    """Of two slices of four chips each: each chip sends a part of the gradients, small ones in whole tiles."""
    found = plans.plan(question(base_config(), "v5e:2x2*2"))
    assert found["chips"] == 8
    assert {kind["chips_in_group"] for kind in found["collectives"]} == {4}
    assert 1 <= found["network_bytes_per_chip"] / found["params"] < 8
    assert found["network_s"] > 0


@needs_libtpu
@pytest.mark.parametrize("topology", ["v6e:16x16", "v5e:16x16", "v4:4x4x4", "v5p:4x4x8"])
def test_the_mesh_of_the_presets_lies_on_every_kind_of_pod(topology):
    devices = aot.devices_of(parse_topology(topology))
    mesh = sharding.make_mesh({"data": -1, "fsdp": 8}, devices)
    assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in devices)
    assert mesh.shape == {"data": len(devices) // 8, "fsdp": 8, "spatial": 1}


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1", "v4:1x1x1"])
def test_a_chip_may_be_alone_on_its_host(topology):
    assert len(aot.devices_of(parse_topology(topology))) == 1


@needs_libtpu
def test_a_shape_that_no_tpu_has_is_refused():
    with pytest.raises(ConfigError, match="'v4:5x5x5' is none of libtpu's"):
        plans.plan(question(base_config(), "v4:5x5x5"))
