"""Reads and writes JSON files, and checks their entries."""

import json
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ovformer.data.files.untrusted_masks import is_frame_size
from ovformer.files import replacing

# Numbers have to fit 64 bits, and other programs read JSON's numbers as floats of 53 bits.
_LARGEST = 1 << 53


class Kind(NamedTuple):
    """A kind of value that a field may require.

    Attributes:
        text: its name in messages.
        fits: returns whether a value is of this kind.
    """

    text: str
    fits: Callable[[Any], bool]


def _is_whole(value: object) -> bool:
    return type(value) is int and -_LARGEST < value < _LARGEST


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and -_LARGEST < value < _LARGEST


def _is_text(value: object) -> bool:
    # JSON can hold a half of a surrogate pair, which UTF-8 can't write.
    return isinstance(value, str) and (
        value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    )


def _list_of(kind: Kind, text: str) -> Kind:
    return Kind(text, lambda value: isinstance(value, list) and all(map(kind.fits, value)))


WHOLE = Kind("a whole number", _is_whole)
NUMBER = Kind("a finite number", _is_number)
SIDE = Kind("a whole number of pixels, 1 or more", lambda value: is_frame_size([value, 1]))
TEXT = Kind("text", _is_text)
LIST = Kind("a list", lambda value: isinstance(value, list))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
BOX = Kind("[x, y, width, height]", lambda box: NUMBERS.fits(box) and len(box) == 4)
NUMBERS = _list_of(NUMBER, "a list of numbers")
IDS = _list_of(WHOLE, "a list of whole numbers")
TEXTS = _list_of(TEXT, "a list of texts")


def read_json(
    path: Path, keys: Sequence[str] = (), object_hook: Callable[[dict], dict] | None = None
) -> dict | list:
    """Read a JSON file.

    Args:
        path: the file.
        keys: keys that the file, an object, must have.
        object_hook: called with every object as soon as it is read; its result replaces the object.
            Compact results keep the memory of a large file low.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not valid JSON, for instance because its download was cut off, is
            nested too deeply, or lacks a key.
    """
    if not os.path.isfile(path):  # Path.is_file raises OSError for a name that is too long
        raise FileNotFoundError(f"{path}: no such file. datasets/README.md says how to get it.")
    try:
        with path.open(encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=object_hook)
    except RecursionError as error:
        raise ValueError(
            f"{path}: its lists and objects are nested too deeply to be read."
        ) from error
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
    """Write a JSON file. An existing file is replaced when the new one is complete."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file)


def check_entries(
    kind: str,
    entries: object,
    required: Mapping[str, Kind],
    optional: Mapping[str, Kind] | None = None,
) -> list[dict]:
    """Check a list of objects from a file: videos, annotations, ...

    Args:
        kind: name of an entry in messages.
        entries: the list.
        required: field -> kind of its value.
        optional: the same for fields that an entry may lack.

    Returns:
        The entries.

    Raises:
        ValueError: an entry is wrong. The message names the entry, by its id where it has one, the
            field, the expected kind and the value; :func:`name_file_in_errors` adds the file.
    """
    if not isinstance(entries, list):
        raise ValueError(f"expected a list of {kind} entries, got {shorten(entries)}.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{kind} number {number}: expected an object, got {shorten(entry)}.")
        if missing := [key for key in required if key not in entry]:
            raise ValueError(f"{_name_entry(kind, number, entry)} has no {missing}.")
        for key, expected in required.items():
            if not expected.fits(entry[key]):
                raise ValueError(_describe_mismatch(kind, number, entry, key, expected))
        for key, expected in (optional or {}).items():
            if key in entry and not expected.fits(entry[key]):
                raise ValueError(_describe_mismatch(kind, number, entry, key, expected))
    return entries


def index_by_id(
    kind: str,
    entries: object,
    required: Mapping[str, Kind],
    optional: Mapping[str, Kind] | None = None,
) -> dict[int, dict]:
    """Return entries by their "id", after :func:`check_entries`.

    Raises:
        ValueError: an entry is wrong, or two entries have the same id.
    """
    index = {}
    for entry in check_entries(kind, entries, {"id": WHOLE, **required}, optional):
        if entry["id"] in index:
            raise ValueError(f"{kind} {entry['id']} is listed twice.")
        index[entry["id"]] = entry
    return index


def shorten(value: object) -> str:
    """Return the beginning of a value's text, for a message."""
    return f"{reprlib.repr(value):.80}"


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Put the name of a file in front of the message of a ValueError, unless it has it."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _name_entry(kind: str, number: int, entry: dict) -> str:
    return f"{kind} {shorten(entry['id']) if 'id' in entry else f'number {number}'}"


def _describe_mismatch(kind: str, number: int, entry: dict, key: str, expected: Kind) -> str:
    name = f"{kind} number {number}" if key == "id" else _name_entry(kind, number, entry)
    return f"{name}: {key}: expected {expected.text}, got {shorten(entry[key])}."
