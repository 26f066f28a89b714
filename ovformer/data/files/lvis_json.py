"""Reads annotation files in the format of LVIS v1, or COCO, which lacks two of its fields."""

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ovformer.d2 import BoxMode
from ovformer.data.files.image_embeddings import make_image_key
from ovformer.data.files.json_file import (
    BOX,
    IDS,
    SIDE,
    TEXT,
    WHOLE,
    Kind,
    check_entries,
    index_by_id,
    name_file_in_errors,
    read_json,
)
from ovformer.data.files.untrusted_masks import (
    check_num_pixels,
    check_polygons,
    find_fault,
    runs_to_rle,
)

# LVIS's own split: c(ommon) and f(requent) categories are trained, r(are) ones are novel.
BASE_AND_NOVEL = {"base": ("frequency", ("c", "f")), "novel": ("frequency", ("r",))}

_IMAGE = {"height": SIDE, "width": SIDE}
_IMAGE_OPTIONS = {
    "file_name": TEXT,
    "coco_url": TEXT,
    "neg_category_ids": IDS,
    "not_exhaustive_category_ids": IDS,
}
_ANNOTATION = {
    "image_id": WHOLE,
    "category_id": WHOLE,
    "bbox": BOX,
    "segmentation": Kind("polygons or an RLE", lambda value: isinstance(value, list | dict)),
}

logger = logging.getLogger(__name__)


def read_lvis_json(path: Path, image_folder: Path, categories: Sequence[dict]) -> list[dict]:
    """Read an LVIS annotation file.

    Args:
        path: the annotation file.
        image_folder: the folder in which images lie, under the last two parts of their "coco_url"
            ("train2017/000000000009.jpg"), or under their "file_name" where they have that.
        categories: the category table; its order defines the contiguous category ids.

    Returns:
        The dataset dicts that :mod:`ovformer.data` describes, by image id. Polygons are float64
        arrays, uncompressed RLEs are compressed.

    Raises:
        ValueError: the file is not valid; the message names the file, the entry and the error.
    """
    content = read_json(path, ("images", "annotations"), object_hook=_compact)
    contiguous_ids = {category["id"]: index for index, category in enumerate(categories)}
    with name_file_in_errors(path):
        # First: the name of a foreign category says more than an id that is unknown.
        _check_categories(content.get("categories", []), categories)
        records = _make_records(content["images"], image_folder)
        # Popped here and below, so that the raw entries are freed while the records are built.
        annotations = _group_by_image(content.pop("annotations"), records)
        for image_id, record in records.items():
            record["annotations"] = [
                _make_instance(annotation, record, contiguous_ids)
                for annotation in annotations.pop(image_id, ())
            ]
    logger.info("%s: %d images", path, len(records))
    return [records[image_id] for image_id in sorted(records)]


def parse_image_name(image: Mapping) -> str:
    """Return the path of an image below the folder of images; see :func:`read_lvis_json`."""
    return image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])


def _compact(entry: dict) -> dict:
    """Turn the polygons of an annotation into arrays, with an eighth of the memory of lists."""
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list):
        try:
            entry["segmentation"] = [np.asarray(p, dtype=np.float64) for p in segmentation]
        except (OverflowError, TypeError, ValueError):
            pass  # check_polygons reports that these are not numbers
    return entry


def _check_categories(found: object, table: Sequence[dict]) -> None:
    names = {category["id"]: category["name"] for category in table}
    for category in check_entries("category", found, {"id": WHOLE, "name": TEXT}):
        number, name = category["id"], category["name"]
        if names.get(number) != name:
            raise ValueError(
                f"category {number} is {name!r}, but {names.get(number)!r} in the category "
                f"table ({len(names)} categories). The file belongs to another data set, or to "
                "another version of it."
            )


def _make_records(images: object, image_folder: Path) -> dict[int, dict]:
    records = {}
    for number, image in index_by_id("image", images, _IMAGE, _IMAGE_OPTIONS).items():
        if not (image.get("file_name") or image.get("coco_url")):
            raise ValueError(f"image {number} has no 'file_name' or 'coco_url'.")
        check_num_pixels(f"image {number}", image["height"], image["width"])
        file_name = os.path.join(image_folder, parse_image_name(image))
        records[number] = {
            "file_name": file_name,
            "clip_key": make_image_key(file_name),
            "image_id": number,
            "height": image["height"],
            "width": image["width"],
            "neg_category_ids": image.get("neg_category_ids", []),
            "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
        }
    return records


def _group_by_image(annotations: object, records: dict[int, dict]) -> dict[int, list[dict]]:
    groups: dict[int, list[dict]] = defaultdict(list)
    found = index_by_id("annotation", annotations, _ANNOTATION, {"iscrowd": WHOLE})
    for number, annotation in found.items():
        if annotation["image_id"] not in records:
            raise ValueError(
                f"annotation {number} belongs to image {annotation['image_id']}, "
                "which is not among the file's images."
            )
        groups[annotation["image_id"]].append(annotation)
    return groups


def _make_instance(annotation: dict, record: dict, contiguous_ids: dict[int, int]) -> dict:
    place = f"annotation {annotation['id']}"
    category = annotation["category_id"]
    if category not in contiguous_ids:
        raise ValueError(
            f"{place} has category id {category}, which is not in the category table (its "
            f"{len(contiguous_ids)} ids go from {min(contiguous_ids)} to {max(contiguous_ids)})."
        )
    segmentation, size = annotation["segmentation"], (record["height"], record["width"])
    try:
        if isinstance(segmentation, dict):
            segmentation = _check_rle(segmentation, size)
        else:
            check_polygons(segmentation, *size)
    except ValueError as error:
        raise ValueError(f"{place}: segmentation: {error}.") from error
    return {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": contiguous_ids[category],
        "segmentation": segmentation,
        "iscrowd": annotation.get("iscrowd", 0),
    }


def _check_rle(rle: dict, size: tuple[int, int]) -> dict:
    """Check that an RLE covers the image exactly, and return it compressed."""
    if rle.get("size") != list(size):
        raise ValueError(
            f"an RLE of size {rle.get('size')!r:.60}; expected [height, width] of its image, "
            f"{list(size)}"
        )
    if isinstance(rle.get("counts"), list):
        return runs_to_rle(list(size), rle["counts"])
    if fault := find_fault([rle]):
        raise ValueError(fault.reason)
    return rle
