import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest

from ovformer.data.files.vis_json import load_vis_json

trackeval = pytest.importorskip("trackeval", reason="needs the extra [eval]")
from ovformer.evaluation.hota import CLASS_AGNOSTIC, format_hota, score_hota, write_hota  # noqa: E402


@pytest.fixture
def video_set(make_video_set, tmp_path: Path) -> tuple[dict, list[dict]]:
    truth, predictions = make_video_set(3, num_videos=10)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    return load_vis_json(path), predictions


def _run_trackeval(folder: Path, truth: dict, predictions: list[dict]) -> dict[str, dict]:
    """Scores of trackeval's own reader of YouTube-VIS files, by class name."""
    folders = folder / "gt" / "youtube_vis_val", folder / "dt" / "youtube_vis_val" / "run" / "data"
    for path, content in zip(folders, (truth, predictions), strict=True):
        path.mkdir(parents=True)
        (path / "file.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = trackeval.datasets.YouTubeVIS(
            {
                "GT_FOLDER": f"{folder}/gt/",
                "TRACKERS_FOLDER": f"{folder}/dt/",
                "SPLIT_TO_EVAL": "val",
            }
        )
        _, sequences, labels = dataset.get_eval_info()
        metrics = [trackeval.metrics.HOTA(), trackeval.metrics.CLEAR({"PRINT_CONFIG": False})]
        parts = {label: ({}, {}) for label in labels}
        for sequence in sequences:
            raw = dataset.get_raw_seq_data("run", sequence)
            for label in labels:
                data = dataset.get_preprocessed_seq_data(raw, label)
                for metric, of_sequence in zip(metrics, parts[label], strict=True):
                    of_sequence[sequence] = metric.eval_sequence(copy.deepcopy(data))
        return {
            label: {
                **metrics[0].combine_sequences(of_class[0]),
                **metrics[1].combine_sequences(of_class[1]),
            }
            for label, of_class in parts.items()
        }


def _as_one_class(entries: list[dict], truth: dict) -> list[dict]:
    return [{**entry, "category_id": truth["categories"][0]["id"]} for entry in entries]


def test_equals_trackeval_by_hand(video_set, tmp_path: Path) -> None:
    truth, predictions = video_set
    raw = json.loads((tmp_path / "truth.json").read_text())
    ids = {category["name"]: category["id"] for category in truth["categories"]}
    annotated = {annotation["category_id"] for annotation in truth["annotations"]}
    found = score_hota(truth, predictions, {"first": sorted(annotated)[:1], "none": []})

    official = _run_trackeval(tmp_path / "classes", raw, predictions)
    official = {ids[name]: scores for name, scores in official.items() if ids[name] in annotated}
    one_class = {**raw, "annotations": _as_one_class(raw["annotations"], raw)}
    agnostic = _run_trackeval(tmp_path / "one", one_class, _as_one_class(predictions, raw))
    agnostic = agnostic[raw["categories"][0]["name"]]
    for metric in ("HOTA", "DetA", "AssA"):
        values = {number: scores[metric].mean() for number, scores in official.items()}
        assert found[metric]["all"] == pytest.approx(np.mean(list(values.values())), abs=1e-12)
        assert found[metric]["first"] == pytest.approx(values[min(annotated)], abs=1e-12)
        assert found[metric][CLASS_AGNOSTIC] == pytest.approx(agnostic[metric].mean(), abs=1e-12)
        assert np.isnan(found[metric]["none"])
        assert 0 < found[metric]["all"] < 1
    assert found["IDSW"]["all"] == sum(scores["IDSW"] for scores in official.values())
    assert found["IDSW"][CLASS_AGNOSTIC] == agnostic["IDSW"]


def _square_set(places: list[int | None]) -> tuple[dict, list[dict]]:
    """A video with one object, and predictions that each follow it in the frames of one place."""
    from support.masks import compressed_rle

    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:5] = True
    rle = compressed_rle(mask)
    truth = {
        "videos": [{"id": 1, "height": 8, "width": 8, "length": len(places)}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 1, "segmentations": [rle] * len(places)}
        ],
    }
    predictions = [
        {
            "video_id": 1,
            "category_id": 1,
            "score": 0.5,
            "segmentations": [rle if place == number else None for place in places],
        }
        for number in sorted({place for place in places if place is not None})
    ]
    return truth, predictions


def test_an_identity_switch() -> None:
    truth, predictions = _square_set([0, 0, 1, 1])
    found = score_hota(truth, predictions)
    assert found["IDSW"] == {"all": 1, CLASS_AGNOSTIC: 1}
    assert found["DetA"]["all"] == 1 and found["AssA"]["all"] == 0.5


def test_a_track_with_two_names_is_one_track() -> None:
    truth, (prediction,) = _square_set([0, 0, 0])
    named = [
        {**prediction, "track_id": 7},
        {**prediction, "track_id": 7, "category_id": 2, "score": 0.9},
    ]
    assert score_hota(truth, named)["HOTA"] == {"all": 1, CLASS_AGNOSTIC: 1}
    # Without ids they are two tracks, of which one is false.
    older = [{key: value for key, value in entry.items() if key != "track_id"} for entry in named]
    assert score_hota(truth, older)["DetA"] == {"all": 1, CLASS_AGNOSTIC: 0.5}


def test_a_track_in_two_places(video_set) -> None:
    truth, (prediction,) = _square_set([0, 0])
    twice = {**prediction, "track_id": 7}
    with pytest.raises(ValueError, match="Video 1: track_id 7 .*category_id 1"):
        score_hota(truth, [twice, twice])


def test_scattered_predictions(video_set) -> None:
    truth, predictions = video_set
    with pytest.raises(ValueError, match=f"video {predictions[0]['video_id']} .*video_id"):
        score_hota(truth, [*predictions, predictions[0]])


def test_no_predictions_and_no_annotations(video_set) -> None:
    assert score_hota(video_set[0], [])["HOTA"] == {"all": 0, CLASS_AGNOSTIC: 0}
    with pytest.raises(ValueError, match="no annotations"):
        score_hota({**video_set[0], "annotations": None}, [])


def test_tables(tmp_path: Path) -> None:
    values = {"all": 0.25, "none": float("nan")}
    hota = {"HOTA": values, "IDSW": {"all": 3.0, "none": float("nan")}}
    assert [line.split() for line in format_hota(hota).splitlines()[1:]] == [
        ["HOTA", "25.00", "nan"],
        ["IDSW", "3", "nan"],
    ]
    write_hota(hota, tmp_path / "scores_hota", dataset="lvvis_val")
    content = json.loads((tmp_path / "scores_hota.json").read_text())
    assert content["groups"] == {
        "all": {"HOTA": 0.25, "IDSW": 3.0},
        "none": {"HOTA": None, "IDSW": None},
    }
    assert content["dataset"] == "lvvis_val" and content["protocol"] == "hota"
    assert "hota,group,all,0.25,3.0" in (tmp_path / "scores_hota.csv").read_text()
