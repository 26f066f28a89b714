#!/usr/bin/env python
"""Convert exports of annotation tools to a data set in the format of YouTube-VIS.

    python tools/convert_annotations.py exports/*.zip --media videos/ --output datasets/birds \
        --val 0.2

reads CVAT's XML 1.1 (for video and for images), Label Studio's JSON and COCO's JSON of frames, as
files or inside a zip file, and writes annotations.json and frames/ into the output folder; with
--val also train.json and val.json, which share the videos. Videos are decoded to JPEGs, frames in
files are copied. What was skipped is counted at the end. docs/tutorial.md shows what comes next.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from ovformer.arguments import exit_on_user_error, positive_int
from ovformer.data.exports.coco_frames import read_coco
from ovformer.data.exports.cvat import read_cvat
from ovformer.data.exports.label_studio import read_label_studio
from ovformer.data.exports.media import Folder, MediaLibrary, open_export
from ovformer.data.exports.tracks import AnnotatedVideo, Export
from ovformer.data.exports.youtube_vis import (
    check_boxes,
    convert_video,
    make_folder_names,
    select_videos,
    split_videos,
    write_frames,
)
from ovformer.data.files.json_file import write_json
from ovformer.files import sha256


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the exports that the command line names."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        convert(args)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("exports", type=Path, nargs="+", metavar="EXPORT", help=".zip, .xml or .json")
    add("--output", type=Path, required=True, help="folder of the data set")
    add(
        "--media",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="videos, or folders of videos or frames (default: inside the zip file, or the folder "
        "of the export)",
    )
    add("--val", type=part, default=0.0, metavar="PART", help="part of the videos for validation")
    add("--seed", type=int, default=0, help="of the choice of these videos (default: %(default)s)")
    add("--every", type=positive_int, default=1, metavar="N", help="keep every Nth frame")
    add(
        "--boxes-as-masks",
        action="store_true",
        help="take boxes as masks; without it, an object that has only a box is an error",
    )
    add(
        "--track-by",
        default="track_id",
        metavar="NAME",
        help="attribute that says which object of a video a shape on an image belongs to (default: "
        "%(default)s; in CVAT also the group)",
    )
    add(
        "--single-frames",
        action="store_true",
        help="make shapes without that attribute objects of one frame, instead of an error",
    )
    return parser


def part(text: str) -> float:
    """Parse a number from 0 to less than 1."""
    if not 0 <= (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to less than 1, got {text}")
    return value


def convert(args: argparse.Namespace) -> None:
    """Convert all exports. Nothing is written before all annotations are read."""
    media = [Folder(path) for path in args.media]
    pairs: list[tuple[AnnotatedVideo, Export]] = []
    exports, classes, digests = [], {}, {}
    for path in args.exports:
        with open_export(path) as (file, own):
            first = digests.setdefault(sha256(path), path)
            if first is not path:
                raise ValueError(
                    f"{path}: the same export as {first}: its videos would occur twice, with "
                    "--val perhaps in both parts. Name it once."
                )
            places = [own, *media] if own else media or [Folder(path.parent)]
            library = MediaLibrary(places)
            exports.append(Export(str(path), library, args.track_by, args.single_frames))
            videos, names = read(path, file, exports[-1])
        classes |= dict.fromkeys(names)
        pairs += [(video, exports[-1]) for video in videos]
    if not pairs:
        raise ValueError("no video in these exports.")
    if not args.boxes_as_masks:
        check_boxes(video for video, _ in pairs)
    chosen, content = convert_all(pairs, list(classes), args.every)
    parts = {"annotations": content}
    if args.val:
        ids = [video["id"] for video in content["videos"]]
        train_ids, val_ids = split_videos(ids, args.val, args.seed)
        parts["train"] = select_videos(content, train_ids)
        parts["val"] = select_videos(content, val_ids)
    # The parts share these records of videos, so file names that are set here stand in all of them.
    for record, (video, _), positions in tqdm(
        list(zip(content["videos"], pairs, chosen, strict=True)), desc="frames", unit="video"
    ):
        name = record["file_names"]
        record["file_names"] = write_frames(video, args.output / "frames", name, positions)
    for name, content in parts.items():
        write_json(args.output / f"{name}.json", content)
    print_summary(args.output, parts, exports)


def read(path: Path, file: BinaryIO, export: Export) -> tuple[list[AnnotatedVideo], list[str]]:
    """Read an export of CVAT, Label Studio or COCO, found out by its beginning."""
    start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    file.seek(0)
    if start.startswith(b"<"):
        return read_cvat(file, export)
    try:
        content = json.load(file)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: neither XML nor JSON ({error}). Is it cut off?") from error
    if isinstance(content, list):
        return read_label_studio(content, export)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a single value instead of annotations.")
    if "images" not in content and "videos" in content:
        raise ValueError(f"{path}: already in the format of YouTube-VIS. Use it as it is.")
    return read_coco(content, export)


def convert_all(
    pairs: Sequence[tuple[AnnotatedVideo, Export]], classes: Sequence[str], every: int
) -> tuple[list[range], dict]:
    """Return which frames of each video are kept, and the content of the annotation file.

    "file_names" of a video in it is still the name of the video's folder.
    """
    ids = {name: number for number, name in enumerate(classes, start=1)}
    videos, annotations, chosen = [], [], []
    names = make_folder_names(video.name for video, _ in pairs)
    for number, ((video, export), name) in enumerate(
        zip(tqdm(pairs, desc="annotations", unit="video"), names, strict=True), start=1
    ):
        length, size = video.frames.probe()
        chosen.append(range(0, length, every))
        videos.append(
            {
                "id": number,
                "height": size[0],
                "width": size[1],
                "length": len(chosen[-1]),
                "file_names": name,
            }
        )
        for annotation in convert_video(video, length, size, chosen[-1], export):
            category_id = ids[annotation.pop("category")]
            own = {"id": len(annotations) + 1, "video_id": number, "category_id": category_id}
            annotations.append(own | annotation)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return chosen, {"videos": videos, "annotations": annotations, "categories": categories}


def print_summary(output: Path, parts: dict[str, dict], exports: Sequence[Export]) -> None:
    """Print what was written, how often each class occurs, and what was skipped."""
    for name, content in parts.items():
        frames = sum(video["length"] for video in content["videos"])
        masks = sum(sum(map(bool, a["segmentations"])) for a in content["annotations"])
        print(
            f"{output / name}.json: {len(content['videos'])} videos, {frames} frames, "
            f"{len(content['annotations'])} objects with {masks} masks"
        )
    counts = {
        name: Counter(a["category_id"] for a in content["annotations"])
        for name, content in parts.items()
    }
    for category in parts["annotations"]["categories"]:
        numbers = ", ".join(f"{name} {count[category['id']]}" for name, count in counts.items())
        print(f"  {category['name']}: {numbers}")
    skipped = sum((export.skipped for export in exports), Counter())
    for reason, number in sorted(skipped.items()):
        print(f"Left out: {number} x {reason}")
    for note in (note for export in exports for note in export.notes):
        print(f"Note: {note}")


if __name__ == "__main__":
    main()
