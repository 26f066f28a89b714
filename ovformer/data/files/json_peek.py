"""Finds an image of an annotation file without reading all of it, which takes long."""

import codecs
import json
import os
import re
from pathlib import Path

from ovformer.data.files.json_file import name_file_in_errors
from ovformer.data.files.lvis_json import parse_image_name
from ovformer.data.files.vis_json import parse_frame_name

# Bytes that are read at the start and at the end.
PEEK = 1 << 22

_STRING = r'"((?:[^"\\]|\\.)+)"'
_FRAMES = re.compile(rf'"file_names"\s*:\s*\[\s*{_STRING}')
_IMAGE = {key: re.compile(rf'"{key}"\s*:\s*{_STRING}') for key in ("file_name", "coco_url")}


def peek(path: Path, image_folder: str | os.PathLike) -> str | None:
    """Return the path of the first image in the two ends of an annotation file.

    Args:
        path: in the format of LVIS, COCO or YouTube-VIS.
        image_folder: the folder that its file names are relative to.

    Returns:
        The path, which is not checked; None if neither end of the file has one.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is empty, does not begin and end like JSON, or the name is not valid.
    """
    with path.open("rb") as file:
        start = file.read(PEEK)
        size = file.seek(0, 2)
        file.seek(max(0, size - PEEK))
        end = file.read()
    start = start.removeprefix(codecs.BOM_UTF8)
    if start.lstrip()[:1] not in (b"{", b"[") or end.rstrip()[-1:] not in (b"}", b"]"):
        raise ValueError(
            f"{path}: not valid JSON, which begins and ends with brackets. The file has {size} "
            "bytes and is most likely truncated; download or generate it again."
        )
    with name_file_in_errors(path):
        for text in (start.decode("utf-8", "replace"), end.decode("utf-8", "replace")):
            if match := _FRAMES.search(text):
                return os.path.join(image_folder, parse_frame_name(_parse_string(match)))
            for key, pattern in _IMAGE.items():
                if match := pattern.search(text):
                    return os.path.join(image_folder, parse_image_name({key: _parse_string(match)}))
    return None


def _parse_string(match: re.Match) -> str:
    return json.loads(f'"{match[1]}"')
