"""The evaluator of videos: what it writes and returns, without a model."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest

from ovformer.d2 import MetadataCatalog
from ovformer.evaluation.video_evaluator import VideoEvaluator
from support.masks import compressed_rle
from support.mini_videos import MiniVideos


def prediction(video_id: int, tubes: list[list[dict]], label: int = 0) -> dict:
    """The prediction dict of a model: every tube of the same class."""
    return {
        "video_id": video_id,
        "image_size": tuple(tubes[0][0]["size"]) if tubes else (40, 60),
        "pred_scores": [0.9 - 0.1 * n for n in range(len(tubes))],
        "pred_labels": [label] * len(tubes),
        "segmentations": tubes,
    }


def feed(evaluator: VideoEvaluator, *predictions: dict) -> dict | None:
    evaluator.reset()
    for output in predictions:
        evaluator.process([{"video_id": output["video_id"]}], [output])
    return evaluator.evaluate()


def truth(data: MiniVideos, number: int) -> list[dict]:
    """The tube of an annotation, never null."""
    annotation = next(a for a in data.content["annotations"] if a["id"] == number)
    size = next(mask["size"] for mask in annotation["segmentations"] if mask)
    nothing = compressed_rle(np.zeros(size, bool))
    return [mask or nothing for mask in annotation["segmentations"]]


def test_scores(mini_videos: MiniVideos, tmp_path: Path) -> None:
    person, sedan = truth(mini_videos, 1), truth(mini_videos, 2)
    scores = feed(
        VideoEvaluator("ytvis_2019_val", tmp_path),
        prediction(3, [person, sedan], label=0),
        prediction(8, []),
        prediction(11, []),
    )["segm"]
    # Of three classes with one object each, person (base) is found, sedan (novel) is misnamed.
    assert scores["AP"] == pytest.approx(100 / 3)
    assert scores["AP_base"] == pytest.approx(50) and scores["AP_novel"] == 0
    assert math.isnan(scores["APl"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(e["video_id"], e["category_id"]) for e in results] == [(3, 1), (3, 1)]
    assert results[0]["segmentations"] == person
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["groups"]["all"]["AP"] == pytest.approx(1 / 3)
    assert written["dataset"] == "ytvis_2019_val"

    nothing = feed(VideoEvaluator("ytvis_2019_val", tmp_path), prediction(8, []))
    assert nothing["segm"]["AP"] == 0
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_without_labels_it_says_where_results_go(
    mini_videos: MiniVideos,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluator = VideoEvaluator("ytvis_2019_test", tmp_path)
    with caplog.at_level(logging.INFO):
        assert feed(evaluator, prediction(3, [truth(mini_videos, 1)])) == {}
    assert "test.json has no annotations, so nothing is scored" in caplog.text
    assert f"tools/ytvis_json.py --results {tmp_path / 'results.json'}" in caplog.text
    assert len(json.loads((tmp_path / "results.json").read_text())) == 1


def test_resume(mini_videos: MiniVideos, tmp_path: Path) -> None:
    person = prediction(3, [truth(mini_videos, 1)])
    interrupted = VideoEvaluator("ytvis_2019_val", tmp_path)
    interrupted.process([{"video_id": 3}], [person])  # then the process is killed
    resumed = VideoEvaluator("ytvis_2019_val", tmp_path, resume=True)
    assert resumed.finished == {3}
    scores = feed(resumed, prediction(8, []), prediction(11, []))["segm"]
    assert scores["AP_base"] == pytest.approx(50)
    again = VideoEvaluator("ytvis_2019_val", tmp_path, resume=True)
    assert again.finished == set()


def test_results_are_written_before_scoring(mini_videos: MiniVideos, tmp_path: Path) -> None:
    entry = prediction(3, [truth(mini_videos, 1)])
    entry["pred_scores"] = [float("nan")]
    with pytest.raises(ValueError, match="score nan"):
        feed(VideoEvaluator("ytvis_2019_val", tmp_path), entry)
    assert (tmp_path / "results.json").is_file()


def test_a_data_set_that_a_user_registered(mini_videos: MiniVideos, tmp_path: Path) -> None:
    metadata = MetadataCatalog.get("theirs")
    try:
        metadata.set(
            json_file=str(mini_videos.root / "ytvis_2019" / "valid.json"),
            thing_dataset_id_to_contiguous_id={8: 1, 1: 0},
        )
        output = prediction(8, [truth(mini_videos, 3)], label=1)
        scores = feed(VideoEvaluator("theirs", tmp_path), output)["segm"]
    finally:
        MetadataCatalog.remove("theirs")
    assert scores["AP"] == pytest.approx(100 / 3) and "AP_base" not in scores
