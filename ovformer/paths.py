"""Where data sets live, and how a path in a config is resolved. A leaf: every layer may use it."""

import os
from pathlib import Path


def dataset_root() -> Path:
    """Return the folder that holds all data sets: ``$DETECTRON2_DATASETS``, or ``./datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def resolve_path(path: str | os.PathLike) -> Path:
    """Resolve a path from a config or the command line.

    An absolute path and one that exists as written are returned unchanged. Anything else is taken
    relative to :func:`dataset_root`, after a leading ``datasets/`` (the published configs' way of
    naming that folder) has been dropped.

    Args:
        path: absolute, relative to the working directory, or relative to the dataset root.

    Returns:
        The resolved path. It is not checked for existence.
    """
    path = Path(os.path.expanduser(path))  # leaves ~ of an unknown user as it is
    if path.is_absolute() or os.path.exists(path):  # unlike path.exists(), of names of any length
        return path
    parts = path.parts[1:] if path.parts[:1] == ("datasets",) else path.parts
    return dataset_root().joinpath(*parts)
