import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovformer.d2 import MetadataCatalog
from ovformer.data.files.vis_json import group_categories, load_vis_json, read_vis_json, to_rle
from support.masks import compressed_rle, rectangle

SQUARE = rectangle((4, 6), 2, 1, 5, 3)
TEXT = compressed_rle(SQUARE)
RUNS = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
POLYGON = [[2, 1, 5, 1, 5, 3, 2, 3]]
TABLE = [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "cow"}]


def annotation(**changes) -> dict:
    plain = {"id": 4, "video_id": 8, "category_id": 9, "segmentations": [TEXT, None, RUNS]}
    return {**plain, **changes}


@pytest.fixture
def content() -> dict:
    names = [f"clip/{t}.jpg" for t in range(3)]
    return {
        "videos": [
            {"id": 8, "height": 4, "width": 6, "length": 3, "file_names": names},
            {"id": 3, "height": 4, "width": 6, "file_names": ["still/0.jpg"]},
        ],
        "categories": [{"id": 9, "name": "cow"}, {"id": 2, "name": "cat"}],
        "annotations": [annotation(), annotation(id=5, category_id=2, iscrowd=1)],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict | list], Path]:
    def to_file(content: dict | list) -> Path:
        path = tmp_path / "videos.json"
        path.write_text(json.dumps(content))
        return path

    return to_file


def test_formats_of_a_mask() -> None:
    for mask in (TEXT, {**TEXT, "counts": TEXT["counts"].encode()}, RUNS, POLYGON):
        assert to_rle(mask, 4, 6) == TEXT
    for nothing in (None, [], {}, [[1, 2, 3, 4]]):
        assert to_rle(nothing, 4, 6) is None


def test_records(content, write, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    first, second = read_vis_json(write(content), tmp_path / "set", TABLE)
    assert first == {
        "video_id": 3,
        "height": 4,
        "width": 6,
        "length": 1,
        "file_names": [f"{tmp_path}/set/still/0.jpg"],
        "clip_keys": ["set/still/0.jpg"],
        "annotations": [[]],
    }
    frames = second["annotations"]
    assert [[entry["id"] for entry in frame] for frame in frames] == [[4, 5], [], [4, 5]]
    assert [entry["category_id"] for entry in frames[0]] == [2, 0]  # contiguous, of the table
    assert [entry["iscrowd"] for entry in frames[0]] == [0, 1]
    assert frames[2][0]["bbox"] == [2, 1, 3, 2]
    assert frames[2][0]["segmentation"] == TEXT


def test_frames_of_differing_size(content, write, tmp_path) -> None:
    large = compressed_rle(np.ones((8, 12)))
    content["annotations"] = [annotation(segmentations=[TEXT, large, POLYGON])]
    frames = read_vis_json(write(content), tmp_path, TABLE)[1]["annotations"]
    assert [coco_mask.area(entry["segmentation"]) for (entry,) in frames] == [6, 96, 6]
    assert frames[1][0]["bbox"] == [0, 0, 12, 8]


def test_windows_paths_and_videos_without_labels(content, write, tmp_path) -> None:
    content["videos"][1]["file_names"] = ["C:\\data\\JPEGImages\\still\\0.jpg"]
    content["videos"][1]["neg_category_ids"] = [5]
    content["annotations"] = None
    still, clip = read_vis_json(write(content), tmp_path, TABLE)
    assert still["file_names"] == [f"{tmp_path}/still/0.jpg"]
    assert still["neg_category_ids"] == [5] and "not_exhaustive_category_ids" not in still
    assert clip["annotations"] == [[], [], []]
    del content["annotations"]
    assert read_vis_json(write(content), tmp_path, TABLE) == [still, clip]


def test_lists_of_burst_are_renumbered(content, write) -> None:
    content["cate_ori"] = [{"id": 100}, {"id": 200}]  # of category 9 and 2
    content["videos"][0]["neg_category_ids"] = [200, 77]
    content["videos"][0]["not_exhaustive_category_ids"] = [100]
    video = load_vis_json(write(content))["videos"][0]
    assert video["neg_category_ids"] == [2]
    assert video["not_exhaustive_category_ids"] == [9]


VIDEO = {"id": 1, "height": 4, "width": 6, "file_names": ["0"]}
FAULTS = [
    ("annotation 4 belongs to video 1", {"annotations": [annotation(video_id=1)]}),
    ("annotation 4 has category id 5", {"annotations": [annotation(category_id=5)]}),
    ("0 segmentations, but video 8 has 3", {"annotations": [annotation(segmentations=[])]}),
    ("annotation 4 is listed twice", {"annotations": [annotation(), annotation()]}),
    (r"annotation 1 has no \['video_id', 'category_id'", {"annotations": [{"id": 1}]}),
    ("annotation 4: areas: ", {"annotations": [annotation(areas=["a"])]}),
    ("expected a list of annotation entries, got 0", {"annotations": 0}),
    (
        "annotation 4 has a mask that is not valid",
        {"annotations": [annotation(segmentations=[{"size": [6, 9], **RUNS}, None, 1])]},
    ),
    (
        "RLE of 24 pixels does not cover a frame of 5 x 6",
        {"annotations": [annotation(segmentations=[{**TEXT, "size": [5, 6]}, None, None])]},
    ),
    (r"video 1 has no \['height', 'width', 'file_names'\]", {"videos": [{"id": 1}, 5]}),
    ("video annotation file", {"videos": []}),
    ("1048576 x 1048576", {"videos": [{**VIDEO, "height": 2**20, "width": 2**20}]}),
    ("video 1 has no frame", {"videos": [{**VIDEO, "file_names": []}]}),
    ("expected a list of category entries, got 'abc'", {"categories": "abc"}),
    ("category number 0: id: expected a whole", {"categories": [{"id": 9.5, "name": "a"}]}),
    ("category 9: name: expected text", {"categories": [{"id": 9, "name": "\ud800"}]}),
    ("cate_ori: .* each of the 2 categories", {"cate_ori": [{"id": 1}]}),
]


@pytest.mark.parametrize(("message", "change"), FAULTS, ids=[message for message, _ in FAULTS])
def test_damaged_files_name_the_fault(content, write, message, change) -> None:
    with pytest.raises(ValueError, match=message):
        load_vis_json(write({**content, **change}))


def test_files_of_another_kind_or_data_set(tmp_path, write, content) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        load_vis_json(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="video annotation file"):
        load_vis_json(write([{"video_id": 1}]))
    with pytest.raises(ValueError, match=r"category 9 \('cow'\) is not in the category table"):
        read_vis_json(write(content), tmp_path, TABLE[:2])


def test_groups_prefer_the_fields_of_the_file() -> None:
    groups = {"base": ("novel", (False,)), "novel": ("novel", (True,))}
    table = [{**category, "novel": category["id"] == 5} for category in TABLE]
    found = [{"id": 2, "name": "cat", "novel": True}, {"id": 5, "name": "dog"}]
    assert group_categories(found, groups, table) == {"base": [], "novel": [2, 5]}
    # An id that means something else in the file belongs to no group.
    assert group_categories([{"id": 5, "name": "lion"}], groups, table)["novel"] == []


@pytest.mark.parametrize(
    ("name", "classes", "sizes"),
    [
        ("ytvis_2019_val", 40, {"base": 33, "novel": 7}),
        ("ytvis_2021_train", 40, {"base": 34, "novel": 6}),
        ("ovis_val", 25, {}),
        ("lvvis_val", 1196, {"base": 641, "novel": 555}),
        ("burst_val", 482, {"base": 386, "novel": 96, "common": 64, "uncommon": 418}),
    ],
)
def test_registered_video_sets(name, classes, sizes) -> None:
    metadata = MetadataCatalog.get(name)
    assert len(metadata.thing_classes) == classes
    assert {group: len(members) for group, members in metadata.class_groups.items()} == sizes
    assert metadata.evaluator_type == ("burst" if name == "burst_val" else "vis")
