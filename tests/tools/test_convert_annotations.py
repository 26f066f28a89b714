"""``tools/convert_annotations.py`` on exports of drawn videos: every mask comes out as drawn."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ovformer.data.files.vis_json import load_vis_json
from support.annotation_exports import (
    check_equal,
    coco,
    cvat_images,
    cvat_video,
    draw,
    ls_key,
    ls_task,
    ls_tracked,
    png,
    write_frames,
    write_video,
    zip_of,
)


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("convert_annotations")


def test_cvat_video_with_the_film_beside_it(tool, tmp_path: Path, capsys) -> None:
    videos = [draw("one", 6, 0), draw("two", 7, 1)]
    for video in videos:
        write_video(tmp_path / "films", video)
        (tmp_path / f"{video.name}.xml").write_bytes(cvat_video(video))
    exports = [str(tmp_path / f"{video.name}.xml") for video in videos]
    out = tmp_path / "out"
    tool.main([*exports, "--media", str(tmp_path / "films"), "--output", str(out), "--val", "0.5"])
    check_equal(out / "annotations.json", videos)
    parts = [load_vis_json(out / f"{name}.json") for name in ("train", "val")]
    assert sorted(v["id"] for part in parts for v in part["videos"]) == [1, 2]
    assert parts[0]["categories"] == parts[1]["categories"]
    printed = capsys.readouterr().out
    for part in ("2 videos, 13 frames, 4 objects with 22 masks", "annotations 2, train 1, val 1"):
        assert part in printed
    assert "Left out" not in printed and "Note" not in printed


def test_cvat_zip_of_images(tool, tmp_path: Path) -> None:
    video = draw("clip")
    members = {f"images/clip/{t:05d}.png": png(image) for t, image in enumerate(video.images)}
    (tmp_path / "a.zip").write_bytes(zip_of({"annotations.xml": cvat_images(video), **members}))
    tool.main([str(tmp_path / "a.zip"), "--output", str(tmp_path / "out"), "--every", "2"])
    check_equal(tmp_path / "out" / "annotations.json", [video], every=2)


@pytest.mark.parametrize("kinds", [("polygon", "rle"), ("compressed", "compressed")])
def test_coco(tool, tmp_path: Path, kinds: tuple[str, str]) -> None:
    videos = [draw("b", 12, 0), draw("a", 3, 1)]
    for video in videos:
        write_frames(tmp_path / "frames", video)
    (tmp_path / "coco.json").write_text(json.dumps(coco(videos, kinds)))
    out = tmp_path / "out"
    tool.main([str(tmp_path / "coco.json"), "--media", str(tmp_path), "--output", str(out)])
    check_equal(out / "annotations.json", videos)


def test_boxes_become_masks_when_asked(tool, tmp_path: Path, user_error) -> None:
    video = draw("film")
    write_video(tmp_path, video)
    masks = video.objects[0].masks
    tracked = ls_tracked([ls_key(1, masks[0]), ls_key(6, masks[5])], 6)
    tasks = [ls_task({"video": "film.mp4"}, [tracked])]
    (tmp_path / "boxes.json").write_text(json.dumps(tasks))
    words = [str(tmp_path / "boxes.json"), "--output", str(tmp_path / "out")]
    message = user_error(tool.main, *words)
    assert "task 1: region r1" in message and "frame 1" in message
    assert not (tmp_path / "out").exists()
    tool.main([*words, "--boxes-as-masks"])
    del video.objects[1]
    check_equal(tmp_path / "out" / "annotations.json", [video])


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{"videos": [], "annotations": []}', "YouTube-VIS"),
        ('{"images": []}', "['annotations', 'categories']"),
        ("[]", "no video"),
        ("5", "single value"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_files_that_are_no_exports(tool, tmp_path: Path, user_error, content: str, key) -> None:
    (tmp_path / "a.json").write_text(content)
    assert key in user_error(tool.main, tmp_path / "a.json", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_export_twice(tool, tmp_path: Path, user_error) -> None:
    """Its videos could be trained with and validated on."""
    video = draw("one", 3, 0)
    write_video(tmp_path, video)
    exports = [tmp_path / name for name in ("a.xml", "a (1).xml")]
    for path in exports:
        path.write_bytes(cvat_video(video))
    message = user_error(tool.main, *exports, "--output", tmp_path / "out", "--val", "0.5")
    assert all(str(path) in message for path in exports) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "value"), [("--val", "1"), ("--val", "-0.1"), ("--every", "0")])
def test_options_out_of_range(tool, user_error, option: str, value: str) -> None:
    assert option in user_error(tool.main, "a.json", "--output", "out", f"{option}={value}")
