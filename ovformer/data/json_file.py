"""Reading and writing annotation files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ovformer.files import replacing


def read_json(
    path: Path,
    keys: Sequence[str] = (),
    object_hook: Callable[[dict], dict] | None = None,
) -> dict | list:
    """Read a JSON file.

    Args:
        path: the file.
        keys: what the file, an object, has to hold.
        object_hook: called with every object as soon as it is read; its result takes the place of
            the object. Compact results keep the memory of a large file low.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no valid JSON, for instance because its download was cut off, or a
            key is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. datasets/README.md says how to get it.")
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=object_hook)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        raise ValueError(
            f"{path}: not valid JSON ({error}). The file has {path.stat().st_size} bytes and is "
            "most likely truncated; download or generate it again."
        ) from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path}: no {' and no '.join(map(repr, missing))}; the file holds {found}. "
            "Is it another kind of file?"
        )
    return content


def write_json(path: Path, content: dict | list) -> None:
    """Write a JSON file. A file of that name stays as it was until the new one is complete."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file)
