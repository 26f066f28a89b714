"""Exports in which any one value is something else: they are read, or an error names the export."""

import copy
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovformer.data.exports.coco_frames import read_coco
from ovformer.data.exports.cvat import read_cvat
from ovformer.data.exports.label_studio import read_label_studio
from support.annotation_exports import (
    brush_of,
    coco,
    convert,
    cvat_images,
    cvat_video,
    draw,
    ls_key,
    ls_region,
    ls_task,
    ls_tracked,
    make_export,
    write_frames,
    write_video,
)

CLIP = draw("clip", 3)
JUNK = [None, -1, 0, 1e300, float("nan"), "", "x", [], {}, [1], {"a": 1}, True, 10**20, "../x"]
XML_JUNK = ["", "x", "-1", "1e300", "nan", "9" * 20, "1,2", "1;2", ";,", "../x"]
KINDS = ("polygon", "rle", "compressed")
RANDOM = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media")
    write_frames(path, CLIP)
    write_video(path, draw("film", 3))
    return path


def label_studio() -> list[dict]:
    tasks = []
    for t, disc in enumerate(CLIP.objects[1].masks):
        regions = ls_region("polygonlabels", {"points": [[1, 1], [9, 1], [9, 9]]}, 1, "p")
        box = {"x": 5, "y": 5, "width": 9, "height": 9, "rotation": 3}
        regions += ls_region("rectanglelabels", box, 2, "r")
        if disc is not None:
            regions += ls_region("brushlabels", {"rle": brush_of(disc)}, 3, "b")
        tasks.append(ls_task({"image": f"clip/{t:05d}.png"}, regions, t))
    masks = CLIP.objects[0].masks
    tracked = ls_tracked([ls_key(1, masks[0]), ls_key(3, masks[2])], 3)
    return [*tasks, ls_task({"video": "film.mp4"}, [tracked], 9)]


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        yield *path, key
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def change(content: Any, random: Random) -> Any:
    """The content with another value in one place, or without it."""
    content = copy.deepcopy(content)
    *path, last = random.choice(list(places(content)))
    inner = content
    for key in path:
        inner = inner[key]
    inner[last] = random.choice(JUNK)
    if isinstance(inner, dict) and random.random() < 0.2:
        del inner[last]
    return content


def change_xml(xml: bytes, random: Random) -> bytes:
    root = ElementTree.fromstring(xml)
    element = random.choice(list(root.iter()))
    if element.attrib:
        key = random.choice(sorted(element.attrib))
        element.set(key, random.choice(XML_JUNK))
        if random.random() < 0.2:
            del element.attrib[key]
    else:
        element.text = random.choice(XML_JUNK)
    return ElementTree.tostring(root)


@settings(max_examples=200)
@given(RANDOM, st.sampled_from(["Label Studio", "CVAT videos", "CVAT images", *KINDS]))
def test_one_wrong_value(folder: Path, random: Random, tool: str) -> None:
    if tool == "Label Studio":
        read, content = read_label_studio, change(label_studio(), random)
    elif tool in KINDS:
        read, content = read_coco, change(coco([CLIP], (tool, tool)), random)
    else:
        xml = cvat_images(CLIP) if tool == "CVAT images" else cvat_video(CLIP, source=None)
        read, content = read_cvat, BytesIO(change_xml(xml, random))
    export = make_export(folder)
    try:
        for video in read(content, export)[0]:
            convert(video, export)
    except (FileNotFoundError, ValueError) as error:
        assert str(error).startswith(("export: ", str(folder)))
