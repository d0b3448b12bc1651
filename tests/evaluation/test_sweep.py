"""A sweep measures the images of the cascade with each setting, samples nothing twice, and compiles a program once."""

import dataclasses
import html.parser
import json
import logging
import re
import shutil

import pytest

from imagen_jax import ImagenPipeline, load_config
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.datasets.captions import FirstCaptions, SourceCaptions
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.image_checksum import ImageChecksum
from imagen_jax.evaluation.judges import get_judge
from imagen_jax.evaluation.sweep import sweep
from imagen_jax.evaluation.sweep_folder import LOW_RES, POINTS, SweepFolder
from imagen_jax.evaluation.sweep_page import render_results
from imagen_jax.evaluation.sweep_point import PointMetrics
from imagen_jax.evaluation.sweep_points import SweepPlan, SweepPoint, make_points
from imagen_jax.evaluation.sweep_results import SweepResults
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from imagen_jax.serving.compilations import CompilationCounter
from tests.helpers.cli import run_command
from tests.helpers.configs import ROOT, one_device

pytest_plugins = ("tests.helpers.fixtures",)
pytestmark = pytest.mark.usefixtures("small_weights")
COUNT, BATCH = 5, 2
PLAN = SweepPlan({"guidance_scale": [1.0, 3.0], "num_inference_steps": [1, 2]})
UPPER = SweepPlan({"aug_level": [0.0, 0.4]}, stage=1)


@pytest.fixture(scope="module")
def config_of(small_weights):
    """Returns a config with changes."""

    def make(**changes):
        settings = {
            "num_samples": COUNT,
            "batch_size": BATCH,
            "metrics.names": ("fd_lite0",),
            "metrics.lite0": small_weights,
        }
        return load_config(f"{ROOT}/configs/shapes_eval.py", settings | changes, schema=EvaluationConfig)

    return make


@pytest.fixture(scope="module")
def pipeline():
    pipeline = ImagenPipeline.from_pretrained("shapes", one_device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.with_settings([{"num_inference_steps": 2}] * 2)


def figures(result):
    """Alignment and distance of each point, and the checksum of its images."""
    return [
        (row["alignment"]["value"], row["fd_lite0"]["value"], row["fd_lite0"]["images"]) for row in result.results.rows
    ]


@pytest.fixture
def sampled(monkeypatch):
    """The prompts of each batch that is sampled, and up to which stage."""
    batches, real = [], ImagenPipeline._sample_stages

    def recorded(self, request, batch, size, tell):
        batches.append((request.first_stage, request.last_stage, batch.start))
        return real(self, request, batch, size, tell)

    monkeypatch.setattr(ImagenPipeline, "_sample_stages", recorded)
    return batches


@pytest.fixture(scope="module")
def unbroken(pipeline, tmp_path_factory, config_of):
    """Both sweeps, without a break; made within the first test, which has the metrics."""
    made = {}

    def run(plan):
        if plan.stage not in made:
            out = tmp_path_factory.mktemp("sweep")
            made[plan.stage] = out, sweep(pipeline, config_of(), plan, out)
        return made[plan.stage]

    return run


@pytest.mark.parametrize("plan", [PLAN, UPPER])
def test_points_are_images_of_the_full_cascade(pipeline, unbroken, plan, config_of):
    """With later stages, and with stages before that are sampled once: the same images."""
    out, result = unbroken(plan)
    report = json.loads((out / "sweep.json").read_text())
    assert [point["settings"] for point in report["points"]] == [
        dict(point.settings) for point in make_points(plan.axes)
    ]
    source = SourceCaptions([make_source(config_of().data, "held_out", (64, 64))])
    captions = list(FirstCaptions(source, COUNT))
    request = SampleRequest(Texts(captions), config_of().seed, BATCH)
    for point, row in zip(report["points"], result.results.rows, strict=True):
        changes = [point["settings"] if index == plan.stage else {} for index in range(2)]
        images = pipeline.with_settings(changes).sample_all(request)[-1]
        checksum = ImageChecksum()
        checksum.update(0, images)
        assert row["fd_lite0"]["images"] == {"num_images": COUNT, "checksum": checksum.hexdigest()}
        assert row["alignment"]["value"] == get_judge("shapes")(images, captions)[0]["all"]["rate"]
    (pair,) = report["pareto"]
    assert (pair["gain"], pair["cost"]) == ("alignment", "fd_lite0") and pair["optimal"]
    assert {path.name for path in out.iterdir()} >= {"sweep.html", "sweep.png", "sweep.json", "inputs.json", POINTS}
    assert "FD-lite0" in result.summary() and "*" in result.summary()


class Kill(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("plan", [PLAN, pytest.param(UPPER, marks=pytest.mark.slow)])
def test_resume_equals_unbroken(pipeline, unbroken, sampled, tmp_path, monkeypatch, plan, config_of):
    expected = figures(unbroken(plan)[1])
    with monkeypatch.context() as patch:
        real, updates = PointMetrics.update, []

        def killed(self, first, images, captions):
            real(self, first, images, captions)
            updates.append(first)
            if updates[2:] == [0, 2, 4, 0, 2]:  # after both of the estimate: in the second point
                raise Kill

        patch.setattr(PointMetrics, "update", killed)
        with pytest.raises(Kill):
            sweep(pipeline, config_of(), plan, tmp_path)
    assert (
        not (tmp_path / "sweep.json").exists() or len(json.loads((tmp_path / "sweep.json").read_text())["points"]) == 1
    )
    sampled.clear()
    resumed = sweep(pipeline, config_of(), plan, tmp_path)
    assert figures(resumed) == expected
    batches = [batch for batch in sampled if batch[1] == 1 and (batch[0] == plan.stage)]
    points = len(make_points(plan.axes)) - 1
    # the second point's state has its first batch; the estimate's batches begin and end with one stage
    own = [start for first, last, start in batches if not (first == last and plan.stage == 0)]
    assert own[-3 * points + 1 :] == [2, 4] + [0, 2, 4] * (points - 1)
    assert not [batch for batch in sampled if batch[1] == 0 and plan.stage == 1 and batch[0] == 0]


def test_finished_is_not_sampled_again(pipeline, unbroken, sampled, caplog, config_of):
    out, result = unbroken(PLAN)
    again = sweep(pipeline, config_of(), PLAN, out)
    assert sampled == [] and figures(again) == figures(result) and again.estimate is None


@pytest.mark.slow
def test_more_values_add_points(pipeline, unbroken, sampled, tmp_path, config_of):
    shutil.copytree(unbroken(PLAN)[0], tmp_path / "sweep")
    more = dataclasses.replace(PLAN, axes={**PLAN.axes, "guidance_scale": [1.0, 2.0, 3.0]})
    result = sweep(pipeline, config_of(), more, tmp_path / "sweep")
    assert result.estimate.points == 2
    assert figures(result)[:2] + figures(result)[4:] == figures(unbroken(PLAN)[1])


def test_stages_before_are_sampled_once(pipeline, unbroken, sampled, tmp_path, config_of):
    out, result = unbroken(UPPER)
    shutil.copytree(out, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / POINTS)
    files = sorted((tmp_path / "sweep" / LOW_RES).iterdir())
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:-40])
    again = sweep(pipeline, config_of(), UPPER, tmp_path / "sweep")
    assert figures(again) == figures(result)
    before = [batch for batch in sampled if batch[:2] == (0, 0)]
    assert (0, 0, 2) in before and (0, 0, 4) not in before  # the damaged batch alone, and those that are timed


@pytest.mark.parametrize(
    ("plan", "axis", "values"), [(PLAN, "guidance_scale", [1.5, 7.5]), (UPPER, "aug_level", [0.1, 0.3])]
)
def test_values_need_no_compilation(pipeline, unbroken, tmp_path, plan, axis, values, config_of):
    """Guidance and augmentation levels are arguments of the programs, and nothing else depends on them."""
    unbroken(plan)
    with CompilationCounter() as programs:
        sweep(pipeline, config_of(), dataclasses.replace(plan, axes={**plan.axes, axis: values}), tmp_path)
    assert programs.count == 0


@pytest.mark.slow
def test_steps_need_no_program_of_a_stage(pipeline, unbroken, tmp_path, config_of):
    """Two small ones each, which compute the times and the numbers of the steps."""
    unbroken(PLAN)
    with CompilationCounter() as programs:
        axes = {"guidance_scale": [1.0, 2.0], "num_inference_steps": [5, 6, 7]}
        sweep(pipeline, config_of(), SweepPlan(axes), tmp_path)
    assert programs.count == 2 * 3


def test_estimate_comes_first_and_can_be_all(pipeline, tmp_path, caplog, config_of):
    with caplog.at_level(logging.INFO):
        result = sweep(pipeline, config_of(), PLAN, tmp_path, estimate_only=True)
    estimate = result.estimate
    assert estimate.summary() in caplog.text and result.results is None
    assert (estimate.points, estimate.images, estimate.programs) == (4, COUNT, 2)
    assert estimate.sampling > 0 and estimate.measuring > 0 and not (tmp_path / POINTS).exists()


class Elements(html.parser.HTMLParser):
    """The names of a page's elements, and what they load."""

    def __init__(self):
        super().__init__()
        self.names, self.loaded = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]


def test_page_is_safe_and_complete():
    """Nothing is asked for from elsewhere, and captions are text."""
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [{"alignment": {"value": 0.5, "low": 0.4, "high": 0.6}, "fd_lite0": {"value": 3.0 - i}} for i in range(2)]
    results = SweepResults(make_points({"guidance_scale": [1.0, 2.0]}), rows, "guidance_scale")
    page = render_results(results, hostile, [hostile], [["data:image/png;base64,AA=="]] * 2, [hostile])
    reader = Elements()
    reader.feed(page)
    assert reader.names.count("script") == 2 and "img" not in reader.names
    assert not reader.loaded and "default-src 'none'" in page
    data = json.loads(re.search(r'id="sweep-data">(.*?)</script>', page)[1])
    assert data["captions"] == [hostile] and data["curves"] == [
        {"gain": "alignment", "cost": "fd_lite0", "optimal": [1]}
    ]


def test_names_of_points_are_names_of_folders():
    point = SweepPoint({"guidance_scale": 1.25, "guidance_interval": (0.1, 0.9), "oscillating_guidance": True})
    assert point.name == "guidance_scale=1.25,guidance_interval=0.1x0.9,oscillating_guidance=true"


BAD_PLANS = [
    ({}, "0 points"),
    ({"guidance_scale": [1.0]}, "1 point is"),
    ({"guidance": [1.0, 2.0]}, "guidance_scale"),
    ({"guidance_scale": [1.0, 1.0]}, "1 twice"),
    ({"guidance_scale": []}, "no values"),
    ({"num_inference_steps": list(range(1, 40)), "guidance_scale": [float(i) for i in range(40)]}, "1,560 points"),
    ({"num_inference_steps": [0, 4]}, "num_inference_steps"),
    ({"sampler": ["ddim", "euler"]}, "sampler"),
    ({"aug_level": [0.0, 0.1]}, "no effect"),
]


@pytest.mark.parametrize(("axes", "words"), BAD_PLANS)
def test_bad_values_are_refused_in_a_sentence(pipeline, tmp_path, axes, words, config_of):
    with pytest.raises(ConfigError, match=words) as raised:
        sweep(pipeline, config_of(), SweepPlan(axes), tmp_path)
    assert "\n" not in str(raised.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "plan", "words"),
    [
        ({"judge": ""}, PLAN, "alignment"),
        ({"metrics.names": ()}, PLAN, "distance"),
        ({"metrics.names": ("inception_score_lite0",)}, PLAN, "distance"),
        ({}, dataclasses.replace(PLAN, stage=2), "stages 0 to 1"),
        ({}, dataclasses.replace(UPPER, last_stage=0), "stages 0 to 1"),
    ],
)
def test_what_has_no_trade_off_is_refused(pipeline, tmp_path, changes, plan, words, config_of):
    with pytest.raises(ConfigError, match=words):
        sweep(pipeline, config_of(**changes), plan, tmp_path)


def test_another_sweep_is_refused(pipeline, unbroken, tmp_path, sampled, config_of):
    shutil.copytree(unbroken(PLAN)[0], tmp_path / "sweep")
    with pytest.raises(ConfigError, match=r"seed.*--overwrite"):
        sweep(pipeline, config_of(seed=1), PLAN, tmp_path / "sweep")
    with pytest.raises(ConfigError, match="stage"):
        sweep(pipeline, config_of(), UPPER, tmp_path / "sweep")
    assert sampled == []
    SweepFolder(tmp_path / "sweep", {"seed": 1}, overwrite=True)
    assert [path.name for path in (tmp_path / "sweep").iterdir() if not path.name.startswith("ref")] == ["inputs.json"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--sweep is missing"),
        (["--sweep=guidance_scale"], "no values"),
        (["--sweep=guidance_scale=1,2", "--sweep=guidance_scale=3"], "twice"),
        (["--sweep=guidance_scale=1,two"], "'two' is not a finite number"),
        (["--sweep=guidence_scale=1,2"], "guidance_scale"),
        (["--sweep=guidance_scale=1,2", "--metrics=alignment,fd_lite0", "--config.judge="], "judge"),
    ],
)
def test_bad_flags_are_refused_in_a_sentence(tmp_path, capsys, flags, words):
    code = run_command(
        "sweep", "--stages=shapes", f"--config={ROOT}/configs/shapes_eval.py", f"--out={tmp_path}", *flags
    )
    error = capsys.readouterr().err.strip()
    assert code == 2 and error.startswith("error: ") and words in error and "\n" not in error
