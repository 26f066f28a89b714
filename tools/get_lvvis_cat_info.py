#!/usr/bin/env python
"""Count frames and instances of each category of LV-VIS, or of another set of videos.

    python tools/get_lvvis_cat_info.py --ann datasets/LVVIS/train/train_instances_nonovel.json \
        --add_freq

writes datasets/metadata/lvvis_train_cat_info.json, a list of categories for
MODEL.MASK_FORMER.CAT_INFO_PATH. The federated loss draws classes by these counts. A video counts as
all of its frames.
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
        default="datasets/LVVIS/train/train_instances_nonovel.json",
        help="annotation file in YouTube-VIS format (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write (default: metadata/lvvis_train_cat_info.json in the dataset root)",
    )
    parser.add_argument(
        "--add_freq",
        action="store_true",
        help='add "frequency": b (base) for categories that occur, n (novel) for the others; the '
        "training needs it",
    )
    args = parser.parse_args(argv)
    source = resolve_path(args.ann)
    target = args.out or dataset_root() / "metadata" / "lvvis_train_cat_info.json"

    content = read_json(source, ("videos", "annotations", "categories"))
    with name_file_in_errors(source):
        categories = count_categories(content)
    if args.add_freq:
        for category in categories:
            category["frequency"] = "b" if category["image_count"] else "n"
    write_json(target, categories)
    groups = Counter(category.get("frequency", "none") for category in categories)
    counts = ", ".join(f"{name}: {count}" for name, count in sorted(groups.items()))
    print(f"{target}: {len(categories)} categories; frequency {counts}")


if __name__ == "__main__":
    main()
