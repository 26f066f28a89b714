"""``tools/convert_annotations.py`` on exports of drawn videos: every mask comes out as drawn."""

import json
from pathlib import Path

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

TOOL = "convert_annotations"


def test_cvat_with_videos_beside_it(tool, tmp_path: Path, capsys, user_error) -> None:
    videos, out = [draw("one", 6, 0), draw("two", 7, 1)], tmp_path / "out"
    for video in videos:
        write_video(tmp_path / "films", video)
        (tmp_path / f"{video.name}.xml").write_bytes(cvat_video(video))
    words = ["--media", str(tmp_path / "films"), "--output", str(out), "--val", "0.5"]
    exports = [str(tmp_path / f"{video.name}.xml") for video in videos]
    # With the same export twice, its videos could be trained with and validated on.
    (tmp_path / "one (1).xml").write_bytes(cvat_video(videos[0]))
    message = user_error(tool.main, *exports, tmp_path / "one (1).xml", *words)
    assert "one.xml" in message and "one (1).xml" in message and not out.exists()
    tool.main([*exports, *words])
    check_equal(out / "annotations.json", videos)
    train, val = (load_vis_json(out / f"{name}.json") for name in ("train", "val"))
    assert sorted(v["id"] for v in train["videos"] + val["videos"]) == [1, 2]
    assert len(train["videos"]) == 1 and train["categories"] == val["categories"]
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
    ("content", "words", "key"),
    [
        ('{"videos": [], "annotations": []}', [], "YouTube-VIS"),
        ('{"images": []}', [], "['annotations', 'categories']"),
        ("[]", [], "no video"),
        ("5", [], "single value"),
        ("[" * 100_000, [], "JSON"),
        ("", ["--val=1"], "--val"),
        ("", ["--val=-0.1"], "--val"),
        ("", ["--every=0"], "--every"),
    ],
)
def test_bad_files_and_options(tool, tmp_path: Path, user_error, content, words, key) -> None:
    (tmp_path / "a.json").write_text(content)
    assert key in user_error(tool.main, tmp_path / "a.json", "--output", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()
