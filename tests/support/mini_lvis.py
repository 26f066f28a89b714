"""A small LVIS data set, generated, for the tests of data, tools, evaluation and engine."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.masks import bounding_box, compressed_rle, corners, rectangle, uncompressed_rle

# Of LVIS v1's own table: two trained categories and two rare ones.
CATEGORIES = [
    {"id": 1, "name": "aerosol_can", "frequency": "c"},
    {"id": 3, "name": "airplane", "frequency": "f"},
    {"id": 13, "name": "applesauce", "frequency": "r"},
    {"id": 14, "name": "apricot", "frequency": "r"},
]
# (folder, width, height) of image i + 1
IMAGES = [
    ("train2017", 60, 40),
    ("train2017", 40, 60),
    ("val2017", 50, 50),
    ("train2017", 48, 32),
    ("train2017", 64, 36),
]


@dataclass
class MiniLvis:
    """A data set on disk.

    Attributes:
        root: the dataset root, which holds coco/ and lvis/.
        content: what the annotation files hold.
        masks: mask of each annotation id, bool (height, width).
    """

    root: Path
    content: dict
    masks: dict[int, np.ndarray]

    def write(self, name: str = "lvis_v1_train.json", text: str | None = None) -> Path:
        """Write the annotations, or a text in their place, under lvis/."""
        path = self.root / "lvis" / name
        path.write_text(json.dumps(self.content) if text is None else text)
        return path


@pytest.fixture
def mini_lvis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniLvis:
    """Five images, the last without annotations, as ``lvis_v1_{train,train_norare,val}``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data sets"))
    return make_lvis(tmp_path / "data sets")


def make_lvis(root: Path) -> MiniLvis:
    """Write these images and annotations below a dataset root."""
    (root / "lvis").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = []
    for number, (folder, width, height) in enumerate(IMAGES, start=1):
        name = f"{folder}/{number:012d}.png"
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        (root / "coco" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "coco" / name)
        images.append(
            {
                "id": number,
                "width": width,
                "height": height,
                "coco_url": f"http://images.cocodataset.org/{name}",
                "neg_category_ids": [14] if number == 1 else [],
                "not_exhaustive_category_ids": [3] if number == 2 else [],
            }
        )

    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    hole = rectangle(sizes[3], 5, 5, 45, 45) & ~rectangle(sizes[3], 15, 15, 30, 35)
    crowd = rectangle(sizes[4], 0, 0, 48, 16)
    two = rectangle(sizes[2], 2, 3, 20, 30) | rectangle(sizes[2], 22, 3, 38, 50)
    first, fourth = rectangle(sizes[1], 10, 5, 40, 30), rectangle(sizes[4], 8, 20, 30, 30)
    rows = [  # image, category, mask, segmentation, crowd
        (1, 1, first, [corners(10, 5, 40, 30)], 0),
        (1, 13, rectangle(sizes[1], 0, 30, 60, 40), [corners(0, 30, 60, 40)], 0),
        (2, 3, two, [corners(2, 3, 20, 30), corners(22, 3, 38, 50)], 0),
        (3, 3, hole, compressed_rle(hole), 0),
        (3, 14, ~hole, uncompressed_rle(~hole), 0),
        (4, 1, crowd, uncompressed_rle(crowd), 1),
        (4, 3, fourth, [corners(8, 20, 30, 30)], 0),
    ]
    annotations, masks = [], {}
    for number, (image, category, mask, segmentation, is_crowd) in enumerate(rows, start=101):
        left, top, right, bottom = bounding_box(mask)
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "segmentation": segmentation,
                **({"iscrowd": 1} if is_crowd else {}),
            }
        )
        masks[number] = mask
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    data = MiniLvis(root, content, masks)
    for split in ("train", "train_norare", "val"):
        data.write(f"lvis_v1_{split}.json")
    return data
