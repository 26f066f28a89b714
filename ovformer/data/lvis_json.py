"""Reads annotation files in LVIS v1 format (also COCO's, which has the same fields but two)."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.d2 import BoxMode
from ovformer.data.clip_features import clip_key
from ovformer.data.json_file import read_json

# LVIS's own split: c(ommon) and f(requent) categories are trained, r(are) ones are novel.
BASE_AND_NOVEL = {"base": ("frequency", ("c", "f")), "novel": ("frequency", ("r",))}

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
        ValueError: the file is not valid; the message names it, the faulty entry and what is wrong.
    """
    content = read_json(path, ("images", "annotations"), object_hook=_compact)
    contiguous_ids = {category["id"]: index for index, category in enumerate(categories)}
    _check_categories(path, content.get("categories", []), categories)
    records = _image_records(path, content["images"], image_folder)
    annotations = _group_by_image(path, content.pop("annotations"), records)
    for image_id, record in records.items():
        record["annotations"] = [
            _instance(path, annotation, record, contiguous_ids)
            for annotation in annotations.pop(image_id, ())
        ]
    logger.info("%s: %d images", path, len(records))
    return [records[image_id] for image_id in sorted(records)]


def image_name(image: Mapping) -> str:
    """Return the path of an image below the folder of images; see :func:`read_lvis_json`."""
    return image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])


def _compact(entry: dict) -> dict:
    """Turn the polygons of an annotation into arrays: an eighth of the memory of float lists."""
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list):
        try:
            entry["segmentation"] = [np.asarray(p, dtype=np.float64) for p in segmentation]
        except (TypeError, ValueError):
            pass  # not numbers: _check_polygons says where
    return entry


def _check_categories(path: Path, found: Iterable[dict], table: Sequence[dict]) -> None:
    names = {category["id"]: category["name"] for category in table}
    for category in found:
        number, name = category.get("id"), category.get("name")
        if names.get(number) != name:
            raise ValueError(
                f"{path}: category {number} is {name!r}, but {names.get(number)!r} in the category "
                f"table ({len(names)} categories). The file belongs to another data set, or to "
                "another version of it."
            )


def _image_records(path: Path, images: Sequence[dict], image_folder: Path) -> dict[int, dict]:
    records = {}
    for number, image in enumerate(images):
        missing = {"id", "height", "width"} - set(image)
        if missing or not ("file_name" in image or "coco_url" in image):
            missing = sorted(missing) or "'file_name' or 'coco_url'"
            raise ValueError(
                f"{path}: image {image.get('id', f'number {number}')} has no {missing}."
            )
        if image["id"] in records:
            raise ValueError(f"{path}: image {image['id']} is listed twice.")
        file_name = os.path.join(image_folder, image_name(image))
        records[image["id"]] = {
            "file_name": file_name,
            "clip_key": clip_key(file_name),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "neg_category_ids": image.get("neg_category_ids", []),
            "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
        }
    return records


def _group_by_image(
    path: Path, annotations: list[dict], records: dict[int, dict]
) -> dict[int, list[dict]]:
    groups: dict[int, list[dict]] = defaultdict(list)
    seen = set()
    for number, annotation in enumerate(annotations):
        missing = {"id", "image_id", "category_id", "bbox", "segmentation"} - set(annotation)
        if missing:
            name = annotation.get("id", f"number {number}")
            raise ValueError(f"{path}: annotation {name} has no {sorted(missing)}.")
        if annotation["id"] in seen:
            raise ValueError(f"{path}: annotation {annotation['id']} is listed twice.")
        if annotation["image_id"] not in records:
            raise ValueError(
                f"{path}: annotation {annotation['id']} belongs to image {annotation['image_id']}, "
                "which is not among the file's images."
            )
        seen.add(annotation["id"])
        groups[annotation["image_id"]].append(annotation)
    return groups


def _instance(path: Path, annotation: dict, record: dict, contiguous_ids: dict[int, int]) -> dict:
    place = f"{path}: annotation {annotation['id']}"
    category = annotation["category_id"]
    if category not in contiguous_ids:
        raise ValueError(
            f"{place} has category id {category}, which is not in the category table (its "
            f"{len(contiguous_ids)} ids go from {min(contiguous_ids)} to {max(contiguous_ids)})."
        )
    box = annotation["bbox"]
    if not (isinstance(box, list) and len(box) == 4):
        raise ValueError(f"{place} has the box {box!r}; expected [x, y, width, height].")
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        segmentation = _checked_rle(place, segmentation, (record["height"], record["width"]))
    else:
        _check_polygons(place, segmentation)
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": contiguous_ids[category],
        "segmentation": segmentation,
        "iscrowd": annotation.get("iscrowd", 0),
    }


def _check_polygons(place: str, polygons: object) -> None:
    if not isinstance(polygons, list) or not polygons:
        raise ValueError(
            f"{place} has the segmentation {polygons!r}; expected a list of polygons or an RLE."
        )
    for polygon in polygons:
        if not isinstance(polygon, np.ndarray) or polygon.ndim != 1:
            raise ValueError(f"{place} has a polygon that is not a flat list of numbers.")
        if polygon.size < 6 or polygon.size % 2:
            raise ValueError(
                f"{place} has a polygon of {polygon.size} numbers; expected x and y of at least "
                "three points."
            )
        if not np.isfinite(polygon).all():
            raise ValueError(f"{place} has a polygon with a coordinate that is not finite.")


def _checked_rle(place: str, rle: dict, size: tuple[int, int]) -> dict:
    """Return a compressed RLE, after checking that it covers the image exactly.

    Decoding one that does not would read memory that does not belong to it.
    """
    if "counts" not in rle or rle.get("size") != list(size):
        raise ValueError(
            f"{place} has an RLE of size {rle.get('size')}; expected [height, width] of its image, "
            f"{list(size)}, and counts."
        )
    counts = rle["counts"]
    try:
        total = sum(counts) if isinstance(counts, list) else run_total(counts)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{place} has an RLE that is not valid: {error}.") from error
    if total != size[0] * size[1]:
        raise ValueError(
            f"{place} has an RLE of {total} pixels; its image has {size[0]} x {size[1]}."
        )
    return coco_mask.frPyObjects(rle, *size) if isinstance(counts, list) else rle


def run_total(counts: str | bytes) -> int:
    """Return how many pixels a compressed RLE covers, ones and zeros together.

    COCO's code writes a number as digits of 5 bits, lowest first, of which bit 5 says that another
    one follows and bit 4 of the last one is the sign; from the fourth run on it is the difference
    to the run before last.

    Raises:
        ValueError: the string is no RLE.
    """
    raw = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("its counts are empty, cut off or hold a character that no RLE has")
    last = np.flatnonzero(codes & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    shift = 5 * (np.arange(codes.size) - np.repeat(first, last - first + 1))
    values = np.add.reduceat((codes & 31) << shift, first)
    negative = codes[last] & 16 != 0
    values[negative] -= 1 << (shift[last][negative] + 5)
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if runs.min() < 0:
        raise ValueError("it has a run of negative length")
    return int(runs.sum())
