"""Properties of all readers: any file is read, or refused with an error that names it.

Each property takes ``draw`` (see ``mutations``) and a folder for its file. Accepted files are used
as by the scorer, the mappers and the tools, in the same process: a crash of C code ends it.
"""

import io
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from mutations import HOSTILE, Draw, damaged, damaged_text
from pycocotools import mask as coco_mask

from ovformer.config import UnknownKeyError, get_ovformer_cfg
from ovformer.d2.safe_pickle import load_torch_file, load_weights_pickle
from ovformer.data.catalog.category_counts import count_categories
from ovformer.data.catalog.custom import register_custom
from ovformer.data.files.json_file import name_file_in_errors, read_json
from ovformer.data.files.lvis_json import read_lvis_json
from ovformer.data.files.untrusted_masks import (
    MAX_PIXELS,
    check_polygons,
    find_fault,
    polygons_to_rle,
    runs_to_rle,
)
from ovformer.data.files.vis_json import load_vis_json, read_vis_json
from ovformer.evaluation.results_reader import read_checked, read_results
from ovformer.evaluation.video_metric import VideoMetric

TABLE = [{"id": 2, "name": "cat"}, {"id": 9, "name": "cow"}]
RUNS = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
TEXT = {"size": [4, 6], "counts": coco_mask.frPyObjects(RUNS, 4, 6)["counts"].decode()}
POLYGON = [[2.0, 1, 5, 1, 5, 3, 2, 3]]
LVIS = {
    "images": [
        {"id": 1, "height": 4, "width": 6, "file_name": "1.png", "neg_category_ids": [9]},
        {"id": 2, "height": 4, "width": 6, "coco_url": "http://host/set/2.png"},
    ],
    "annotations": [
        {"id": n, "image_id": 1 + n % 2, "category_id": 2, "bbox": [2, 1, 3, 2], "iscrowd": 0}
        | {"segmentation": mask}
        for n, mask in enumerate((TEXT, RUNS, POLYGON))
    ],
    "categories": TABLE,
}
VIS = {
    "videos": [
        {"id": 8, "height": 4, "width": 6, "length": 3, "file_names": ["a/0", "a/1", "a/2"]},
        {"id": 3, "height": 4, "width": 6, "file_names": ["b/0"], "neg_category_ids": [2]},
    ],
    "categories": TABLE,
    "annotations": [
        {"id": 4, "video_id": 8, "category_id": 9, "segmentations": [TEXT, None, RUNS]}
        | {"areas": [10, None, 10], "iscrowd": 0},
        {"id": 5, "video_id": 3, "category_id": 2, "segmentations": [POLYGON]},
    ],
    "cate_ori": [{"id": 70}, {"id": 71}],
}
RESULTS = [
    {"video_id": 8, "score": 0.5, "category_id": 9, "segmentations": [TEXT, TEXT, None]},
    {"video_id": 8, "score": 0.4, "category_id": 9, "segmentations": [None, None, TEXT]},
    {"video_id": 3, "score": 1, "category_id": 2, "segmentations": [TEXT]},
]
CONFIG = """
MODEL:
  META_ARCHITECTURE: OVFormer
  PIXEL_MEAN: [1.0, 2.0, 3.0]
  SEM_SEG_HEAD: {NUM_CLASSES: 3, IN_FEATURES: [res2, res3]}
  TIMM: {KWARGS: "{depth: 3}"}
DATASETS:
  TRAIN: &names ["a", "b"]
  TEST: *names
  CUSTOM: [{name: birds, annotations: a.json, images: frames, novel: [wren]}]
SOLVER: {BASE_LR: 1.0e-4, STEPS: [1, 2], MAX_ITER: 10}
"""


def lvis_annotations(draw: Draw, folder: Path) -> None:
    """Read an LVIS file, and draw its masks as the mapper does."""
    path = _write(folder / "lvis.json", damaged(LVIS, draw))
    records = []
    with _refused(path):
        records = read_lvis_json(path, folder, TABLE)
    for record in records:
        if record["height"] * record["width"] < 1 << 20:
            for annotation in record["annotations"]:
                if isinstance(mask := annotation["segmentation"], list):
                    mask = polygons_to_rle(mask, record["height"], record["width"])
                assert coco_mask.decode(mask).shape == (record["height"], record["width"])
    with _refused(path):
        content = read_json(path, ("annotations", "categories"))
        with name_file_in_errors(path):
            count_categories(content)


def video_annotations(draw: Draw, folder: Path) -> None:
    """Read a file of videos, score nothing against it and make records of it."""
    path = _write(folder / "videos.json", damaged(VIS, draw))
    truth = None
    with _refused(path):
        truth = load_vis_json(path)
    if truth is not None:
        if truth.get("annotations") is not None:
            VideoMetric(truth).compute().table()
        with _refused(path):
            read_vis_json(path, folder, TABLE)


def results(draw: Draw, folder: Path) -> None:
    """Read results and score them."""
    truth = load_vis_json(_write(folder / "truth.json", json.dumps(VIS).encode()))
    path = _write(folder / "results.json", damaged(RESULTS, draw))
    metric = VideoMetric(truth)
    with _refused(path), name_file_in_errors(path):
        metric.update(read_results(path))
    metric.compute()
    with _refused(path):
        list(read_checked(path, truth))


def masks(draw: Draw, folder: Path) -> None:
    """Check any RLEs and polygons, and use those that are accepted."""
    size = [draw(1, 9), draw(1, 9)] if draw(0, 9) else [draw(0, 1 << 30), draw(0, 1 << 30)]
    texts = [_counts(draw, size) for _ in range(draw(1, 3))]
    rles = [{"size": size, "counts": text} for text in texts]
    valid = [rle for rle in rles if size[0] * size[1] <= MAX_PIXELS and _covers(rle)]
    fault = find_fault(rles)
    assert (fault is None) == (len(valid) == len(rles)), (rles, fault)
    assert fault is None or rles[fault.index] not in valid
    if size[0] * size[1] <= 1 << 20:
        for rle in valid:
            _use(rle)
        if valid:
            decoded = [coco_mask.decode(rle).astype(bool) for rle in valid]
            iou = coco_mask.iou(valid, valid, [0] * len(valid))
            wanted = [[_share(a & b, a | b) for b in decoded] for a in decoded]
            np.testing.assert_allclose(iou, wanted)
            merged = coco_mask.decode(coco_mask.merge(valid))
            np.testing.assert_array_equal(merged, np.any(decoded, axis=0))
        runs = [draw(-1, 2 * size[0]) for _ in range(draw(0, 4))]
        runs.append(size[0] * size[1] - sum(runs))
        if (rle := _check_or_none(lambda: runs_to_rle(size, runs))) is not None:
            assert find_fault([rle]) is None
            _use(rle)
        numbers = [_coordinate(draw) for _ in range(draw(0, 9))]
        if _check_or_none(lambda: check_polygons([numbers], *size) or True):
            _use(polygons_to_rle([numbers], *size))
            polygons_to_rle([np.array(numbers) * 2048], 64, 64)


def config(draw: Draw, folder: Path) -> None:
    """Read a config, and options as from the command line."""
    try:
        document = json.loads(damaged(yaml.safe_load(CONFIG), draw))
    except (RecursionError, ValueError):
        document = None
    text = yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "replace")
    text = CONFIG.encode() if draw(0, 1) else text
    path = _write(folder / "config.yaml", damaged_text(text, draw) if draw(0, 1) else text)
    keys = ("SOLVER.BASE_LR", "DATASETS.TRAIN", "MODEL", "MODEL.TIMM.KWARGS", "TEST.AUG", "")
    values = ("1", "(1,", "('a',)", "[" * 9999, "None", "{1: 2}", "1e999", "9" * 5000, "\0", "a: b")
    words = [keys[draw(0, len(keys) - 1)], values[draw(0, len(values) - 1)]] * draw(0, 1)
    try:
        cfg = get_ovformer_cfg(str(path), words)
        register_custom(cfg.DATASETS.CUSTOM)
    except UnknownKeyError as error:
        assert str(path) in str(error) or "command line" in str(error)
    except FileNotFoundError as error:
        assert str(error)
    except ValueError as error:
        named = str(path), *(word for word in words if "." in word), "DATASETS.CUSTOM", "ategor"
        assert any(name in str(error) for name in named), error


def pickles(draw: Draw, folder: Path) -> None:
    """Unpickle weights; only numbers, arrays, tensors and containers are ever made."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {"model": {"a": array, "b": torch.ones(2)}, "n": [np.float64(1), np.int64(2)]}
    if draw(0, 1):
        data = damaged_text(pickle.dumps(content, protocol=draw(0, 5)), draw)
        load = load_weights_pickle
    else:
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=bool(draw(0, 1)))
        data, load = damaged_text(file.getvalue(), draw), load_torch_file
    try:
        _read_numbers(load(io.BytesIO(data)))
    except pickle.UnpicklingError as error:
        assert str(error)


PROPERTIES: dict[str, Callable[[Draw, Path], None]] = {
    function.__name__: function
    for function in (lvis_annotations, video_annotations, results, masks, config, pickles)
}


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Allow a reader to refuse a file, with an error that names it."""
    try:
        yield
    except ValueError as error:
        assert str(path) in str(error), error


def _check_or_none(check: Callable[[], Any]) -> Any:
    try:
        return check()
    except ValueError:
        return None


def _counts(draw: Draw, size: list[int]) -> str:
    """Return counts: valid ones of this or another size, perhaps damaged, or any characters."""
    if draw(0, 2) == 0:
        return "".join(chr(draw(40, 115)) for _ in range(draw(0, 9)))
    ends = sorted(draw(0, 80) for _ in range(draw(0, 5)))
    runs = np.diff([0, *ends, 80 if draw(0, 1) else min(size[0] * size[1], 1 << 24)])
    frame = [1, int(np.abs(runs).sum())]
    code = coco_mask.frPyObjects({"size": frame, "counts": np.abs(runs).tolist()}, *frame)
    text = code["counts"]
    return (damaged_text(text, draw) if draw(0, 3) == 0 else text).decode("latin1")


def _coordinate(draw: Draw) -> float:
    hostile = [value for value in HOSTILE if isinstance(value, float)]
    return hostile[draw(0, len(hostile) - 1)] if draw(0, 9) == 0 else draw(-60, 200) / 8


def _covers(rle: dict) -> bool:
    """Read counts plainly, number by number; tell whether they cover the frame, none in vain."""
    text, runs = rle["counts"], []
    if not text or not all(48 <= ord(character) <= 111 for character in text):
        return False
    digits: list[int] = []
    for character in text:
        digits.append(ord(character) - 48)
        if digits[-1] & 32:
            continue
        value = sum((digit & 31) << 5 * place for place, digit in enumerate(digits))
        value -= (digits[-1] & 16 != 0) << 5 * len(digits)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if len(digits) > 6 or runs[-1] < 0:
            return False
        digits = []
    height, width = rle["size"]
    fits = height > 0 and width > 0 and sum(runs) == height * width
    return not digits and fits and 0 not in runs[1:]


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return part.sum() / max(whole.sum(), 1)


def _use(rle: dict) -> None:
    mask = coco_mask.decode(rle)
    assert list(mask.shape) == list(rle["size"]) and mask.max() <= 1
    assert coco_mask.area(rle) == mask.sum()
    coco_mask.toBbox(rle)


def _read_numbers(value: Any) -> None:
    """Read all numbers of what was unpickled."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        for part in value:
            _read_numbers(part)
    elif isinstance(value, np.ndarray | torch.Tensor):
        assert isinstance(value, torch.Tensor) or value.dtype.kind in "biufc"
        str(value)
