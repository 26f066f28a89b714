#!/usr/bin/env python
"""Draw the ``shapes`` benchmark: images with annotations in LVIS v1 format, and videos.

    python tools/make_shapes.py --output datasets/shapes

Training images and videos show objects of the 27 base categories only, those of validation of all
36. The videos' annotations are in the format of YouTube-VIS. The same arguments give the same
bytes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ovformer.arguments import exit_on_user_error
from ovformer.data.files.json_file import write_json
from ovformer.paths import dataset_root
from ovformer_tools.shape_scenes import (
    BASE_INDICES,
    CATEGORY_NAMES,
    NOVEL_NAMES,
    MovingScene,
    Scene,
    draw_moving_scene,
    draw_scene,
)

MAX_OBJECTS = 5
# Annotation files, under the names that the registered data sets expect.
JSON_NAMES = {"train": "shapes_train_norare.json", "val": "shapes_val.json"}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the data set that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=dataset_root() / "shapes",
        help="folder to write (default: shapes under the dataset root)",
    )
    parser.add_argument("--train-images", type=int, default=4000)
    parser.add_argument("--val-images", type=int, default=400)
    parser.add_argument("--train-videos", type=int, default=200)
    parser.add_argument("--val-videos", type=int, default=80)
    parser.add_argument("--frames", type=int, default=8, help="of each video")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        make_data_set(args)


def make_data_set(args: argparse.Namespace) -> None:
    """Draw images and videos of both splits and write their annotation files."""
    if args.size < 8:  # the fine texture of the background has size // 8 cells
        raise ValueError(f"--size: expected 8 or more pixels, got {args.size}")
    shown = {"train": BASE_INDICES, "val": tuple(range(len(CATEGORY_NAMES)))}
    counts = {"train": args.train_images, "val": args.val_images}
    # The category table of LVIS has the counts of the training set, in both files.
    table = None
    for number, split in enumerate(counts):
        seeds = [args.seed, number]
        record = draw_split(args.output, split, shown[split], counts[split], args.size, seeds)
        table = table or category_table(record)
        path = args.output / JSON_NAMES[split]
        write_json(path, {**record, "categories": table})
        print(f"{path}: {counts[split]} images, {len(record['annotations'])} objects")
    # Videos have seeds of their own: 2 and 3, where images have 0 and 1.
    counts = {"train": args.train_videos, "val": args.val_videos}
    for number, split in enumerate(counts, start=len(counts)):
        record = draw_videos(
            args.output / f"video_{split}",
            shown[split],
            counts[split],
            args.frames,
            args.size,
            [args.seed, number],
        )
        path = args.output / f"shapes_video_{split}.json"
        write_json(path, {**record, "categories": table})
        print(f"{path}: {counts[split]} videos, {len(record['annotations'])} objects")


def draw_split(
    folder: Path, split: str, shown: Sequence[int], count: int, size: int, seeds: Sequence[int]
) -> dict:
    """Draw and write the images of one split.

    Args:
        folder: images go to ``folder/split/000001.png`` and so on.
        split: "train" or "val".
        shown: indices of the categories that may be drawn; those absent from an image are its
            negatives.
        count: number of images.
        size: side of the images in pixels.
        seeds: with the number of the image, they seed its random numbers.

    Returns:
        The LVIS record without its categories.
    """
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in tqdm(range(1, count + 1), desc=f"drawing {split}", mininterval=2):
        rng = np.random.default_rng([*seeds, image_id])
        scene = draw_scene(rng, rng.choice(shown, rng.integers(1, MAX_OBJECTS + 1)), size)
        name = f"{split}/{image_id:06d}.png"
        write_image(folder / name, scene.image)
        absent = set(shown) - set(scene.categories)
        images.append(
            {
                "id": image_id,
                "width": size,
                "height": size,
                "coco_url": f"shapes/{name}",
                "neg_category_ids": sorted(int(index) + 1 for index in absent),
                "not_exhaustive_category_ids": [],
            }
        )
        for annotation in object_annotations(scene):
            annotation.update(id=len(annotations) + 1, image_id=image_id)
            annotations.append(annotation)
    return {
        "info": {"description": "Shapes, a generated open-vocabulary benchmark", "version": "1"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
    }


def object_annotations(scene: Scene) -> list[dict]:
    """Return an annotation for each object of a scene, its visible part as RLE."""
    annotations = []
    for category, mask in zip(scene.categories, scene.masks, strict=True):
        rle = encode(mask)
        annotations.append(
            {
                "category_id": int(category) + 1,
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": float(mask.sum()),
                "segmentation": rle,
            }
        )
    return annotations


def draw_videos(
    folder: Path, shown: Sequence[int], count: int, frames: int, size: int, seeds: Sequence[int]
) -> dict:
    """Draw and write the videos of one split.

    Args:
        folder: frames go to ``folder/000001/00000.png`` and so on.
        shown: indices of the categories that may be drawn.
        count: number of videos.
        frames: number of frames of each video.
        size: side of the frames in pixels.
        seeds: with the number of the video, they seed its random numbers.

    Returns:
        The record in the format of YouTube-VIS, without its categories.
    """
    videos, annotations = [], []
    for video_id in tqdm(range(1, count + 1), desc=f"drawing {folder.name}", mininterval=2):
        rng = np.random.default_rng([*seeds, video_id])
        categories = rng.choice(shown, rng.integers(1, MAX_OBJECTS + 1))
        scene = draw_moving_scene(rng, categories, frames, size)
        names = [f"{video_id:06d}/{t:05d}.png" for t in range(frames)]
        (folder / names[0]).parent.mkdir(parents=True, exist_ok=True)
        for name, image in zip(names, scene.images, strict=True):
            write_image(folder / name, image)
        videos.append(
            {"id": video_id, "width": size, "height": size, "length": frames, "file_names": names}
        )
        for annotation in track_annotations(scene):
            annotation.update(id=len(annotations) + 1, video_id=video_id)
            annotations.append(annotation)
    return {"videos": videos, "annotations": annotations}


def track_annotations(scene: MovingScene) -> list[dict]:
    """Return an annotation for each object of a moving scene, its visible parts as RLE."""
    return [
        {
            "category_id": int(category) + 1,
            "iscrowd": 0,
            "areas": [float(mask.sum()) or None for mask in tube],
            "segmentations": [encode(mask) if mask.any() else None for mask in tube],
        }
        for category, tube in zip(scene.categories, scene.masks, strict=True)
    ]


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 (H, W, 3), RGB, or raise OSError."""
    if not cv2.imwrite(str(path), image[..., ::-1]):
        raise OSError(f"{path}: the image could not be written")


def encode(mask: np.ndarray) -> dict:
    """Return the RLE of a mask, bool (H, W), for an annotation file."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def category_table(record: dict) -> list[dict]:
    """Return LVIS category entries with the counts of ``record``; novel names are rare ("r")."""
    images_of: dict[int, set] = {}
    instances: dict[int, int] = {}
    for annotation in record["annotations"]:
        category = annotation["category_id"]
        images_of.setdefault(category, set()).add(annotation["image_id"])
        instances[category] = instances.get(category, 0) + 1
    return [
        {
            "id": number,
            "name": name,
            "synset": f"{name.replace(' ', '_')}.n.01",
            "synonyms": [name],
            "def": f"a {name}",
            "frequency": "r" if name in NOVEL_NAMES else "f",
            "image_count": len(images_of.get(number, ())),
            "instance_count": instances.get(number, 0),
        }
        for number, name in enumerate(CATEGORY_NAMES, start=1)
    ]


if __name__ == "__main__":
    main()
