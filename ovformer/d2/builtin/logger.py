"""Logging to the console and to a file."""

import logging
import os
import sys

from termcolor import colored

from ovformer.d2.builtin.env import PathManager

_DATE = "%m/%d %H:%M:%S"
_STDOUT = "ovformer-stdout"


class _ConsoleFormatter(logging.Formatter):
    """Formats ``[time name]: message`` with a short name, in colours on a terminal."""

    def __init__(self, name: str, abbreviation: str, use_color: bool) -> None:
        super().__init__("%(asctime)s %(message)s", datefmt=_DATE)
        self._prefix = name + "."
        self._short = abbreviation + "." if abbreviation else ""
        self._use_color = use_color

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the line without a traceback."""
        name = record.name
        if name.startswith(self._prefix):
            name = self._short + name[len(self._prefix) :]
        line = self._paint(f"[{record.asctime} {name}]: ", "green") + record.message
        if record.levelno >= logging.ERROR:
            line = self._paint("ERROR", "red", ["blink", "underline"]) + " " + line
        elif record.levelno >= logging.WARNING:
            line = self._paint("WARNING", "red", ["blink"]) + " " + line
        return line

    def _paint(self, text: str, color: str, attributes: list[str] | None = None) -> str:
        return colored(text, color, attrs=attributes) if self._use_color else text


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Make a logger and its children log everything to the console and to a file.

    Calling it again adds no second handler for the console or for the same file.

    Args:
        output: a file that ends in ``.txt`` or ``.log``, a folder (its ``log.txt``), or None.
        distributed_rank: rank of this process; only rank 0 logs to the console; each other rank
            has its own file, which ends in ``.rank<n>``.
        color: True for short lines, coloured on a terminal; False for plain lines with levels.
        name: the logger.
        abbrev_name: replaces ``name`` on the console; empty drops it.
        enable_propagation: whether its parent loggers get the lines too.
        configure_stdout: whether to log to the console.

    Returns:
        The logger.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    plain_format = logging.Formatter(
        "[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE
    )
    handlers = {handler.name: handler for handler in logger.handlers}

    if configure_stdout and distributed_rank == 0:
        if abbrev_name is None:
            abbrev_name = "d2" if name == "detectron2" else name
        if _STDOUT in handlers:  # replaced, as sys.stdout may have changed
            logger.removeHandler(handlers[_STDOUT])
        console = logging.StreamHandler(sys.stdout)
        console.set_name(_STDOUT)
        console.setFormatter(
            _ConsoleFormatter(name, abbrev_name, sys.stdout.isatty()) if color else plain_format
        )
        logger.addHandler(console)

    if output is not None:
        path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        path = os.path.abspath(path + (f".rank{distributed_rank}" if distributed_rank else ""))
        # A second call must not write each line twice.
        if path not in handlers:
            PathManager.mkdirs(os.path.dirname(path))
            file = logging.FileHandler(path, encoding="utf-8")
            file.set_name(path)
            file.setFormatter(plain_format)
            logger.addHandler(file)
    return logger
