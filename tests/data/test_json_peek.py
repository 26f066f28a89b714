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
        ({"videos": [{"file_names": ["E:\\data\\v1\\0.jpg", "v1/1.jpg"]}]}, "v1/0.jpg"),
        ({"images": [], "videos": [{"file_names": []}]}, None),
        ([], None),
    ],
)
def test_the_first_image(tmp_path: Path, monkeypatch, content: object, image: str | None) -> None:
    path = tmp_path / "a.json"
    for indent, encoding in ((None, "utf-8"), (2, "utf-8-sig")):  # with a byte order mark as well
        path.write_text(json.dumps(content, indent=indent) + "\n", encoding=encoding)
        assert peek(path, "folder") == (image and f"folder/{image}")
    monkeypatch.setattr(json_peek, "PEEK", 200)
    path.write_text(json.dumps([*range(1000), content]))  # at the end of a large file
    assert peek(path, "folder") == (image and f"folder/{image}")


@pytest.mark.parametrize(
    "text", ["", "  \n", '{"images": [{"file_na', "<html></html>", r'{"file_name": "\x"}']
)
def test_damaged_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: (not valid JSON.*truncated|Invalid)"):
        peek(path, "folder")
