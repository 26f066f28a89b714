"""The first image of an annotation file, and damaged files."""

import json
from pathlib import Path

import pytest

from ovformer.data.files import json_peek
from ovformer.data.files.json_peek import peek


@pytest.mark.parametrize(
    ("content", "image"),
    [
        ({"images": [{"id": 1, "file_name": "a/b é.png"}, {"file_name": "c.png"}]}, "a/b é.png"),
        ({"images": [{"coco_url": "http://x.org/val2017/1.jpg", "id": 1}]}, "val2017/1.jpg"),
        ({"images": [{"coco_url": "http://x.org/y/1.jpg", "file_name": "2.jpg"}]}, "2.jpg"),
        ({"videos": [{"file_names": ["v1/0.jpg", "v1/1.jpg"]}]}, "v1/0.jpg"),
        ({"videos": [{"file_names": ["E:\\data\\v1\\0.jpg"]}]}, "v1/0.jpg"),
        ({"images": [], "videos": [{"file_names": []}]}, None),
        ([], None),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_the_first_image(tmp_path: Path, content: object, image: str | None, indent) -> None:
    path = tmp_path / "a.json"
    for encoding in ("utf-8", "utf-8-sig"):  # with a byte order mark as well
        path.write_text(json.dumps(content, indent=indent) + "\n", encoding=encoding)
        assert peek(path, "folder") == (image and f"folder/{image}")


def test_an_image_at_the_end_of_a_large_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_peek, "PEEK", 100)
    path = tmp_path / "a.json"
    content = {"annotations": list(range(1000)), "images": [{"file_name": "1.png"}]}
    path.write_text(json.dumps(content))
    assert peek(path, tmp_path) == str(tmp_path / "1.png")


def test_a_name_that_is_no_text_of_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(r'{"images": [{"file_name": "\x"}]}')
    with pytest.raises(ValueError, match=r"a\.json: Invalid"):
        peek(path, "folder")


@pytest.mark.parametrize("text", ["", "  \n", '{"images": [{"file_na', "<html></html>", "\x00" * 9])
def test_damaged_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON.*truncated"):
        peek(path, "folder")
