"""The LVIS reader: its records, and the errors that name what is wrong in a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovformer.d2 import BoxMode, DatasetCatalog
from ovformer.data.files.lvis_json import read_lvis_json
from ovformer.data.files.untrusted_masks import polygons_to_rle
from support.masks import compressed_rle
from support.mini_lvis import CATEGORIES, MiniLvis


def test_records(mini_lvis: MiniLvis) -> None:
    records = DatasetCatalog.get("lvis_v1_train")
    assert [record["image_id"] for record in records] == [1, 2, 3, 4, 5]
    assert all(Path(record["file_name"]).is_file() for record in records)
    assert records[2]["clip_key"] == "coco/val2017/000000000003.png"
    assert (records[1]["height"], records[1]["width"]) == (60, 40)
    # The data set's own ids, as the evaluator of LVIS wants them.
    assert records[0]["neg_category_ids"] == [14]
    assert records[1]["not_exhaustive_category_ids"] == [3]

    labels = [[a["category_id"] for a in record["annotations"]] for record in records]
    assert labels == [[0, 12], [2], [2, 13], [0, 2], []]
    assert [a["iscrowd"] for a in records[3]["annotations"]] == [1, 0]
    assert records[0]["annotations"][0]["bbox"] == [10, 5, 30, 25]
    assert records[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    masks = [
        coco_mask.decode(polygons_to_rle(mask, *size) if isinstance(mask, list) else mask)
        for record in records
        for size in [(record["height"], record["width"])]
        for mask in (a["segmentation"] for a in record["annotations"])
    ]
    for mask, expected in zip(masks, mini_lvis.masks.values(), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_coco_files_are_read_too(mini_lvis: MiniLvis) -> None:
    for image in mini_lvis.content["images"]:
        image["file_name"] = image["coco_url"].split("/")[-1]
        for key in ("coco_url", "neg_category_ids", "not_exhaustive_category_ids"):
            del image[key]
    del mini_lvis.content["categories"]
    folder = mini_lvis.root / "coco" / "train2017"
    record = read_lvis_json(mini_lvis.write(), folder, CATEGORIES)[0]
    assert record["file_name"] == str(folder / "000000000001.png")
    assert record["clip_key"] == "coco/train2017/000000000001.png"
    assert record["neg_category_ids"] == record["not_exhaustive_category_ids"] == []
    assert [a["category_id"] for a in record["annotations"]] == [0, 2]


def edit(kind: str, index: int, **fields: object) -> Callable[[dict], None]:
    """A fault: set fields of an image or annotation; None removes the field."""

    def change(content: dict) -> None:
        for key, value in fields.items():
            content[kind][index][key] = value
            if value is None:
                del content[kind][index][key]

    return change


def edit_mask(segmentation: object) -> Callable[[dict], None]:
    return edit("annotations", 0, segmentation=segmentation)


def repeat(kind: str) -> Callable[[dict], None]:
    return lambda content: content[kind].append(content[kind][0])


CUT_OFF = compressed_rle(np.eye(40, 60) > 0)["counts"][:-3]
FAULTS = {
    "annotation 101: .* polygon of 4 numbers": edit_mask([[1, 2, 3, 4]]),
    "annotation 101: .* flat list of numbers": edit_mask([["a"] * 6]),
    "annotation 101: .* RLE of 30 pixels": edit_mask({"size": [40, 60], "counts": [10, 20]}),
    r"annotation 101: .* size \[60, 40\]": edit_mask({"size": [60, 40], "counts": [2400]}),
    "annotation 101: segmentation: ": edit_mask({"size": [40, 60], "counts": CUT_OFF}),
    r"annotation 103 has no \['segmentation'\]": edit("annotations", 2, segmentation=None),
    r"annotation 103: bbox: .* \[1, 2, 3\]": edit("annotations", 2, bbox=[1, 2, 3]),
    r"annotation number 2 has no \['id'\]": edit("annotations", 2, id=None),
    "annotation 103 has category id 2000.*1 to 1203": edit("annotations", 2, category_id=2000),
    "annotation 103 belongs to image 99": edit("annotations", 2, image_id=99),
    r"image 2 has no \['height'\]": edit("images", 1, height=None),
    "image 2 has no 'file_name' or 'coco_url'": edit("images", 1, coco_url=None),
    "image 1 is listed twice": repeat("images"),
    "annotation 101 is listed twice": repeat("annotations"),
    "no 'annotations'; the file holds": lambda content: content.pop("annotations"),
    "category 1 is 'dog', but 'aerosol_can'": edit("categories", 0, name="dog"),
}


@pytest.mark.parametrize(("message", "fault"), FAULTS.items(), ids=list(FAULTS))
def test_faults_are_named(
    mini_lvis: MiniLvis, message: str, fault: Callable[[dict], object]
) -> None:
    mini_lvis.content["categories"] = [dict(category) for category in CATEGORIES]
    fault(mini_lvis.content)
    mini_lvis.write()
    with pytest.raises(ValueError, match=f"lvis_v1_train.json: {message}"):
        DatasetCatalog.get("lvis_v1_train")
