"""Runs Python scripts in processes that have imported PyTorch, which takes most of their time.

A server process imports PyTorch and does nothing else; it is forked for each script.
"""

import logging
import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ovformer.d2 import setup_logger

SERVER = multiprocessing.get_context("forkserver")
# No modules of the tests: before Python 3.14 the server does not search the path of this process.
SERVER.set_forkserver_preload(["ovformer.run", "ovformer.engine.stages"])


def run_script(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    timeout: float = 300.0,
) -> int:
    """Run ``python <words>``: a script or ``-m`` with a module, and its arguments.

    An older log is deleted.

    Args:
        words: what follows ``python``.
        folder: the working directory.
        environment: all its environment variables; those that imports read have no effect.
        log: file for what it prints.
        timeout: seconds.

    Returns:
        Its exit status: the negative number of the signal, if one ended it.
    """
    log.unlink(missing_ok=True)
    process = SERVER.Process(target=_run, args=(words, folder, dict(environment), log))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def redirect_output(log: Path) -> None:
    """Append all that this process prints to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _run(words: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    """Run the script in the new process."""
    redirect_output(log)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


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
