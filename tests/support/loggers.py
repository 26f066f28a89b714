"""Keeps scripts that run in the tests' process from changing loggers for later tests."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ovformer.d2 import setup_logger


@contextmanager
def restore_loggers() -> Iterator[None]:
    """At the end of the block, undo changes of the loggers by a script that ran in it."""
    loggers = [logging.getLogger(name) for name in ("ovformer", "detectron2", "fvcore")]
    before = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    try:
        yield
    finally:
        for log, level, propagate, handlers in before:
            log.setLevel(level)
            log.propagate, log.handlers = propagate, handlers
        getattr(setup_logger, "cache_clear", lambda: None)()  # of detectron2's
