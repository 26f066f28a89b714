#!/usr/bin/env python
"""Remove the annotations of novel categories from LV-VIS, for training.

    python tools/remove_lvvis_novel.py --ann datasets/LVVIS/train/train_instances_.json

writes datasets/LVVIS/train/train_instances_nonovel.json. Videos and categories stay.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ovformer.data.files.json_file import (
    TEXT,
    WHOLE,
    check_entries,
    index_by_id,
    name_file_in_errors,
    read_json,
    write_json,
)
from ovformer.paths import resolve_path

# LV-VIS's own partitions: 0 and 1 are base, 2 and 3 novel categories.
PARTITIONS = (0, 1, 2, 3)
NOVEL_PARTITIONS = (2, 3)


def main(argv: Sequence[str] | None = None) -> None:
    """Read, filter, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ann",
        default="datasets/LVVIS/train/train_instances_.json",
        help="LV-VIS annotation file (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, help="file to write (default: beside --ann, named *_nonovel.json)"
    )
    args = parser.parse_args(argv)
    source = resolve_path(args.ann)
    target = args.out or source.with_name(f"{source.stem.rstrip('_')}_nonovel.json")

    content = read_json(source, ("annotations", "categories"))
    with name_file_in_errors(source):
        kept = without_novel(content)
    before, content["annotations"] = len(content["annotations"]), kept
    write_json(target, content)
    print(f"{target}: {len(content['annotations'])} of {before} annotations kept")


def without_novel(content: dict) -> list[dict]:
    """Return the annotations whose category is not novel.

    Args:
        content: an LV-VIS annotation file.

    Raises:
        ValueError: a category has no partition, so that the file is not LV-VIS's.
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
    return [
        annotation
        for annotation in tqdm(annotations, unit="annotation")
        if annotation["category_id"] not in novel
    ]


if __name__ == "__main__":
    main()
