"""Sweeps sampling settings of one stage, and finds where the trade-off between alignment and fidelity is best.

Guidance trades one for the other: curves of CLIP score against FID are how cascades are compared (arXiv:2205.11487,
Section 4.3).
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.evaluation.sweep_estimate import SweepEstimate
from imagen_jax.evaluation.sweep_points import SweepPlan
from imagen_jax.evaluation.sweep_results import SweepResults
from imagen_jax.evaluation.sweep_run import SweepRun
from imagen_jax.io.paths import as_path
from imagen_jax.parallel import devices, multihost
from imagen_jax.pipelines.imagen import ImagenPipeline

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The result of `sweep`.

    Attributes:
        estimate: how long it was to take; None if no point was left.
        results: of the points, in the order of the plan; None if only the estimate was asked for.
        out: the folder.
    """

    estimate: SweepEstimate | None
    results: SweepResults | None
    out: Path

    def summary(self) -> str:
        """Returns the results, or the estimate, as text."""
        if self.results is not None:
            return f"{self.results.table()}\npage: {self.out / 'sweep.html'}; results: {self.out / 'sweep.json'}"
        return "all points are finished" if self.estimate is None else self.estimate.summary()


def sweep(
    pipeline: ImagenPipeline,
    config: EvaluationConfig | str | Path,
    plan: SweepPlan,
    out: str | Path,
    *,
    overwrite: bool = False,
    estimate_only: bool = False,
) -> SweepResult | None:
    """Samples images with each combination of some settings of a stage, judges and measures them, and plots metrics.

    All points have the same captions and the same noise. A call with the same stages and config continues after a
    kill; it may have other values, whose points are added. The estimate is logged before the work begins.

    Args:
        pipeline: the cascade.
        config: captions, their number, the judge and the metrics, as of `evaluate`.
        plan: what is swept.
        out: the folder to write to: `sweep.json`, `sweep.png` and `sweep.html`, a page without other files.
        overwrite: whether results of another sweep in `out` are removed.
        estimate_only: whether to compile, time and log the estimate, and not to do the work.

    Returns:
        The result, in the main process; None in the others.

    Raises:
        ConfigError: a setting cannot work, there is no such stage, the metrics have no trade-off, or `out` has results
            of another sweep; and as `evaluate`.
    """
    devices.log_devices("sweeping")
    run = SweepRun(pipeline, load_config(config, schema=EvaluationConfig), plan, as_path(out), overwrite)
    estimate = run.estimate()
    if estimate is not None:
        logger.info("%s", estimate.summary())
    if not estimate_only:
        run.sample()
        run.write()
    if not multihost.is_main_process():
        return None
    return SweepResult(estimate, None if estimate_only else run.results(), as_path(out))
