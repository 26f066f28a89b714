"""Find the folder of the data sets and resolve paths in configs. A leaf: every layer may use it."""

import os
from pathlib import Path


def dataset_root() -> Path:
    """Return the folder of all data sets: ``$DETECTRON2_DATASETS``, or ``./datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def resolve_path(path: str | os.PathLike) -> Path:
    """Resolve a path from a config or the command line.

    An absolute path, or a path that exists as written, is returned unchanged. Any other path is
    relative to :func:`dataset_root`, without a leading ``datasets/``, which is how the published
    configs name that folder.

    Args:
        path: absolute, relative to the working directory, or relative to the dataset root.

    Returns:
        The resolved path, which need not exist.
    """
    path = Path(os.path.expanduser(path))  # leaves ~ of an unknown user as it is
    if path.is_absolute() or os.path.exists(path):  # unlike path.exists(), of names of any length
        return path
    parts = path.parts[1:] if path.parts[:1] == ("datasets",) else path.parts
    return dataset_root().joinpath(*parts)
