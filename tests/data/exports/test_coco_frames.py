"""COCO's JSON of frames: videos, order of frames, tracks, faults."""

from pathlib import Path

import pytest

from ovformer.data.exports.coco_frames import read_coco
from ovformer.data.exports.tracks import AnnotatedVideo
from ovformer.data.exports.youtube_vis import check_boxes
from support.annotation_exports import coco, convert, draw, make_export, write_frames


@pytest.fixture
def content(tmp_path: Path) -> dict:
    video = draw("clip", 11)
    write_frames(tmp_path, video, "{}.png")
    made = coco([video])
    for image in made["images"]:
        number = int(image["file_name"][5:10])
        image["file_name"] = f"clip/{number}.png"
    return made


def read(content: dict, folder: Path, **options) -> list[AnnotatedVideo]:
    videos, names = read_coco(content, make_export(folder, **options))
    assert names == ["square", "disc"]
    return videos


def test_frames_follow_their_numbers(content: dict, tmp_path: Path) -> None:
    content["images"].reverse()
    for order in (range(11), range(10, -1, -1)):
        (video,) = read(content, tmp_path)
        assert [found.name for found in video.frames.files] == [f"clip/{t}.png" for t in order]
        for image in content["images"]:
            image["frame_index"] = -int(image["file_name"][5:-4])


def test_video_ids_count_more_than_folders(content: dict, tmp_path: Path) -> None:
    for image in content["images"]:
        image["video_id"] = 1 + (image["id"] > 4)
    content["videos"] = [{"id": 1, "name": "start"}, {"id": 2, "name": "rest"}]
    found = [(v.name, len(v.frames.files), len(v.tracks)) for v in read(content, tmp_path)]
    assert found == [("start", 4, 2), ("rest", 7, 2)]


def test_parts_of_an_object_are_one_mask_and_crowds_stay_crowds(
    content: dict, tmp_path: Path
) -> None:
    square = {**content["annotations"][0], "attributes": {}, "number": 3, "iscrowd": 1}
    part = [[40, 30, 50, 30, 50, 40, 40, 40]]
    content["annotations"] = [square, {**square, "id": 99, "segmentation": part}]
    (video,) = read(content, tmp_path, track_by="number")
    (found,) = convert(video, make_export(tmp_path))
    assert found["areas"][0] == 14 * 14 + 100
    assert found["iscrowd"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, "annotation 1: image_id 77 is not in the file"),
        ({"category_id": 77}, "annotation 1: category_id 77 is not in the file"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 1: its segmentation .*three or more"),
        ({"segmentation": {"size": [48, 64]}}, "annotation 1: its segmentation .*counts"),
        ({"segmentation": [], "bbox": None}, "annotation 1: its segmentation or bbox"),
        ({"attributes": {}}, "annotation 1: .*--track-by"),
        ({"category_id": 15}, "annotation 2 is 'square', but .*track_id.* is 'disc'"),
    ],
)
def test_faults_are_named(content: dict, tmp_path: Path, change: dict, message: str) -> None:
    content["annotations"][0] |= change
    with pytest.raises(ValueError, match=message):
        read(content, tmp_path)


def test_faults_that_the_frames_show(content: dict, tmp_path: Path) -> None:
    (tmp_path / "clip" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match="image 4: '3.png' is not among"):
        read(content, tmp_path)
    content["images"][0]["width"] = 65
    with pytest.raises(ValueError, match="'clip' have different sizes"):
        read(content, tmp_path)
    with pytest.raises(ValueError, match="has no \\['categories'\\]"):
        read({"images": [], "annotations": []}, tmp_path)


def test_a_box_without_mask_is_found(content: dict, tmp_path: Path) -> None:
    content["annotations"][2]["segmentation"] = []
    with pytest.raises(ValueError, match=r"a box and no mask in frame 1 \(1 shapes are boxes\)"):
        check_boxes(read(content, tmp_path))
