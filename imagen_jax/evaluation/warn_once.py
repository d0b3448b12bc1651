"""Warnings of metrics, each once: every point of a sweep would repeat them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from imagen_jax.evaluation import feature_states, image_metrics


class _Once(logging.Filter):
    """Passes each message once, or none."""

    def __init__(self, is_silent: bool) -> None:
        super().__init__()
        self._seen: set[str] = set()
        self._is_silent = is_silent

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_new = text not in self._seen and not self._is_silent
        self._seen.add(text)
        return is_new


@contextlib.contextmanager
def metric_warnings_once(is_silent: bool = False) -> Iterator[None]:
    """Lets each warning of metrics pass once within the block; with `is_silent`, none."""
    once, loggers = _Once(is_silent), [feature_states.logger, image_metrics.logger]
    for logger in loggers:
        logger.addFilter(once)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(once)
