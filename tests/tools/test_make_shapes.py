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

ARGUMENTS = ["--train-images", "30", "--val-images", "40", "--size", "64"]
ARGUMENTS += ["--train-videos", "8", "--val-videos", "10", "--frames", "5"]


@pytest.fixture(scope="module")
def root(load_tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset root with the data set in it."""
    root = tmp_path_factory.mktemp("datasets")
    load_tool("make_shapes").main([*ARGUMENTS, "--output", str(root / "shapes")])
    return root


@pytest.fixture
def records(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict]]:
    """Dataset dicts of each split, as training and evaluation get them."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return {split: DatasetCatalog.get(f"shapes_{split}") for split in ("train", "val")}


@pytest.fixture
def videos(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict]]:
    """The same of the videos."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return {split: DatasetCatalog.get(f"shapes_video_{split}") for split in ("train", "val")}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_arguments_give_the_same_bytes(load_tool, root: Path, tmp_path: Path) -> None:
    tool = load_tool("make_shapes")
    tool.main([*ARGUMENTS, "--output", str(tmp_path / "again")])
    tool.main([*ARGUMENTS, "--seed", "1", "--output", str(tmp_path / "other")])
    content = files(root / "shapes")
    assert content == files(tmp_path / "again")
    other = files(tmp_path / "other")
    assert content.keys() == other.keys()
    assert all(content[name] != other[name] for name in content)


def test_the_loader_reads_it(records: dict[str, list[dict]]) -> None:
    assert {split: len(part) for split, part in records.items()} == {"train": 30, "val": 40}
    for part in records.values():
        for record in part:
            assert cv2.imread(record["file_name"]).shape == (64, 64, 3)
            assert 1 <= len(record["annotations"]) <= 5
            masks = [coco_mask.decode(a["segmentation"]) for a in record["annotations"]]
            assert np.sum(masks, axis=0).max() == 1
            for mask, annotation in zip(masks, record["annotations"], strict=True):
                columns, rows = np.nonzero(mask.any(0))[0], np.nonzero(mask.any(1))[0]
                x, y, width, height = annotation["bbox"]
                assert (x, x + width) == (columns.min(), columns.max() + 1)
                assert (y, y + height) == (rows.min(), rows.max() + 1)


def test_masks_in_the_file_are_those_of_the_pictures(
    load_tool, root: Path, records: dict[str, list[dict]]
) -> None:
    tool = load_tool("make_shapes")
    for record in records["val"][:10]:
        # Each image is drawn from the seed, the number of the split and its own number.
        rng = np.random.default_rng([0, 1, record["image_id"]])
        shown = rng.choice(range(36), rng.integers(1, tool.MAX_OBJECTS + 1))
        scene = draw_scene(rng, shown, 64)
        image = cv2.imread(record["file_name"])[..., ::-1]
        assert np.array_equal(image, scene.image)
        masks = [coco_mask.decode(a["segmentation"]) for a in record["annotations"]]
        assert np.array_equal(np.array(masks, bool), scene.masks)


def test_training_shows_nothing_novel(root: Path, records, videos) -> None:
    def used(split: str) -> set[int]:
        frames = [frame for video in videos[split] for frame in video["annotations"]]
        images = [record["annotations"] for record in records[split]]
        return {a["category_id"] for annotations in images + frames for a in annotations}

    assert used("train") <= set(BASE_INDICES) < used("val")
    content = json.loads((root / "shapes" / "shapes_train_norare.json").read_text())
    novel_ids = {c["id"] for c in content["categories"] if c["name"] in NOVEL_NAMES}
    assert not novel_ids & {i for image in content["images"] for i in image["neg_category_ids"]}


def test_every_category_of_an_image_is_known_to_be_there_or_not(
    records: dict[str, list[dict]],
) -> None:
    for split, shown in (("train", set(BASE_INDICES)), ("val", set(range(36)))):
        for record in records[split]:
            present = {a["category_id"] for a in record["annotations"]}
            absent = {number - 1 for number in record["neg_category_ids"]}
            assert present | absent == shown and not present & absent
            assert record["not_exhaustive_category_ids"] == []


def test_the_category_table_counts_the_training_set(
    root: Path, records: dict[str, list[dict]]
) -> None:
    for name in ("train_norare", "val", "video_train", "video_val"):
        table = json.loads((root / "shapes" / f"shapes_{name}.json").read_text())["categories"]
        assert [c["name"] for c in table] == MetadataCatalog.get("shapes_val").thing_classes
        for index, category in enumerate(table):
            counts = [
                sum(a["category_id"] == index for a in record["annotations"])
                for record in records["train"]
            ]
            assert category["instance_count"] == sum(counts)
            assert category["image_count"] == np.count_nonzero(counts)
            assert category["frequency"] == ("r" if category["name"] in NOVEL_NAMES else "f")


def test_the_loader_reads_the_videos(videos: dict[str, list[dict]]) -> None:
    assert {split: len(part) for split, part in videos.items()} == {"train": 8, "val": 10}
    for record in videos["train"] + videos["val"]:
        assert record["length"] == len(record["file_names"]) == 5
        for file_name, annotations in zip(record["file_names"], record["annotations"], strict=True):
            assert cv2.imread(file_name).shape == (64, 64, 3)
            masks = [coco_mask.decode(a["segmentation"]) for a in annotations]
            assert not masks or np.sum(masks, axis=0).max() == 1


def test_masks_of_videos_are_those_of_the_frames(
    load_tool, root: Path, videos: dict[str, list[dict]]
) -> None:
    tool = load_tool("make_shapes")
    content = json.loads((root / "shapes" / "shapes_video_val.json").read_text())
    absent = 0
    for record in videos["val"]:
        # Each video is drawn from the seed, the number of the split and its own number.
        rng = np.random.default_rng([0, 3, record["video_id"]])
        shown = rng.choice(range(36), rng.integers(1, tool.MAX_OBJECTS + 1))
        scene = draw_moving_scene(rng, shown, 5, 64)
        frames = [cv2.imread(name)[..., ::-1] for name in record["file_names"]]
        assert np.array_equal(frames, scene.images)
        tracks = [a for a in content["annotations"] if a["video_id"] == record["video_id"]]
        assert [track["category_id"] - 1 for track in tracks] == scene.categories
        for track, tube in zip(tracks, scene.masks, strict=True):
            for rle, area, mask in zip(track["segmentations"], track["areas"], tube, strict=True):
                assert (rle is None) == (area is None) == (not mask.any())
                if rle is not None:
                    assert np.array_equal(coco_mask.decode(rle), mask) and area == mask.sum()
                absent += rle is None
    assert absent
