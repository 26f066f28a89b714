"""tools/make_shapes.py: valid LVIS and YouTube-VIS data without anything novel to train on."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovformer.d2 import DatasetCatalog, MetadataCatalog
from ovformer_tools.shape_scenes import (
    BASE_INDICES,
    NOVEL_NAMES,
    draw_moving_scene,
    draw_scene,
)

TOOL = "make_shapes"
OPTIONS = ["--train-images", "30", "--val-images", "40", "--size", "64"]
OPTIONS += ["--train-videos", "8", "--val-videos", "10", "--frames", "5"]
ALLOWED = {"train": set(BASE_INDICES), "val": set(range(36))}


@pytest.fixture(scope="module")
def root(tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset root with the data set in it."""
    root = tmp_path_factory.mktemp("datasets")
    tool.main([*OPTIONS, "--output", str(root / "shapes")])
    return root


@pytest.fixture
def records(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict]]:
    """Dataset dicts of each split, as training and evaluation get them."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    names = ("train", "val", "video_train", "video_val")
    return {name: DatasetCatalog.get(f"shapes_{name}") for name in names}


def read(root: Path, name: str) -> dict:
    return json.loads((root / "shapes" / f"shapes_{name}.json").read_text())


def test_the_same_arguments_give_the_same_bytes(tool, root: Path, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[Path, bytes]:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder): path.read_bytes() for path in paths}

    tool.main([*OPTIONS, "--output", str(tmp_path / "again")])
    tool.main([*OPTIONS, "--seed", "1", "--output", str(tmp_path / "other")])
    content, other = files(root / "shapes"), files(tmp_path / "other")
    assert content == files(tmp_path / "again")
    assert content.keys() == other.keys()
    assert all(content[name] != other[name] for name in content)


def test_images_and_their_annotations_fit(records) -> None:
    assert (len(records["train"]), len(records["val"])) == (30, 40)
    for record in records["train"] + records["val"]:
        assert cv2.imread(record["file_name"]).shape == (64, 64, 3)
        assert 1 <= len(record["annotations"]) <= 5
        masks = [coco_mask.decode(a["segmentation"]) for a in record["annotations"]]
        assert np.sum(masks, axis=0).max() == 1
        for mask, annotation in zip(masks, record["annotations"], strict=True):
            columns, rows = np.nonzero(mask.any(0))[0], np.nonzero(mask.any(1))[0]
            x, y, width, height = annotation["bbox"]
            assert (x, x + width) == (columns.min(), columns.max() + 1)
            assert (y, y + height) == (rows.min(), rows.max() + 1)


def test_images_are_the_scenes_that_were_drawn(tool, records) -> None:
    for record in records["val"][:10]:
        # Each image is drawn from the seed, the number of the split and its own number.
        rng = np.random.default_rng([0, 1, record["image_id"]])
        scene = draw_scene(rng, rng.choice(range(36), rng.integers(1, tool.MAX_OBJECTS + 1)), 64)
        assert np.array_equal(cv2.imread(record["file_name"])[..., ::-1], scene.image)
        masks = [coco_mask.decode(a["segmentation"]) for a in record["annotations"]]
        assert np.array_equal(np.array(masks, bool), scene.masks)


def test_training_shows_nothing_novel_and_images_say_what_is_absent(root: Path, records) -> None:
    for split, allowed in ALLOWED.items():
        used = {a["category_id"] for r in records[split] for a in r["annotations"]}
        frames = [frame for video in records[f"video_{split}"] for frame in video["annotations"]]
        used |= {a["category_id"] for frame in frames for a in frame}
        assert used <= allowed and (split == "train" or used > ALLOWED["train"])
        for record in records[split]:
            present = {a["category_id"] for a in record["annotations"]}
            absent = {number - 1 for number in record["neg_category_ids"]}
            assert present | absent == allowed and not present & absent
            assert record["not_exhaustive_category_ids"] == []


def test_the_category_table_counts_the_training_set(root: Path, records) -> None:
    labels = [[a["category_id"] for a in record["annotations"]] for record in records["train"]]
    for name in ("train_norare", "val", "video_train", "video_val"):
        table = read(root, name)["categories"]
        assert [c["name"] for c in table] == MetadataCatalog.get("shapes_val").thing_classes
        for index, category in enumerate(table):
            counts = [of_image.count(index) for of_image in labels]
            assert category["instance_count"] == sum(counts)
            assert category["image_count"] == np.count_nonzero(counts)
            assert category["frequency"] == ("r" if category["name"] in NOVEL_NAMES else "f")


def test_videos_are_the_scenes_that_were_drawn(tool, root: Path, records) -> None:
    assert (len(records["video_train"]), len(records["video_val"])) == (8, 10)
    annotations, absent = read(root, "video_val")["annotations"], 0
    for record in records["video_val"]:
        # Each video is drawn from the seed, the number of the split and its own number.
        rng = np.random.default_rng([0, 3, record["video_id"]])
        shown = rng.choice(range(36), rng.integers(1, tool.MAX_OBJECTS + 1))
        scene = draw_moving_scene(rng, shown, 5, 64)
        frames = [cv2.imread(name)[..., ::-1] for name in record["file_names"]]
        assert np.array_equal(frames, scene.images)
        tracks = [a for a in annotations if a["video_id"] == record["video_id"]]
        assert [track["category_id"] - 1 for track in tracks] == scene.categories
        for track, tube in zip(tracks, scene.masks, strict=True):
            for rle, area, mask in zip(track["segmentations"], track["areas"], tube, strict=True):
                assert (rle is None) == (area is None) == (not mask.any())
                if rle is not None:
                    assert np.array_equal(coco_mask.decode(rle), mask) and area == mask.sum()
                absent += rle is None
    assert absent
