"""LVIS average precision: recorded from the official code, and cases small enough for pencil."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from ovformer.d2 import Boxes, Instances, MetadataCatalog
from ovformer.data.files.json_file import read_json
from ovformer.evaluation import lvis_evaluator
from ovformer.evaluation.lvis_evaluator import LvisEvaluator, score_lvis
from support.masks import compressed_rle, rectangle

SIDE = 40
# The precision at 51 of the 101 recall thresholds, 0 to .5, where one of two objects is found.
HALF = 51 / 101 * 100


def square(x: int, y: int) -> dict:
    return compressed_rle(rectangle((SIDE, SIDE), x, y, x + 10, y + 10))


def truth_file(folder: Path, absent=(), not_exhaustive=(), is_coco: bool = False) -> Path:
    """Image 1: two squares of category 5. Image 2: nothing. Categories 5 (r), 6 (c), 9 (f)."""
    one = {"image_id": 1, "category_id": 5, "area": 100}
    annotations = [
        {"id": number, **one, "bbox": [x, 0, 10, 10], "segmentation": square(x, 0)}
        for number, x in ((1, 0), (2, 20))
    ]
    images = [{"id": number, "height": SIDE, "width": SIDE} for number in (1, 2)]
    categories = [{"id": number, "name": f"category {number}"} for number in (5, 6, 9)]
    if not is_coco:
        for image, lists in zip(images, (not_exhaustive, ()), strict=True):
            image |= {"neg_category_ids": absent, "not_exhaustive_category_ids": lists}
        for category, frequency in zip(categories, "rcf", strict=True):
            category["frequency"] = frequency
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def prediction(x: int, y: int, score: float, image_id: int = 1, category_id: int = 5) -> dict:
    ids = {"image_id": image_id, "category_id": category_id}
    return {**ids, "score": score, "segmentation": square(x, y)}


FOUND = prediction(0, 0, 0.8)
GROUPS = {"r": [5], "c": [6], "f": [9], "base": [6, 9], "novel": [5]}


@pytest.mark.parametrize("limit", [300, 8])
def test_equals_the_official_code(reference, tmp_path, monkeypatch, limit: int) -> None:
    recorded = json.loads(reference("lvis_eval_small.json").read_text())
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(recorded["truth"]))
    groups = {
        f: [c["id"] for c in recorded["truth"]["categories"] if c["frequency"] == f] for f in "rcf"
    }
    monkeypatch.setattr(lvis_evaluator, "MAX_DETECTIONS_PER_IMAGE", limit)
    scores, per_category = score_lvis(path, recorded["predictions"], groups)
    expected = recorded["scores"][str(limit)]
    for ours, theirs in zip(per_category, expected.pop("per_category"), strict=True):
        assert ours["AP"] == pytest.approx(100 * theirs, rel=1e-12)
    assert scores == pytest.approx({k: 100 * v for k, v in expected.items()}, rel=1e-12)


def test_one_of_two_objects_found(tmp_path) -> None:
    scores, per_category = score_lvis(truth_file(tmp_path), [FOUND], GROUPS)
    for name in ("AP", "AP50", "AP75", "APs", "APr", "AP_novel", "AP50_novel"):
        assert scores[name] == pytest.approx(HALF), name
    for name in ("APm", "APl", "APc", "APf", "AP_base", "AP50_base"):
        assert math.isnan(scores[name]), name
    assert [c["name"] for c in per_category] == ["category 5", "category 6", "category 9"]
    assert per_category[0]["AP50"] == pytest.approx(HALF)


# Above the right one, so it halves the precision. Its area is that of the mask, not of the box.
WRONG = {**prediction(0, 20, 0.9), "bbox": [0, 0, 39, 39]}
ELSEWHERE = {**WRONG, "image_id": 2}


@pytest.mark.parametrize(
    ("predictions", "truth", "expected"),
    [
        ([], {}, 0),
        ([FOUND, WRONG], {}, HALF / 2),
        ([FOUND, WRONG], {"not_exhaustive": [5]}, HALF),  # not all objects were annotated
        ([FOUND, ELSEWHERE], {}, HALF),  # nobody looked for the category in that image
        ([FOUND, ELSEWHERE], {"absent": [5]}, HALF / 2),
        ([FOUND, ELSEWHERE], {"is_coco": True}, HALF / 2),
    ],
)
def test_false_positives(tmp_path, predictions: list[dict], truth: dict, expected: float) -> None:
    scores, _ = score_lvis(truth_file(tmp_path, **truth), predictions, {})
    assert scores["AP"] == scores["APs"] == pytest.approx(expected)


def test_only_the_best_predictions_of_an_image_count(tmp_path) -> None:
    crowd = [prediction(0, 20, 0.9, category_id=6)] * lvis_evaluator.MAX_DETECTIONS_PER_IMAGE
    path = truth_file(tmp_path)
    assert score_lvis(path, [FOUND, *crowd[1:]], {})[0]["AP"] == pytest.approx(HALF)
    assert score_lvis(path, [FOUND, *crowd], {})[0]["AP"] == 0


def test_nothing_annotated(tmp_path) -> None:
    path = truth_file(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    assert score_lvis(path, [FOUND], GROUPS) == ({}, [])


@pytest.fixture
def evaluator(tmp_path) -> LvisEvaluator:
    name = "lvis_evaluator_test"
    MetadataCatalog.get(name).set(
        json_file=str(truth_file(tmp_path)),
        thing_classes=["five", "six", "nine"],
        thing_dataset_id_to_contiguous_id={5: 0, 6: 1, 9: 2},
        category_info=[{"frequency": f} for f in "rcf"],
        class_groups={"base": [1, 2], "novel": [0]},
    )
    yield LvisEvaluator(name, tmp_path / "inference")
    MetadataCatalog.pop(name)


def feed(evaluator: LvisEvaluator) -> None:
    """Give it a correct prediction of contiguous class 0."""
    instances = Instances((SIDE, SIDE))
    instances.pred_masks = torch.from_numpy(rectangle((SIDE, SIDE), 0, 0, 10, 10))[None]
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
    instances.scores = torch.tensor([0.5])
    instances.pred_classes = torch.tensor([0])
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])


def test_evaluator_writes_and_scores(evaluator) -> None:
    feed(evaluator)
    scores = evaluator.evaluate()["segm"]
    assert scores["AP"] == scores["AP_novel"] == scores["APr"] == pytest.approx(HALF)
    results = read_json(evaluator.output_folder / "results.json")
    assert results == [{**FOUND, "score": 0.5}]
    written = json.loads((evaluator.output_folder / "scores.json").read_text())
    assert written["segm"]["AP_base"] is None
    assert written["segm"]["AP"] == scores["AP"]
    first = {"id": 5, "name": "category 5", "AP": scores["AP"], "AP50": scores["AP50"]}
    assert written["categories"][0] == first
    evaluator.reset()
    assert evaluator.evaluate()["segm"]["AP"] == 0


def test_results_are_written_before_scoring(evaluator, monkeypatch, caplog) -> None:
    feed(evaluator)
    with monkeypatch.context() as patch:
        patch.setattr(lvis_evaluator, "score_lvis", None)
        with pytest.raises(TypeError):
            evaluator.evaluate()
    path = evaluator.output_folder / "results.json"
    assert len(read_json(path)) == 1
    path.unlink()
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # the scorer is not installed
    assert evaluator.evaluate() == {}
    assert "pip install 'ovformer[eval]'" in caplog.text
    assert len(read_json(path)) == 1
