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
    assert "2 videos, 13 frames, 4 objects with 22 masks" in printed
    assert "disc: annotations 2, train 1, val 1" in printed
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


def test_boxes_become_masks_when_asked(tool, tmp_path: Path, capsys) -> None:
    video = draw("film")
    write_video(tmp_path, video)
    masks = video.objects[0].masks
    tracked = ls_tracked([ls_key(1, masks[0]), ls_key(6, masks[5])], 6)
    tasks = [ls_task({"video": "film.mp4"}, [tracked])]
    (tmp_path / "boxes.json").write_text(json.dumps(tasks))
    words = [str(tmp_path / "boxes.json"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        tool.main(words)
    assert end.value.code == 2
    assert "task 1: region r1: has a box and no mask in frame 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    tool.main([*words, "--boxes-as-masks"])
    del video.objects[1]
    check_equal(tmp_path / "out" / "annotations.json", [video])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"videos": [], "annotations": []}', "in the format of YouTube-VIS already"),
        ('{"images": []}', "has no ['annotations', 'categories']"),
        ("[{", "neither XML nor JSON"),
        ("[]", "no video in these exports"),
        ("5", "no annotations, but a single value"),
        ("[" * 100_000, "neither XML nor JSON"),
    ],
)
def test_files_that_are_no_exports(tool, tmp_path: Path, capsys, content: str, message) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SystemExit) as end:
        tool.main([str(tmp_path / "a.json"), "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_export_twice(tool, tmp_path: Path, capsys) -> None:
    """Its videos could be trained with and validated on."""
    video = draw("one", 3, 0)
    write_video(tmp_path, video)
    (tmp_path / "a.xml").write_bytes(cvat_video(video))
    (tmp_path / "a (1).xml").write_bytes(cvat_video(video))
    exports = [str(tmp_path / name) for name in ("a.xml", "a (1).xml")]
    with pytest.raises(SystemExit) as end:
        tool.main([*exports, "--output", str(tmp_path / "out"), "--val", "0.5"])
    assert end.value.code == 2 and not (tmp_path / "out").exists()
    assert "a (1).xml: the same export as " in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--val", "1"), ("--val", "-0.1"), ("--every", "0")])
def test_options_out_of_range(tool, option: str, value: str) -> None:
    with pytest.raises(SystemExit) as end:
        tool.main(["a.json", "--output", "out", f"{option}={value}"])
    assert end.value.code == 2
