"""The tools of the video data sets."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
from PIL import Image

from ovformer.d2 import DatasetCatalog
from ovformer.data.files.video_files import VideoSource
from ovformer.data.files.vis_json import load_vis_json
from ovformer.demo.painter import Painter
from support.masks import compressed_rle
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


def test_a_list_of_test_videos(
    tmp_path: Path, load_tool: Callable, monkeypatch: pytest.MonkeyPatch, user_error
) -> None:
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
    names = [["00002/00000.jpg"], [f"00007/{t:05d}.jpg" for t in range(3)]]
    assert json.loads(path.read_text())["categories"] == CATEGORIES
    videos = load_vis_json(path)["videos"]
    assert [(v["id"], v["length"], v["height"], v["width"]) for v in videos] == [
        (0, 1, 20, 30),
        (1, 3, 20, 30),
    ]
    assert [video["file_names"] for video in videos] == names
    assert len(DatasetCatalog.get("lvvis_test")) == 2
    (images / "00002" / "00000.jpg").write_bytes(b"")
    assert "00002/00000.jpg" in user_error(tool.main)
    (images / "00002" / "00000.jpg").unlink()
    assert str(images / "00002") in user_error(tool.main)


def test_burst(tmp_path: Path, load_tool: Callable) -> None:
    content, split = burst()
    (tmp_path / "all_classes.json").write_text(json.dumps(content))
    (tmp_path / "class_split.json").write_text(json.dumps(split))
    options = {"ann": "all_classes.json", "split": "class_split.json", "out": "new/b2y_val.json"}
    tool = load_tool("burst2ytvis")
    arguments = [
        word for key, name in options.items() for word in (f"--{key}", str(tmp_path / name))
    ]
    tool.main(arguments)
    path = tmp_path / "new" / "b2y_val.json"
    raw = json.loads(path.read_text())
    assert raw["cate_ori"] == content["categories"] and raw["split"] == "val"
    assert raw["track_id_mapping"] == {"12": {"1": 1, "4": 2}}
    converted = load_vis_json(path)
    (video,) = converted["videos"]
    assert video["file_names"] == [f"YFCC100M/v_1/frame00{t}1.jpg" for t in ("0", "3")]
    assert (video["id"], video["length"], video["height"], video["width"]) == (12, 2, 8, 10)
    assert (video["neg_category_ids"], video["not_exhaustive_category_ids"]) == ([2], [3])
    found = {c["id"]: (c["name"], c["split"]) for c in converted["categories"]}
    assert found == {
        1: ("class 4", "common"),
        2: ("class 81", "uncommon"),
        3: ("class 95", "uncommon"),
    }
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
    length, height, width = VIDEOS[video_id]
    mask = np.zeros((height, width), bool)
    mask[5:20, 10:30] = True
    tube = [compressed_rle(mask)] * length
    return {
        "video_id": video_id,
        "score": score,
        "category_id": category_id,
        "segmentations": tube,
    }


def write_results(folder: Path, entries: list[dict]) -> Path:
    path = folder / "inference" / "ytvis_2019_val" / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return path


def unpack(folder: Path, name: str) -> list[dict]:
    with zipfile.ZipFile(folder / f"{name}.zip") as file:
        assert file.namelist() == ["results.json"]
        return json.loads(file.read("results.json"))


def test_packed_results(
    mini_videos: MiniVideos, tmp_path: Path, load_tool: Callable, capsys: pytest.CaptureFixture
) -> None:
    entries = [prediction(3, 1), prediction(3, 6, 0.4), prediction(8, 39)]
    path = write_results(tmp_path / "run", entries)
    tool = load_tool("ytvis_json")
    tool.main(["--results", str(tmp_path / "run"), "--dataset", "ytvis_2019_val"])
    assert unpack(path.parent, "all") == entries
    assert unpack(path.parent, "base") == entries[:1]
    assert unpack(path.parent, "novel") == entries[1:]
    out = capsys.readouterr().out
    assert "no prediction for 1 of 3 videos" in out and "novel.zip: 2 predictions" in out
    # The labels are not needed.
    without = mini_videos.write("val", annotations=None)
    options = ["--ann", str(without), "--out", str(tmp_path / "packed")]
    write_results(tmp_path / "run", [])
    tool.main(["--results", str(path), "--dataset", "ytvis_2019_val", *options])
    assert unpack(tmp_path / "packed", "all") == unpack(tmp_path / "packed", "novel") == []


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (lambda e: e.update(video_id=4), ["video 4"]),
        (lambda e: e.update(category_id=41), ["category_id 41"]),
        (lambda e: e.update(score=float("nan")), ["score nan"]),
        (lambda e: e["segmentations"].pop(), ["5 segmentations", "6 frames"]),
        (
            lambda e: e.update(segmentations=[compressed_rle(np.ones((60, 40)))] * 6),
            ["[60, 40]"],
        ),
    ],
)
def test_results_that_the_server_would_refuse(
    mini_videos: MiniVideos,
    tmp_path: Path,
    load_tool: Callable,
    user_error: Callable,
    change: Callable,
    keys: list[str],
) -> None:
    entries = [prediction(3, 1), prediction(3, 6)]
    path = write_results(tmp_path, entries)
    arguments = ["--results", str(path), "--dataset", "ytvis_2019_val"]
    load_tool("ytvis_json").main(arguments)
    before = (path.parent / "all.zip").read_bytes()
    change(entries[1])
    write_results(tmp_path, entries)
    message = user_error(load_tool("ytvis_json").main, *arguments)
    assert all(key in message for key in keys)
    assert (path.parent / "all.zip").read_bytes() == before
    assert not list(path.parent.glob("*.tmp"))


def test_too_many_predictions_of_a_video(
    mini_videos: MiniVideos, tmp_path: Path, load_tool: Callable, user_error: Callable
) -> None:
    entries = [prediction(3, 1), prediction(8, 1), prediction(3, 6)]
    path = write_results(tmp_path, entries)
    arguments = ["--results", str(path), "--dataset", "ytvis_2019_val", "--max-per-video"]
    load_tool("ytvis_json").main([*arguments, "2"])
    message = user_error(load_tool("ytvis_json").main, *arguments, "1")
    assert "video 3" in message and "--max-per-video" in message


def read_frame_images(folder: Path, count: int) -> list[np.ndarray]:
    return [cv2.imread(str(folder / f"{t:05d}.png")).astype(int) for t in range(count)]


def test_drawn_results(mini_videos: MiniVideos, tmp_path: Path, load_tool: Callable) -> None:
    pytest.importorskip("supervision", reason="needs the extra [demo]")
    pytest.importorskip("av", reason="needs the extra [demo]")
    path = write_results(tmp_path, [prediction(3, 6, 0.8), prediction(3, 1), prediction(8, 1, 0.3)])
    tool = load_tool("vis_results")
    words = ["--results", str(path), "--dataset", "ytvis_2019_val"]
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
    tool.main(["--annotations", "--dataset", "ytvis_2019_val"])
    out = mini_videos.annotations("val").parent / "visualization"
    # Video 11 has no annotation.
    assert sorted(p.name for p in out.glob("*.mp4")) == ["video3.mp4", "video8.mp4"]
    (frame,) = read_frame_images(out / "video3", 1)
    assert np.abs(frame[16, 15] - frame[39, 0]).max() > 20


def test_frames_of_two_videos_do_not_share_a_folder(
    load_tool: Callable, monkeypatch, tmp_path
) -> None:
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


def test_an_object_keeps_its_colour(load_tool: Callable) -> None:
    pytest.importorskip("supervision", reason="needs the extra [demo]")
    masks = np.zeros((2, 200, 300), bool)
    masks[0, 100:180, 20:120] = True
    masks[1, 100:180, 160:280] = True
    one, two = map(compressed_rle, masks)
    tool, painter = load_tool("vis_results"), Painter()
    names = {1: "cat", 6: "dog"}
    predictions = [
        {"score": 0.9, "category_id": 1, "segmentations": [one, one, None]},
        {"score": 0.8, "category_id": 6, "segmentations": [None, two, two]},
    ]
    frame = np.full((200, 300, 3), 120, np.uint8)
    drawn = [painter(frame, tool.find_visible_objects(predictions, names, t)) for t in range(3)]
    left = [image[170, 70].tolist() for image in drawn]
    right = [image[170, 220].tolist() for image in drawn]
    assert left[0] == left[1] != right[1] == right[2]
    assert left[2] == right[0] == [120, 120, 120]
    assert not (drawn[0][60:100] == 120).all()  # its name and score
    nothing = [{**p, "segmentations": [None] * 3} for p in predictions]
    assert np.array_equal(painter(frame, tool.find_visible_objects(nothing, names, 0)), frame)
    assert (frame == 120).all()


def test_drawing_results_of_another_data_set(
    mini_videos: MiniVideos, tmp_path: Path, load_tool: Callable, user_error: Callable
) -> None:
    pytest.importorskip("supervision", reason="needs the extra [demo]")
    path = write_results(tmp_path, [{**prediction(3, 1), "video_id": 77}])
    tool = load_tool("vis_results")
    assert "video 77" in user_error(tool.main, "--results", path, "--dataset", "ytvis_2019_val")
