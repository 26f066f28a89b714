"""Loggers of scripts that run in the tests' own process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ovformer.d2 import setup_logger


@contextmanager
def own_loggers() -> Iterator[None]:
    """Put the loggers of a script that runs in this process back as they were."""
    loggers = [logging.getLogger(name) for name in ("ovformer", "detectron2", "fvcore")]
    before = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    try:
        yield
    finally:
        for log, level, propagate, handlers in before:
            log.setLevel(level)
            log.propagate, log.handlers = propagate, handlers
        getattr(setup_logger, "cache_clear", lambda: None)()  # of detectron2's
