#!/usr/bin/env python
"""Count images and instances of each category of an LVIS annotation file.

    python tools/get_lvis_cat_info.py --ann datasets/lvis/lvis_v1_train.json

writes datasets/metadata/lvis_v1_train_cat_info.json, a list of categories for
MODEL.MASK_FORMER.CAT_INFO_PATH. The federated loss draws classes by these counts.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ovformer.data.catalog.category_counts import count_categories
from ovformer.data.files.json_file import name_file_in_errors, read_json, write_json
from ovformer.paths import dataset_root, resolve_path


def main(argv: Sequence[str] | None = None) -> None:
    """Read, count, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ann",
        default="datasets/lvis/lvis_v1_train.json",
        help="LVIS annotation file (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write (default: metadata/<name of --ann>_cat_info.json in the dataset root)",
    )
    parser.add_argument(
        "--add_freq", action="store_true", help="derive frequencies (r, c, f) from image counts"
    )
    parser.add_argument(
        "--r_thresh", type=int, default=10, help="rare: fewer images than this (%(default)s)"
    )
    parser.add_argument(
        "--c_thresh", type=int, default=100, help="common: fewer images than this (%(default)s)"
    )
    args = parser.parse_args(argv)
    source = resolve_path(args.ann)
    target = args.out or dataset_root() / "metadata" / f"{source.stem}_cat_info.json"

    content = read_json(source, ("annotations", "categories"))
    with name_file_in_errors(source):
        categories = count_categories(content)
    if args.add_freq:
        for category in categories:
            category["frequency"] = frequency(category["image_count"], args.r_thresh, args.c_thresh)
    write_json(target, categories)
    groups = Counter(category.get("frequency", "none") for category in categories)
    counts = ", ".join(f"{name}: {count}" for name, count in sorted(groups.items()))
    print(f"{target}: {len(categories)} categories; frequency {counts}")


def frequency(image_count: int, rare_below: int, common_below: int) -> str:
    """Return "r", "c" or "f" by LVIS's rule."""
    if image_count < rare_below:
        return "r"
    return "c" if image_count < common_below else "f"


if __name__ == "__main__":
    main()
