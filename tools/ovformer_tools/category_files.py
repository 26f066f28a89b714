"""Count or filter the annotations of each category of a file: the four scripts that do so."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ovformer.arguments import exit_on_user_error
from ovformer.data.catalog.category_counts import count_categories
from ovformer.data.files.json_file import (
    TEXT,
    WHOLE,
    check_entries,
    index_by_id,
    name_file_in_errors,
    read_json,
    write_json,
)
from ovformer.paths import dataset_root, resolve_path

# LV-VIS's own partitions: 0 and 1 are base, 2 and 3 novel categories.
PARTITIONS = (0, 1, 2, 3)
NOVEL_PARTITIONS = (2, 3)


def make_parser(doc: str, ann: str, out: str) -> argparse.ArgumentParser:
    """Return a parser with the two options that all four scripts have.

    Args:
        doc: the script's docstring; its first line describes the script.
        ann: default of ``--ann``, the annotation file to read.
        out: default of ``--out``, in words.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--ann", default=ann, help="annotation file (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"file to write (default: {out})")
    return parser


def write_counts(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    keys: Sequence[str],
    name: Callable[[str], str],
    frequency: Callable[[int, argparse.Namespace], str],
) -> None:
    """Count images (or frames) and instances of each category, and write the list of categories.

    Args:
        parser: of :func:`make_parser`, with ``--add_freq``.
        argv: the command line.
        keys: what the annotation file has to hold.
        name: name of the annotation file without suffix -> name of the file in metadata/.
        frequency: (image count, command line) -> the value of "frequency".
    """
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        source = resolve_path(args.ann)
        target = args.out or dataset_root() / "metadata" / name(source.stem)
        content = read_json(source, keys)
        with name_file_in_errors(source):
            categories = count_categories(content)
        if args.add_freq:
            for category in categories:
                category["frequency"] = frequency(category["image_count"], args)
        write_json(target, categories)
    groups = Counter(category.get("frequency", "none") for category in categories)
    counts = ", ".join(f"{group}: {count}" for group, count in sorted(groups.items()))
    print(f"{target}: {len(categories)} categories; frequency {counts}")


def write_kept(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    name: Callable[[str], str],
    select: Callable[[dict], list[dict]],
) -> None:
    """Write an annotation file with some of its annotations only.

    Args:
        parser: of :func:`make_parser`.
        argv: the command line.
        name: name of the annotation file without suffix -> name of the file to write beside it.
        select: content of the file -> annotations to keep.
    """
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        source = resolve_path(args.ann)
        target = args.out or source.with_name(name(source.stem))
        content = read_json(source, ("annotations", "categories"))
        with name_file_in_errors(source):
            kept = select(content)
        before, content["annotations"] = len(content["annotations"]), kept
        write_json(target, content)
    print(f"{target}: {len(kept)} of {before} annotations kept")


def without_rare(content: dict) -> list[dict]:
    """Return the annotations of an LVIS file whose category is not rare.

    Raises:
        ValueError: a category has no frequency, or an annotation has an unknown category.
    """
    categories = index_by_id("category", content["categories"], {})
    frequencies = {number: category.get("frequency") for number, category in categories.items()}
    if None in frequencies.values():
        raise ValueError(
            "Not every category has a frequency (r, c or f), so it is not known which are rare. "
            "tools/get_lvis_cat_info.py --add_freq derives frequencies from image counts."
        )
    annotations = check_entries("annotation", content["annotations"], {"category_id": WHOLE})
    if unknown := {a["category_id"] for a in annotations} - frequencies.keys():
        raise ValueError(f"annotations have the category id {min(unknown)}, which no category has.")
    return [a for a in annotations if frequencies[a["category_id"]] != "r"]


def without_novel(content: dict) -> list[dict]:
    """Return the annotations of an LV-VIS file whose category is not novel.

    Raises:
        ValueError: a category has no partition, so the file is not LV-VIS's.
    """
    categories = index_by_id("category", content["categories"], {"name": TEXT}).values()
    annotations = check_entries("annotation", content["annotations"], {"category_id": WHOLE})
    for category in categories:
        if category.get("partition") not in PARTITIONS:
            raise ValueError(
                f"Category {category['id']} ({category['name']!r}) has the partition "
                f"{category.get('partition')!r}; LV-VIS's categories have one of {PARTITIONS}."
            )
    novel = {c["id"] for c in categories if c["partition"] in NOVEL_PARTITIONS}
    return [a for a in annotations if a["category_id"] not in novel]
