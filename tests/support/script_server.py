"""Scripts of Python in processes that have PyTorch already, whose import takes most of their time.

A process that has imported everything, and has done nothing else, is copied for each script.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
# Not modules of the tests: until Python 3.14 it does not look for them where this process does.
SERVER.set_forkserver_preload(["ovformer.run", "ovformer.engine.stages"])


def run_script(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    timeout: float = 300.0,
) -> int:
    """Run ``python <words>``: a script or ``-m`` with a module, and its arguments.

    Args:
        words: what follows ``python``.
        folder: the working directory.
        environment: all its environment variables; what is read at imports has no effect.
        log: file that gets what it prints.
        timeout: seconds.

    Returns:
        Its exit status: the negative number of the signal, if one ended it.
    """
    process = SERVER.Process(target=_run, args=(words, folder, dict(environment), log))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def _run(words: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    """Be that process."""
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
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
