"""Advice for a model that does not fit into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import TrainingError


@contextlib.contextmanager
def explain_oom(config: StageConfig) -> Iterator[None]:
    """Re-raises out-of-memory errors, at compilation or later, with suggestions.

    Raises:
        TrainingError: memory did not suffice.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        training = config.training
        reason = (str(error).strip() or "on the host").splitlines()[0]
        raise TrainingError(
            f"out of memory ({reason}): raise training.grad_accum_steps from {training.grad_accum_steps} to "
            f"{2 * training.grad_accum_steps}, set training.remat {training.remat!r} to 'full', raise mesh.fsdp, now "
            f"{config.mesh.fsdp}, or lower training.batch_size, now {training.batch_size}, in a new run; the last "
            "checkpoint is intact"
        ) from error
