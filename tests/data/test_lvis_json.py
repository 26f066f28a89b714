"""The LVIS reader: its records, and the errors that name what is wrong in a file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovformer.d2 import BoxMode, DatasetCatalog
from ovformer.data.files.lvis_json import read_lvis_json
from support.masks import compressed_rle
from support.mini_lvis import CATEGORIES, MiniLvis


def mask_of(annotation: dict, record: dict) -> np.ndarray:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        rles = coco_mask.frPyObjects(segmentation, record["height"], record["width"])
        segmentation = coco_mask.merge(rles)
    return coco_mask.decode(segmentation).astype(bool)


def test_every_kind_of_mask_is_read(mini_lvis: MiniLvis) -> None:
    records = DatasetCatalog.get("lvis_v1_train")
    assert [record["image_id"] for record in records] == [1, 2, 3, 4, 5]
    masks = [mask_of(a, record) for record in records for a in record["annotations"]]
    for mask, expected in zip(masks, mini_lvis.masks.values(), strict=True):
        np.testing.assert_array_equal(mask, expected)
    labels = [[a["category_id"] for a in record["annotations"]] for record in records]
    assert labels == [[0, 12], [2], [2, 13], [0, 2], []]
    assert [a["iscrowd"] for a in records[3]["annotations"]] == [1, 0]
    assert records[0]["annotations"][0]["bbox"] == [10, 5, 30, 25]
    assert records[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS


def test_files_keys_and_federated_fields(mini_lvis: MiniLvis) -> None:
    records = DatasetCatalog.get("lvis_v1_train")
    assert all(Path(record["file_name"]).is_file() for record in records)
    assert records[2]["clip_key"] == "coco/val2017/000000000003.png"
    assert (records[1]["height"], records[1]["width"]) == (60, 40)
    # The data set's own ids, as the evaluator of LVIS wants them.
    assert records[0]["neg_category_ids"] == [14]
    assert records[1]["not_exhaustive_category_ids"] == [3]


def test_coco_files_are_read_too(mini_lvis: MiniLvis) -> None:
    for image in mini_lvis.content["images"]:
        image["file_name"] = image["coco_url"].split("/")[-1]
        for key in ("coco_url", "neg_category_ids", "not_exhaustive_category_ids"):
            del image[key]
    del mini_lvis.content["categories"]
    folder = mini_lvis.root / "coco" / "train2017"
    records = read_lvis_json(mini_lvis.write(), folder, CATEGORIES)
    assert records[0]["file_name"] == str(folder / "000000000001.png")
    assert records[0]["clip_key"] == "coco/train2017/000000000001.png"
    assert records[0]["neg_category_ids"] == []
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 2]


def edit(kind: str, index: int, **fields: object) -> Callable[[dict], None]:
    """A fault: set fields of an image or annotation; None removes the field."""

    def change(content: dict) -> None:
        for key, value in fields.items():
            content[kind][index].pop(key, None)
            if value is not None:
                content[kind][index][key] = value

    return change


def repeat(kind: str) -> Callable[[dict], None]:
    return lambda content: content[kind].append(content[kind][0])


SHORT_RLE = {"size": [40, 60], "counts": [10, 20]}
OTHER_SIZE = {"size": [60, 40], "counts": [2400]}
CUT_OFF = {"size": [40, 60], "counts": compressed_rle(np.eye(40, 60) > 0)["counts"][:-3]}
FAULTS = [
    (
        edit("annotations", 0, segmentation=[[1, 2, 3, 4]]),
        "annotation 101: .* polygon of 4 numbers",
    ),
    (edit("annotations", 0, segmentation=[["a"] * 6]), "annotation 101: .* flat list of numbers"),
    (edit("annotations", 0, segmentation=SHORT_RLE), "annotation 101: .* RLE of 30 pixels"),
    (edit("annotations", 0, segmentation=OTHER_SIZE), r"annotation 101: .* size \[60, 40\]"),
    (edit("annotations", 0, segmentation=CUT_OFF), "annotation 101: segmentation: "),
    (edit("annotations", 2, segmentation=None), r"annotation 103 has no \['segmentation'\]"),
    (
        edit("annotations", 2, bbox=[1, 2, 3]),
        r"annotation 103: bbox: expected \[x, y, width.* \[1, 2, 3\]",
    ),
    (edit("annotations", 2, id=None), r"annotation number 2 has no \['id'\]"),
    (edit("annotations", 2, category_id=2000), "annotation 103 has category id 2000.*1 to 1203"),
    (edit("annotations", 2, image_id=99), "annotation 103 belongs to image 99"),
    (edit("images", 1, height=None), r"image 2 has no \['height'\]"),
    (edit("images", 1, coco_url=None), "image 2 has no 'file_name' or 'coco_url'"),
    (repeat("images"), "image 1 is listed twice"),
    (repeat("annotations"), "annotation 101 is listed twice"),
    (lambda content: content.pop("annotations"), "no 'annotations'; the file holds"),
    (
        lambda content: content.update(categories=[{"id": 1, "name": "dog"}]),
        "category 1 is 'dog', but 'aerosol_can' in the category table",
    ),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_faults_are_named(
    mini_lvis: MiniLvis, fault: Callable[[dict], object], message: str
) -> None:
    fault(mini_lvis.content)
    mini_lvis.write()
    with pytest.raises(ValueError, match=f"lvis_v1_train.json: {message}"):
        DatasetCatalog.get("lvis_v1_train")


@pytest.mark.parametrize("cut", [10, 500, -1])
def test_a_truncated_file_says_so(mini_lvis: MiniLvis, cut: int) -> None:
    mini_lvis.write(text=json.dumps(mini_lvis.content)[:cut])
    with pytest.raises(ValueError, match="lvis_v1_train.json: not valid JSON .*truncated"):
        DatasetCatalog.get("lvis_v1_train")


def test_a_file_of_another_kind_says_so(mini_lvis: MiniLvis) -> None:
    (mini_lvis.root / "lvis" / "lvis_v1_train.json").write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(ValueError, match="lvis_v1_train.json: not valid JSON"):
        DatasetCatalog.get("lvis_v1_train")
    mini_lvis.write(text="[1, 2]")
    with pytest.raises(ValueError, match="no 'images' and no 'annotations'; the file holds list"):
        DatasetCatalog.get("lvis_v1_train")
