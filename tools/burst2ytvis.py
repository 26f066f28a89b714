#!/usr/bin/env python
"""Convert BURST's annotations to the format of YouTube-VIS.

    python tools/burst2ytvis.py --ann datasets/burst/val/all_classes.json \
        --split datasets/burst/info/class_split.json --out datasets/burst/b2y_val.json

Categories are numbered from 1 in BURST's order. As in files of the published tool, the videos'
lists of categories that are absent or not exhaustively annotated keep BURST's own ids, to which
"cate_ori" is the key.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence

from tqdm import tqdm

from ovformer.arguments import exit_on_user_error
from ovformer.data.files.json_file import (
    IDS,
    LIST,
    OBJECT,
    SIDE,
    TEXT,
    TEXTS,
    check_entries,
    index_by_id,
    name_file_in_errors,
    read_json,
    shorten,
    write_json,
)
from ovformer.data.files.untrusted_masks import find_fault
from ovformer.paths import resolve_path

SEQUENCE = {
    "seq_name": TEXT,
    "dataset": TEXT,
    "width": SIDE,
    "height": SIDE,
    "annotated_image_paths": TEXTS,
    "segmentations": LIST,
    "track_category_ids": OBJECT,
    "neg_category_ids": IDS,
    "not_exhaustive_category_ids": IDS,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ann",
        default="datasets/burst/val/all_classes.json",
        help="BURST's annotation file of all classes (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        default="datasets/burst/info/class_split.json",
        help="BURST's lists of common and uncommon classes (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        default="datasets/burst/b2y_val.json",
        help="file to write (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        convert_file(args)


def convert_file(args: argparse.Namespace) -> None:
    """Read BURST's files, convert them and write the annotation file."""
    keys = ("sequences", "categories", "split")
    source, split_file = resolve_path(args.ann), resolve_path(args.split)
    content = read_json(source, keys)
    split = read_json(split_file, ("common", "uncommon"))
    with name_file_in_errors(split_file):
        check_entries("split", [split], {"common": IDS, "uncommon": IDS})
    with name_file_in_errors(source):
        converted = convert(content, split)
    target = resolve_path(args.out)
    write_json(target, converted)
    print(
        f"{target}: {len(converted['videos'])} videos, {len(converted['annotations'])} tracks, "
        f"{len(converted['categories'])} categories"
    )


def convert(content: Mapping, split: Mapping[str, Sequence[int]]) -> dict:
    """Return an annotation file in the format of YouTube-VIS.

    Args:
        content: BURST's annotation file.
        split: BURST's ids of the "common" and "uncommon" categories.

    Raises:
        ValueError: a video or track is incomplete.
    """
    originals = index_by_id("category", content["categories"], {"name": TEXT})
    own_ids = {original: number for number, original in enumerate(originals, 1)}
    groups = {number: name for name in ("common", "uncommon") for number in split[name]}
    categories = []
    for category in content["categories"]:
        number = category["id"]
        group = {"split": groups[number]} if number in groups else {}
        categories.append({**category, "id": own_ids[number], **group})
    videos, annotations, track_ids = [], [], {}
    sequences = index_by_id("BURST video", content["sequences"], SEQUENCE).values()
    for sequence in tqdm(sequences, unit="video"):
        videos.append(_video(sequence))
        numbers = track_ids[str(sequence["id"])] = {}
        for track, annotation in _tracks(sequence, own_ids):
            numbers[track] = len(annotations) + 1
            annotations.append({"id": len(annotations) + 1, **annotation})
    return {
        "videos": videos,
        "annotations": annotations,
        "categories": categories,
        "cate_ori": content["categories"],
        "track_id_mapping": track_ids,
        "split": content["split"],
    }


def _video(sequence: Mapping) -> dict:
    frames = sequence["annotated_image_paths"]
    if len(sequence["segmentations"]) != len(frames):
        raise ValueError(
            f"BURST video {sequence['id']} ({sequence['seq_name']}) has {len(frames)} annotated "
            f"images, but segmentations of {len(sequence['segmentations'])}."
        )
    folder = f"{sequence['dataset']}/{sequence['seq_name']}"
    return {
        "id": sequence["id"],
        "width": sequence["width"],
        "height": sequence["height"],
        "length": len(frames),
        "neg_category_ids": sequence["neg_category_ids"],
        "not_exhaustive_category_ids": sequence["not_exhaustive_category_ids"],
        "file_names": [f"{folder}/{frame}" for frame in frames],
        "metadata": {"dataset": sequence["dataset"]},
    }


def _tracks(sequence: Mapping, own_ids: Mapping[int, int]) -> Iterator[tuple[str, dict]]:
    """Yield BURST's number of each track of a video, and the annotation without its id."""
    size = [sequence["height"], sequence["width"]]
    place = f"BURST video {sequence['id']}"
    for frame in check_entries(f"{place}: frame", sequence["segmentations"], {}):
        check_entries(f"{place}: mask", list(frame.values()), {"rle": TEXT})
    for track, category in sequence["track_category_ids"].items():
        # BURST writes the category as a number or as its digits.
        if not isinstance(category, int | str) or str(category) not in map(str, own_ids):
            raise ValueError(
                f"{place}: track {track} has category {shorten(category)}, which is "
                f"not among the file's {len(own_ids)} categories."
            )
        masks = [
            {"size": size, "counts": frame[track]["rle"]} if track in frame else None
            for frame in sequence["segmentations"]
        ]
        if fault := find_fault(mask for mask in masks if mask):
            raise ValueError(f"{place}: track {track} has a mask that is not valid: {fault.reason}")
        yield (
            track,
            {
                "video_id": sequence["id"],
                "category_id": own_ids[int(category)],
                "width": sequence["width"],
                "height": sequence["height"],
                "segmentations": masks,
            },
        )


if __name__ == "__main__":
    main()
