"""What to do about a model that does not fit, in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import TrainingError


@contextlib.contextmanager
def explain_oom(config: StageConfig) -> Iterator[None]:
    """Turns what XLA says of memory that it does not get, at compilation or later, into advice.

    Raises:
        RunError: memory did not suffice.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        training = config.training
        said = (str(error).strip() or "of the host").splitlines()[0]
        raise TrainingError(
            f"memory does not suffice ({said}): raise training.grad_accum_steps from {training.grad_accum_steps} to "
            f"{2 * training.grad_accum_steps}, set training.remat {training.remat!r} to 'full', split parameters over more "
            f"devices by mesh.fsdp, now {config.mesh.fsdp}, or lower training.batch_size, now {training.batch_size}, "
            "in a new run; the last checkpoint is intact"
        ) from error
