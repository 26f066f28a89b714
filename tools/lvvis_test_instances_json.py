#!/usr/bin/env python
"""List the videos of LV-VIS's test set, which comes without an annotation file.

    python tools/lvvis_test_instances_json.py

writes datasets/LVVIS/test/test_instances.json from the frames in datasets/LVVIS/test/JPEGImages and
the categories of the validation set. Videos are numbered in the order of their names, from 0.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ovformer.arguments import exit_on_user_error
from ovformer.data.files.image_files import IMAGE_ERRORS
from ovformer.data.files.json_file import (
    TEXT,
    index_by_id,
    name_file_in_errors,
    read_json,
    write_json,
)
from ovformer.paths import resolve_path

SUFFIXES = (".jpg", ".jpeg", ".png")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the list of the videos in a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images",
        default="datasets/LVVIS/test/JPEGImages",
        help="folder with a folder of frames for each video (default: %(default)s)",
    )
    parser.add_argument(
        "--categories",
        default="datasets/LVVIS/val/val_instances_.json",
        help="annotation file to take the categories from (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, help="file to write (default: test_instances.json beside --images)"
    )
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        write_list(args)


def write_list(args: argparse.Namespace) -> None:
    """Read the folders of frames and the categories, and write the annotation file."""
    images = resolve_path(args.images)
    target = args.out or images.parent / "test_instances.json"
    source = resolve_path(args.categories)
    categories = read_json(source, ("categories",))["categories"]
    with name_file_in_errors(source):
        index_by_id("category", categories, {"name": TEXT})
    videos = list_videos(images)
    write_json(target, {"videos": videos, "categories": categories})
    print(f"{target}: {len(videos)} videos, {sum(video['length'] for video in videos)} frames")


def list_videos(folder: Path) -> list[dict]:
    """Return the "videos" of an annotation file, in the order of their names.

    Args:
        folder: holds a folder of frames for each video.

    Raises:
        FileNotFoundError: there is no video, or a video has no frames.
        ValueError: the first frame of a video cannot be read.
    """
    names = sorted(path.name for path in folder.glob("*") if path.is_dir())
    if not names:
        raise FileNotFoundError(
            f"--images: no folder of a video in {folder}. datasets/README.md says how LV-VIS is "
            "laid out."
        )
    videos = []
    for number, name in enumerate(tqdm(names, unit="video")):
        files = sorted(p.name for p in (folder / name).iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{folder / name} holds no frame ({', '.join(SUFFIXES)}).")
        try:
            # The size is in the header, so the frame itself is not decoded.
            with Image.open(folder / name / files[0]) as frame:
                width, height = frame.size
        except IMAGE_ERRORS as error:
            raise ValueError(f"{folder / name / files[0]}: no image that can be read.") from error
        videos.append(
            {
                "id": number,
                "width": width,
                "height": height,
                "length": len(files),
                "file_names": [f"{name}/{file}" for file in files],
            }
        )
    return videos


if __name__ == "__main__":
    main()
