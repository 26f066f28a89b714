#!/usr/bin/env python
"""Count images and instances of each category of an LVIS annotation file.

    python tools/get_lvis_cat_info.py --ann datasets/lvis/lvis_v1_train.json

writes datasets/metadata/lvis_v1_train_cat_info.json, a list of categories for
MODEL.MASK_FORMER.CAT_INFO_PATH. The federated loss draws classes by these counts.
"""

import argparse
from collections.abc import Sequence

from ovformer_tools.category_files import make_parser, write_counts


def main(argv: Sequence[str] | None = None) -> None:
    """Count the categories of the annotation file and write the counts."""
    out = "metadata/<name of --ann>_cat_info.json in the dataset root"
    parser = make_parser(__doc__, "datasets/lvis/lvis_v1_train.json", out)
    add = parser.add_argument
    add("--add_freq", action="store_true", help="derive frequencies (r, c, f) from image counts")
    add("--r_thresh", type=int, default=10, help="rare: fewer images than this (%(default)s)")
    add("--c_thresh", type=int, default=100, help="common: fewer images than this (%(default)s)")
    keys = ("annotations", "categories")
    write_counts(parser, argv, keys, lambda stem: f"{stem}_cat_info.json", frequency)


def frequency(image_count: int, args: argparse.Namespace) -> str:
    """Return "r", "c" or "f" by LVIS's rule."""
    if image_count < args.r_thresh:
        return "r"
    return "c" if image_count < args.c_thresh else "f"


if __name__ == "__main__":
    main()
