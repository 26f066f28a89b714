#!/usr/bin/env python
"""Remove the annotations of rare categories from an LVIS annotation file.

    python tools/remove_lvis_rare.py --ann datasets/lvis/lvis_v1_train.json

writes datasets/lvis/lvis_v1_train_norare.json: the training set in which rare categories are novel.
Images and categories stay.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ovformer.data.files.json_file import (
    WHOLE,
    check_entries,
    index_by_id,
    name_file_in_errors,
    read_json,
    write_json,
)
from ovformer.paths import resolve_path


def main(argv: Sequence[str] | None = None) -> None:
    """Read, filter, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ann",
        default="datasets/lvis/lvis_v1_train.json",
        help="LVIS annotation file (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, help="file to write (default: beside --ann, with _norare in its name)"
    )
    args = parser.parse_args(argv)
    source = resolve_path(args.ann)
    target = args.out or source.with_name(f"{source.stem}_norare.json")

    content = read_json(source, ("annotations", "categories"))
    with name_file_in_errors(source):
        kept = without_rare(content)
    before, content["annotations"] = len(content["annotations"]), kept
    write_json(target, content)
    print(f"{target}: {len(content['annotations'])} of {before} annotations kept")


def without_rare(content: dict) -> list[dict]:
    """Return the annotations whose category is not rare.

    Args:
        content: an LVIS annotation file.

    Raises:
        ValueError: a category has no frequency, or an annotation is of none of the categories.
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


if __name__ == "__main__":
    main()
