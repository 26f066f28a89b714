"""Compiles, caches and loads kernels: shared libraries with a plain C interface."""

import atexit
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

DIGEST_SIZE = hashlib.sha256().digest_size


class BuildError(RuntimeError):
    """A library can't be compiled or loaded; the message says why."""


def build_on_first_use(source: Path, command: Sequence[str]) -> ctypes.CDLL:
    """Load a library from the cache; compile it if it is absent or damaged.

    Args:
        source: a C++ or CUDA file that includes no other file of this project.
        command: the compiler and its flags, without source and output.

    Returns:
        The library.

    Raises:
        BuildError: there is no compiler, or it failed, or the library does not load.
    """
    path = cached_path(source, command)
    if path.exists():
        try:
            return load_library(path)
        except BuildError as error:
            logger.warning("%s. It is compiled again.", error)
    # Only now, as a cache that is complete need not be writable.
    path = writable_folder() / path.name
    logger.info("Compiling %s, once, to %s", source.name, path)
    compile_library(source, command, path)
    return load_library(path)


def cached_path(source: Path, command: Sequence[str]) -> Path:
    """Return the path of a library in the cache; its name is a hash of all that it depends on.

    Raises:
        BuildError: there is no such compiler.
    """
    # The processor counts: machines with different ones may share a home folder, and kernels are
    # compiled for the processor at hand.
    facts = (source.read_bytes(), *command, compiler_version(command[0]), describe_processor())
    digest = hashlib.sha256()
    for fact in facts:
        # With its length, so that facts can't run into each other.
        fact = fact if isinstance(fact, bytes) else fact.encode()
        digest.update(len(fact).to_bytes(8, "little") + fact)
    return cache_folder() / f"{source.stem}-{digest.hexdigest()[:20]}.so"


def compile_library(source: Path, command: Sequence[str], output: Path) -> None:
    """Compile a library and append its checksum, which reveals damage.

    The file appears complete or not at all, so several processes may compile at once.

    Raises:
        BuildError: the compiler failed; the message names the file with its full output.
    """
    # In the same folder, as a rename is atomic only within a file system.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix="building-") as folder:
        built = Path(folder, output.name)
        line = [*command, str(source), "-o", str(built)]
        try:
            run = subprocess.run(line, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise BuildError(f"{command[0]} does not run: {error}") from error
        if run.returncode:
            report = _write_report(line, run.stdout + run.stderr, output.with_suffix(".log"))
            errors = [text for text in run.stderr.splitlines() if "error" in text.lower()]
            first = errors[0].strip() if errors else f"exit status {run.returncode}"
            raise BuildError(f"{command[0]} failed ({first}), see {report}")
        # The checksum is appended: the loader of libraries ignores what follows its last section.
        content = built.read_bytes()
        built.write_bytes(content + hashlib.sha256(content).digest())
        built.replace(output)


def load_library(path: Path) -> ctypes.CDLL:
    """Load a library that :func:`compile_library` made.

    Raises:
        BuildError: the file is absent, damaged, or not for this machine.
    """
    try:
        content = path.read_bytes()
        # Before the library is mapped: a damaged one may crash the process.
        if hashlib.sha256(content[:-DIGEST_SIZE]).digest() != content[-DIGEST_SIZE:]:
            raise BuildError(f"{path} is damaged")
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} does not load: {error}") from error


def cache_folder() -> Path:
    """Return the folder of compiled libraries: ``ovformer`` in ``$XDG_CACHE_HOME`` or ~/.cache."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder, "ovformer")


def writable_folder() -> Path:
    """Return the cache folder, or a temporary one if the cache is not writable."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        logger.warning("Compiled kernels can't be kept: %s. XDG_CACHE_HOME moves them.", error)
        return _temporary_folder()


def compiler_version(compiler: str) -> str:
    """Return the version text of a compiler.

    Raises:
        BuildError: there is no such compiler.
    """
    if shutil.which(compiler) is None:
        raise BuildError(f"there is no compiler {compiler} on PATH")
    run = subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace")
    return run.stdout


@functools.cache
def describe_processor() -> str:
    """Return the kind and features of this machine's processor."""
    text = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        features = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        text += features[1] if features else ""
    return text


@functools.cache
def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="ovformer-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _write_report(line: list[str], text: str, path: Path) -> Path:
    """Write a compiler's output to the path, or a temporary file if its folder is temporary."""
    if path.parent != cache_folder():
        path = Path(tempfile.gettempdir(), f"{path.stem}-{os.getpid()}.log")
    path.write_text(f"{' '.join(line)}\n{text}", encoding="utf-8")
    return path
