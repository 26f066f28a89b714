"""Command lines of scripts: checks of numbers and devices, and how a script ends."""

import argparse
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

# Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130
# If this variable is set, an error that ends a script shows its traceback.
TRACEBACK_VARIABLE = "OVFORMER_TRACEBACK"
# Missing and unreadable files, wrong values (JSON and Unicode errors are ValueErrors), packages
# that are not installed. All other exceptions are bugs, which need their traceback.
USER_ERRORS = (
    ImportError,
    OSError,
    ValueError,
    EOFError,
    pickle.PickleError,
    zipfile.BadZipFile,
)


@contextmanager
def exit_on_user_error(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End the script at an error of its user: one message on stderr, exit status 2, no traceback.

    Errors of the user are :data:`USER_ERRORS`. Ctrl-C ends the script with status 130. If
    ``$OVFORMER_TRACEBACK`` is set, the error is raised instead.

    Args:
        parser: the script's parser; its name starts the message.
    """
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, "\nInterrupted.\n")


def positive_int(text: str) -> int:
    """Parse a whole number, 1 or more."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def unit_float(text: str) -> float:
    """Parse a number from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def seconds(text: str) -> float:
    """Parse a number of seconds, finite and 0 or more."""
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected 0 or more seconds, got {text}")
    return value


def choose_device(name: str | None) -> str:
    """Return a device that can be used; without a name, a GPU if there is one.

    Raises:
        ValueError: PyTorch does not know the device, or it is absent.
    """
    import torch  # here, since most command lines are parsed without it

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    # Which of these it is depends on how PyTorch was built.
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"device: {name!r} can't be used ({why}). Without a GPU: cpu") from error
    return name
