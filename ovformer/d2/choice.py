"""Chooses the back-end of :mod:`ovformer.d2`, once per process."""

import importlib
import os

BACKENDS = ("auto", "detectron2", "builtin")


def choose_backend() -> str:
    """Return ``"detectron2"`` or ``"builtin"``, according to ``$OVFORMER_D2`` (default ``auto``).

    Raises:
        ValueError: ``$OVFORMER_D2`` is none of ``auto``, ``detectron2``, ``builtin``.
        ImportError: detectron2 is required but absent, or installed but broken.
    """
    wanted = os.environ.get("OVFORMER_D2", "auto")
    if wanted not in BACKENDS:
        raise ValueError(
            f"OVFORMER_D2: unknown back-end {wanted!r}. Known: {', '.join(BACKENDS)}. "
            "Unset it to use detectron2 if it is installed."
        )
    if wanted == "builtin":
        return "builtin"
    try:
        importlib.import_module("detectron2.layers")  # the first import of its compiled extension
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise _make_broken_error(error) from error
        if wanted == "detectron2":
            raise ImportError(
                "OVFORMER_D2=detectron2, but detectron2 is not installed. See INSTALL.md to build "
                "it, or set OVFORMER_D2=builtin."
            ) from error
        return "builtin"
    except (ImportError, OSError) as error:
        raise _make_broken_error(error) from error
    return "detectron2"


def _make_broken_error(error: Exception) -> ImportError:
    return ImportError(
        f"detectron2 is installed but does not import: {error}. It was most likely built against "
        "another torch; rebuild it (see INSTALL.md), uninstall it, or set OVFORMER_D2=builtin. If "
        "it is not installed, remove the folder called detectron2 from the Python path."
    )
