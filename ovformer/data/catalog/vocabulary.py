"""Reads vocabularies, lists of class names, from words, files and category tables."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from ovformer.data.catalog.dataset_spec import CATEGORY_FOLDER, load_categories
from ovformer.data.files.json_file import TEXT, TEXTS, index_by_id, name_file_in_errors, read_json

# Short names of tables in ovformer/data/catalog/categories.
_ALIASES = {"lvis": "lvis_v1", "lv-vis": "lvvis"}
_SUFFIXES = (".txt", ".json")

logger = logging.getLogger(__name__)


def parse_vocabulary(
    words: str | PathLike | Iterable[str | PathLike],
    named: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Return the class names that words, names of vocabularies and files stand for.

    Args:
        words: a string of items with commas between them, or a list of items, which may contain
            commas. An item is a class name, the name of a category table (:func:`list_tables`), or
            a .txt or .json file, see :func:`read_vocabulary`.
        named: more vocabularies by name.

    Returns:
        The names in order, each once, with spaces for underscores. Names that differ only by case
        or spaces are the same name.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: there is no name, or a file is not a vocabulary.
    """
    # A path may contain commas: a string that names an existing file is not split.
    if isinstance(words, str):
        items = [words] if _is_file(words) else words.split(",")
    elif isinstance(words, PathLike):
        items = [words]
    else:
        items = list(words)
    names: dict[str, str] = {}
    repeated = 0
    for item in items:
        for name in _expand(item, named or {}):
            if clean := clean_name(name):
                repeated += clean.casefold() in names
                names.setdefault(clean.casefold(), clean)
    if not names:
        raise ValueError(
            f"vocabulary: no name in {words!r}. Give words ('dog, red ball'), a file with one name "
            f"per line, or one of: {', '.join([*(named or {}), *list_tables()])}"
        )
    if repeated:
        logger.info("Vocabulary: %d names; %d repeated ones are skipped", len(names), repeated)
    return list(names.values())


def list_tables() -> list[str]:
    """Return the names of the category tables."""
    return sorted([*_ALIASES, *(path.stem for path in CATEGORY_FOLDER.glob("*.json"))])


def clean_name(name: str) -> str:
    """Return a class name without underscores and extra spaces, for display and CLIP."""
    return " ".join(name.replace("_", " ").split())


def normalise_name(name: str) -> str:
    """Return the form of a name that is equal for two names of the same class."""
    return clean_name(name).casefold()


def find_first_difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Describe the first difference of two lists of class names; "" if there is none."""
    if len(theirs) != len(ours):
        return f"{len(theirs)} instead of {len(ours)}"
    for number, (name, other) in enumerate(zip(theirs, ours, strict=True)):
        if normalise_name(name) != normalise_name(other):
            return f"class {number} is {name!r} instead of {other!r}"
    return ""


def is_vocabulary_file(word: str) -> bool:
    """Return whether :func:`parse_vocabulary` takes a word for the path of a file."""
    return word.strip().endswith(_SUFFIXES)


def read_vocabulary(path: Path) -> list[str]:
    """Read the class names of a file; categories are sorted by id.

    Args:
        path: ``.txt`` with one name per line, or ``.json`` with a list of names, a list of
            categories (``id`` and ``name``) or an object that has such ``categories``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is none of these.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"--vocabulary: expected a .txt or .json file, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"--vocabulary: no file {path}")
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--vocabulary: {path} is not text in UTF-8 ({error})") from error
        return [line.strip() for line in lines if line.strip()]
    content = read_json(path)
    entries = content.get("categories") if isinstance(content, dict) else content
    if isinstance(entries, list) and entries:
        if TEXTS.fits(entries):
            return entries
        if all(isinstance(entry, dict) and {"id", "name"} <= entry.keys() for entry in entries):
            with name_file_in_errors(path):
                found = index_by_id("category", entries, {"name": TEXT})
            return [entry["name"] for _, entry in sorted(found.items())]
    raise ValueError(
        f"--vocabulary: {path} holds neither a list of names nor categories with id and name"
    )


def _expand(item: str | PathLike, named: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the names that one item stands for."""
    if isinstance(item, PathLike):
        return read_vocabulary(Path(item))
    word = item.strip()
    # The caller's own vocabularies win over tables of the same name.
    if word in named:
        return named[word]
    if word in list_tables():
        return [category["name"] for category in load_categories(_ALIASES.get(word, word))]
    return read_vocabulary(Path(word)) if is_vocabulary_file(word) else [word]


def _is_file(words: str) -> bool:
    """Return whether a whole string, which may contain commas, is the path of a vocabulary."""
    return is_vocabulary_file(words) and len(words) < 1000 and Path(words).is_file()
