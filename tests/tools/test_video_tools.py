"""The tools of the video data sets."""

import json
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
from PIL import Image

from ovformer.d2 import DatasetCatalog
from ovformer.data.files.video_files import VideoSource
from ovformer.data.files.vis_json import load_vis_json
from support.masks import compressed_rle, rectangle
from support.mini_videos import VIDEOS, MiniVideos

CATEGORIES = [{"id": 1, "name": "accordion"}, {"id": 3, "name": "aerosol_can"}]


def burst() -> tuple[dict, dict]:
    """BURST's annotation file and class split: one video of two frames with two tracks."""
    mask = compressed_rle(np.eye(8, 10, dtype=bool))["counts"]
    sequence = {
        "id": 12,
        "dataset": "YFCC100M",
        "seq_name": "v_1",
        "width": 10,
        "height": 8,
        "annotated_image_paths": ["frame0001.jpg", "frame0031.jpg"],
        "neg_category_ids": [81],
        "not_exhaustive_category_ids": [95],
        "track_category_ids": {"1": 95, "4": 4},
        "segmentations": [
            {"1": {"rle": mask, "is_gt": True}},
            {"1": {"rle": mask, "is_gt": True}, "4": {"rle": mask, "is_gt": True}},
        ],
    }
    categories = [{"id": number, "name": f"class {number}"} for number in (4, 81, 95)]
    content = {"sequences": [sequence], "categories": categories, "split": "val"}
    return content, {"common": [4], "uncommon": [81, 95]}


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("vis_results", ["--score", "7"]),
        ("vis_results", ["--top", "0"]),
        ("ytvis_json", ["--max-per-video", "-5"]),
    ],
)
def test_numbers_out_of_range(tool: str, words: list[str], load_tool, user_error) -> None:
    message = user_error(load_tool(tool).main, "--dataset", "lvvis_val", *words)
    assert words[0] in message and words[1] in message


def test_a_list_of_test_videos(tmp_path: Path, load_tool, monkeypatch, user_error) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    tool = load_tool("lvvis_test_instances_json")
    images = tmp_path / "LVVIS" / "test" / "JPEGImages"
    (tmp_path / "LVVIS" / "val").mkdir(parents=True)
    categories = tmp_path / "LVVIS" / "val" / "val_instances_.json"
    categories.write_text(json.dumps({"categories": CATEGORIES}))
    message = user_error(tool.main)
    assert "--images" in message and str(images) in message
    for name, times in (("00007", (2, 0, 1)), ("00002", (0,))):
        (images / name).mkdir(parents=True)
        for t in times:
            Image.new("RGB", (30, 20)).save(images / name / f"{t:05d}.jpg")
    (images / "00007" / "notes.txt").write_text("no frame")
    tool.main([])
    path = tmp_path / "LVVIS" / "test" / "test_instances.json"
    assert json.loads(path.read_text())["categories"] == CATEGORIES
    videos = load_vis_json(path)["videos"]
    assert [(v["id"], v["length"], v["file_names"]) for v in videos] == [
        (0, 1, ["00002/00000.jpg"]),
        (1, 3, [f"00007/{t:05d}.jpg" for t in range(3)]),
    ]
    assert {(v["height"], v["width"]) for v in videos} == {(20, 30)}
    assert len(DatasetCatalog.get("lvvis_test")) == 2
    (images / "00002" / "00000.jpg").write_bytes(b"")
    assert "00002/00000.jpg" in user_error(tool.main)
    (images / "00002" / "00000.jpg").unlink()
    assert str(images / "00002") in user_error(tool.main)


def test_burst(tmp_path: Path, load_tool) -> None:
    content, split = burst()
    (tmp_path / "all_classes.json").write_text(json.dumps(content))
    (tmp_path / "class_split.json").write_text(json.dumps(split))
    tool = load_tool("burst2ytvis")
    files = {"ann": "all_classes.json", "split": "class_split.json", "out": "new/b2y_val.json"}
    tool.main([f"--{option}={tmp_path / name}" for option, name in files.items()])
    path = tmp_path / "new" / "b2y_val.json"
    raw = json.loads(path.read_text())
    assert raw["cate_ori"] == content["categories"] and raw["split"] == "val"
    assert raw["track_id_mapping"] == {"12": {"1": 1, "4": 2}}
    converted = load_vis_json(path)
    (video,) = converted["videos"]
    assert video["file_names"] == [f"YFCC100M/v_1/frame00{t}1.jpg" for t in ("0", "3")]
    assert (video["id"], video["length"], video["height"], video["width"]) == (12, 2, 8, 10)
    assert (video["neg_category_ids"], video["not_exhaustive_category_ids"]) == ([2], [3])
    found = [(c["id"], c["name"], c["split"]) for c in converted["categories"]]
    groups = ("common", "uncommon", "uncommon")
    assert found == list(zip((1, 2, 3), ("class 4", "class 81", "class 95"), groups, strict=True))
    tracks = [
        (a["id"], a["category_id"], [m is not None for m in a["segmentations"]])
        for a in converted["annotations"]
    ]
    assert tracks == [(1, 3, [True, True]), (2, 1, [False, True])]
    content["sequences"][0]["track_category_ids"]["4"] = 5
    with pytest.raises(ValueError, match="video 12: track 4 has category 5"):
        tool.convert(content, split)
    del content["sequences"][0]["segmentations"][1]
    with pytest.raises(ValueError, match=r"video 12 \(v_1\) has 2 annotated images"):
        tool.convert(content, split)


def prediction(video_id: int, category_id: int, score: float = 0.9) -> dict:
    length, *size = VIDEOS[video_id]
    tube = [compressed_rle(rectangle(size, 10, 5, 30, 20))] * length
    common = {"video_id": video_id, "score": score, "category_id": category_id}
    return {**common, "segmentations": tube}


def write_results(folder: Path, entries: list[dict]) -> Path:
    path = folder / "inference" / "ytvis_2019_val" / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return path


def unpack(folder: Path, name: str) -> list[dict]:
    with zipfile.ZipFile(folder / f"{name}.zip") as file:
        assert file.namelist() == ["results.json"]
        return json.loads(file.read("results.json"))


def test_packed_results(mini_videos: MiniVideos, tmp_path: Path, load_tool, capsys) -> None:
    entries = [prediction(3, 1), prediction(3, 6, 0.4), prediction(8, 39)]
    path = write_results(tmp_path / "run", entries)
    tool, data_set = load_tool("ytvis_json"), ["--dataset", "ytvis_2019_val"]
    tool.main(["--results", str(tmp_path / "run"), *data_set])
    assert unpack(path.parent, "all") == entries
    assert unpack(path.parent, "base") == entries[:1]
    assert unpack(path.parent, "novel") == entries[1:]
    out = capsys.readouterr().out
    assert "no prediction for 1 of 3 videos" in out and "novel.zip: 2 predictions" in out
    # The labels are not needed.
    without = mini_videos.write("val", annotations=None)
    options = ["--ann", str(without), "--out", str(tmp_path / "packed")]
    write_results(tmp_path / "run", [])
    tool.main(["--results", str(path), *data_set, *options])
    assert unpack(tmp_path / "packed", "all") == unpack(tmp_path / "packed", "novel") == []


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"video_id": 4}, ["video 4"]),
        ({"category_id": 41}, ["category_id 41"]),
        ({"score": float("nan")}, ["score nan"]),
        ({"segmentations": prediction(3, 6)["segmentations"][:5]}, ["5 segmentations", "6 frames"]),
        ({"segmentations": [compressed_rle(np.ones((60, 40)))] * 6}, ["[60, 40]"]),
        ({}, ["video 3", "--max-per-video"]),
    ],
)
def test_results_that_the_server_would_refuse(
    mini_videos: MiniVideos, tmp_path: Path, load_tool, user_error, change: dict, keys: list[str]
) -> None:
    tool, entries = load_tool("ytvis_json"), [prediction(3, 1), prediction(8, 1), prediction(3, 6)]
    path = write_results(tmp_path, entries)
    words = ["--results", str(path), "--dataset", "ytvis_2019_val", "--max-per-video"]
    tool.main([*words, "2"])
    before = (path.parent / "all.zip").read_bytes()
    write_results(tmp_path, [*entries[:2], entries[2] | change])
    message = user_error(tool.main, *words, "2" if change else "1")
    assert all(key in message for key in keys)
    assert (path.parent / "all.zip").read_bytes() == before
    assert not list(path.parent.glob("*.tmp"))


def read_frame_images(folder: Path, count: int) -> list[np.ndarray]:
    return [cv2.imread(str(folder / f"{t:05d}.png")).astype(int) for t in range(count)]


def test_drawn_results(mini_videos: MiniVideos, tmp_path: Path, load_tool, user_error) -> None:
    pytest.importorskip("supervision", reason="needs the extra [demo]")
    pytest.importorskip("av", reason="needs the extra [demo]")
    path = write_results(tmp_path, [prediction(3, 6, 0.8), prediction(3, 1), prediction(8, 1, 0.3)])
    tool, data_set = load_tool("vis_results"), ["--dataset", "ytvis_2019_val"]
    words = ["--results", str(path), *data_set]
    tool.main(words)
    out = path.parent / "visualization"
    assert sorted(p.name for p in out.iterdir()) == ["video3", "video3.mp4"]
    for t, frame in enumerate(read_frame_images(out / "video3", 6)):
        assert frame.shape == (40, 60, 3)
        assert frame[39, 0].tolist() == [0, t, 3]  # outside the mask
        assert np.abs(frame[19, 11] - frame[39, 0]).max() > 20
    assert len(list(VideoSource(out / "video3.mp4"))) == 6
    other = tmp_path / "other"
    tool.main([*words, "--score", "0.2", "--videos", "8", "--out", str(other)])
    assert sorted(p.name for p in other.iterdir()) == ["video8", "video8.mp4"]
    tool.main(["--annotations", *data_set])
    out = mini_videos.annotations("val").parent / "visualization"
    # Video 11 has no annotation.
    assert sorted(p.name for p in out.glob("*.mp4")) == ["video3.mp4", "video8.mp4"]
    (frame,) = read_frame_images(out / "video3", 1)
    assert np.abs(frame[16, 15] - frame[39, 0]).max() > 20
    write_results(tmp_path, [{**prediction(3, 1), "video_id": 77}])  # of another data set
    assert "video 77" in user_error(tool.main, *words)


def test_frames_of_two_videos_do_not_share_a_folder(load_tool, monkeypatch, tmp_path) -> None:
    tool = load_tool("vis_results")
    records = [
        {"video_id": number, "file_names": [f"{name}/0.png"], "height": 4, "width": 6}
        for number, name in enumerate(["a/frames", "b/frames", "c", "."])
    ]
    folders = tool.choose_folder_names(records)
    assert folders == {0: "frames_video0", 1: "frames_video1", 2: "c", 3: "video3"}
    # A frame that can't be written is an error.
    monkeypatch.setattr(tool, "read_frame", lambda record, t: np.zeros((4, 6, 3), np.uint8))
    monkeypatch.setattr(tool.cv2, "imwrite", lambda path, image: False)
    monkeypatch.setattr(tool, "VideoWriter", lambda path, fps: MagicMock())
    with pytest.raises(OSError, match=r"c/0\.png"):
        tool.draw_video(records[2], [], {}, lambda frame, objects: frame, tmp_path / "c", 6)


def test_an_object_keeps_its_number_and_is_absent_where_it_has_no_pixel(load_tool) -> None:
    tool, names = load_tool("vis_results"), {1: "cat", 6: "dog"}
    mask, empty = (compressed_rle(np.full((4, 6), value)) for value in (True, False))
    predictions = [
        {"score": 0.9, "category_id": 1, "segmentations": [mask, mask, None]},
        {"score": 0.8, "category_id": 6, "segmentations": [empty, mask, mask]},
    ]
    seen = [tool.find_visible_objects(predictions, names, t) for t in range(3)]
    numbers = [[(item.track_id, item.name, item.score) for item in frame] for frame in seen]
    cat, dog = (0, "cat", 0.9), (1, "dog", 0.8)
    assert numbers == [[cat], [cat, dog], [dog]]
