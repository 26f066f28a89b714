#!/usr/bin/env python
"""Count frames and instances of each category of LV-VIS, or of another set of videos.

    python tools/get_lvvis_cat_info.py --ann datasets/LVVIS/train/train_instances_nonovel.json \
        --add_freq

writes datasets/metadata/lvvis_train_cat_info.json, a list of categories for
MODEL.MASK_FORMER.CAT_INFO_PATH. The federated loss draws classes by these counts. A video counts as
all of its frames.
"""

import argparse
from collections.abc import Sequence

from ovformer_tools.category_files import make_parser, write_counts


def main(argv: Sequence[str] | None = None) -> None:
    """Count the categories of the annotation file and write the counts."""
    out = "metadata/lvvis_train_cat_info.json in the dataset root"
    parser = make_parser(__doc__, "datasets/LVVIS/train/train_instances_nonovel.json", out)
    parser.add_argument(
        "--add_freq",
        action="store_true",
        help='add "frequency": b (base) for categories that occur, n (novel) for the others; '
        "training needs it",
    )
    keys = ("videos", "annotations", "categories")
    write_counts(parser, argv, keys, lambda stem: "lvvis_train_cat_info.json", frequency)


def frequency(frame_count: int, args: argparse.Namespace) -> str:
    """Return "b" for a category that occurs, else "n"."""
    return "b" if frame_count else "n"


if __name__ == "__main__":
    main()
