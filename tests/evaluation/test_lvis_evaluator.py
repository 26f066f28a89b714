"""LVIS average precision: recorded from the official code, and cases small enough for pencil."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from ovformer.d2 import Boxes, Instances, MetadataCatalog
from ovformer.data.files.json_file import read_json
from ovformer.evaluation import lvis_evaluator
from ovformer.evaluation.lvis_evaluator import (
    LvisEvaluator,
    group_classes,
    keep_best_per_image,
    score_lvis,
)

SIDE = 40
# The precision at 51 of the 101 recall thresholds, 0 to .5, where one of two objects is found.
HALF = 51 / 101 * 100


def square(x: int, y: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    return mask


def rle(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def truth_file(folder: Path, absent=(), not_exhaustive=()) -> Path:
    """Image 1: two squares of category 5. Image 2: nothing. Categories 5 (r), 6 (c), 9 (f)."""
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 5,
            "area": 100,
            "bbox": [x, 0, 10, 10],
            "segmentation": rle(square(x, 0)),
        }
        for number, x in ((1, 0), (2, 20))
    ]
    images = [
        {
            "id": number,
            "height": SIDE,
            "width": SIDE,
            "neg_category_ids": list(absent),
            "not_exhaustive_category_ids": list(not_exhaustive) if number == 1 else [],
        }
        for number in (1, 2)
    ]
    categories = [
        {"id": number, "name": f"category {number}", "frequency": frequency}
        for number, frequency in ((5, "r"), (6, "c"), (9, "f"))
    ]
    path = folder / "truth.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


def prediction(x: int, y: int, score: float, image_id: int = 1, category_id: int = 5) -> dict:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "segmentation": rle(square(x, y)),
    }


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


def test_a_false_positive_above_halves_the_precision(tmp_path) -> None:
    predictions = [FOUND, prediction(0, 20, 0.9)]
    assert score_lvis(truth_file(tmp_path), predictions, {})[0]["AP"] == pytest.approx(HALF / 2)


def test_a_false_positive_is_forgiven_where_not_all_objects_were_annotated(tmp_path) -> None:
    path = truth_file(tmp_path, not_exhaustive=[5])
    predictions = [FOUND, prediction(0, 20, 0.9)]
    assert score_lvis(path, predictions, {})[0]["AP"] == pytest.approx(HALF)


@pytest.mark.parametrize(("absent", "expected"), [([], HALF), ([5], HALF / 2)])
def test_another_image_counts_only_if_the_category_is_known_to_be_absent(
    tmp_path, absent, expected
) -> None:
    predictions = [FOUND, prediction(0, 20, 0.9, image_id=2)]
    scores, _ = score_lvis(truth_file(tmp_path, absent=absent), predictions, {})
    assert scores["AP"] == pytest.approx(expected)


def test_in_coco_format_all_images_count(tmp_path) -> None:
    path = truth_file(tmp_path)
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for category in content["categories"]:
        del category["frequency"]
    path.write_text(json.dumps(content))
    predictions = [FOUND, prediction(0, 20, 0.9, image_id=2)]
    scores, _ = score_lvis(path, predictions, {})
    assert scores["AP"] == pytest.approx(HALF / 2)


def test_only_the_best_predictions_of_an_image_count(tmp_path) -> None:
    crowd = [prediction(0, 20, 0.9, category_id=6)] * lvis_evaluator.MAX_DETECTIONS_PER_IMAGE
    path = truth_file(tmp_path)
    assert score_lvis(path, [FOUND, *crowd[1:]], {})[0]["AP"] == pytest.approx(HALF)
    assert score_lvis(path, [FOUND, *crowd], {})[0]["AP"] == 0


def test_the_best_predictions_of_each_image_are_kept() -> None:
    predictions = [
        {"image_id": image_id, "score": score, "bbox": [0, 0, 1, 1]}
        for image_id in (1, 2)
        for score in (0.2, 0.9, 0.5)
    ]
    assert keep_best_per_image(predictions, 2) == [
        {"image_id": image_id, "score": score} for image_id in (1, 2) for score in (0.9, 0.5)
    ]


def test_nothing_predicted_and_nothing_annotated(tmp_path) -> None:
    path = truth_file(tmp_path)
    assert score_lvis(path, [], {})[0]["AP"] == 0
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    assert score_lvis(path, [FOUND], GROUPS) == ({}, [])


def test_groups_of_classes() -> None:
    info = [{"frequency": "r"}, {"frequency": "f"}, {"frequency": "r"}]
    values = {"category_info": info, "class_groups": {"base": [1], "novel": [0, 2]}}
    groups = group_classes(SimpleNamespace(get=values.get))
    assert groups == {"r": [0, 2], "c": [], "f": [1], "base": [1], "novel": [0, 2]}


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
    instances.pred_masks = torch.from_numpy(square(0, 0).copy()).bool()[None]
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
    instances.scores = torch.tensor([0.5])
    instances.pred_classes = torch.tensor([0])
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])


def test_evaluator_writes_and_scores(evaluator) -> None:
    feed(evaluator)
    scores = evaluator.evaluate()["segm"]
    assert scores["AP"] == scores["AP_novel"] == pytest.approx(HALF)
    results = read_json(evaluator.output_folder / "results.json")
    assert results == [{**FOUND, "score": 0.5}]
    written = json.loads((evaluator.output_folder / "scores.json").read_text())
    assert written["segm"]["AP_base"] is None
    assert written["segm"]["AP"] == scores["AP"]
    assert written["categories"][0] == {
        "id": 5,
        "name": "category 5",
        "AP": scores["AP"],
        "AP50": scores["AP50"],
    }


def test_reset_forgets(evaluator) -> None:
    feed(evaluator)
    evaluator.reset()
    assert evaluator.evaluate()["segm"]["AP"] == 0


def test_results_are_written_before_scoring(evaluator, monkeypatch) -> None:
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(lvis_evaluator, "score_lvis", fail)
    feed(evaluator)
    with pytest.raises(MemoryError):
        evaluator.evaluate()
    assert len(read_json(evaluator.output_folder / "results.json")) == 1


def test_without_the_scorer_it_says_what_to_install(evaluator, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    feed(evaluator)
    assert evaluator.evaluate() == {}
    assert "pip install 'ovformer[eval]'" in caplog.text
    assert len(read_json(evaluator.output_folder / "results.json")) == 1
