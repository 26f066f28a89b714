import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from ovformer.data.files.vis_json import load_vis_json
from ovformer.evaluation.video_metric import VideoMetric

trackeval = pytest.importorskip("trackeval", reason="needs the extra [eval]")
from ovformer.evaluation.burst_hota import format_hota, score_burst_hota, write_hota  # noqa: E402

TAO_IDS = [
    4,
    13,
    34,
    35,
]  # airplane, surfboard ...: no distractors, and not the file's own 1, 3, 5, 7


@pytest.fixture
def burst(make_video_set, tmp_path) -> tuple[dict, dict, list[dict]]:
    """A ground truth as made from BURST, the same read by us, and predictions."""
    truth, predictions = make_video_set(3, num_videos=10, lists=True)
    own = [category["id"] for category in truth["categories"]]
    tao = dict(zip(own, TAO_IDS, strict=True))
    truth["cate_ori"] = [{"id": tao[i], "name": f"tao {i}"} for i in own]
    for video in truth["videos"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            video[key] = [tao[i] for i in video[key]]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    return truth, load_vis_json(path), predictions


def test_equals_the_official_code(burst, tmp_path: Path) -> None:
    truth, loaded, predictions = burst
    groups = {"common": [3], "uncommon": [1, 5, 7], "none": []}
    found = score_burst_hota(copy.deepcopy(loaded), predictions, groups)

    # BURST's own format, written down independently.
    tao = {c["id"]: o["id"] for c, o in zip(truth["categories"], truth["cate_ori"], strict=True)}
    for kind, tubes in (("gt", loaded["annotations"]), ("trackers/run/data", predictions)):
        sequences = []
        for video in truth["videos"]:
            mine = [tube for tube in tubes if tube["video_id"] == video["id"]]
            frames = [
                {
                    str(i + 1): {"rle": tube["segmentations"][t]["counts"], "score": tube["score"]}
                    if kind != "gt"
                    else {"rle": tube["segmentations"][t]["counts"]}
                    for i, tube in enumerate(mine)
                    if tube["segmentations"][t]
                }
                for t in range(5)
            ]
            sequences.append(
                {
                    **{key: video[key] for key in ("id", "width", "height")},
                    "neg_category_ids": video["neg_category_ids"],
                    "not_exhaustive_category_ids": video["not_exhaustive_category_ids"],
                    "dataset": "LaSOT",
                    "seq_name": f"clip{video['id']:04d}",
                    "annotated_image_paths": [f"{t:05d}.jpg" for t in range(5)],
                    "track_category_ids": {
                        str(i + 1): tao[tube["category_id"]] for i, tube in enumerate(mine)
                    },
                    "segmentations": frames,
                }
            )
        folder = tmp_path / "official" / kind
        folder.mkdir(parents=True)
        content = {"split": "val", "sequences": sequences, "categories": truth["cate_ori"]}
        (folder / "all_classes.json").write_text(json.dumps(content))
    official = _official(tmp_path / "official")
    for metric, values in official.items():
        assert found[metric]["all"] == pytest.approx(np.mean(list(values.values())), abs=1e-12)
        assert found[metric]["common"] == pytest.approx(values[13], abs=1e-12)
        rest = np.mean([value for number, value in values.items() if number != 13])
        assert found[metric]["uncommon"] == pytest.approx(rest, abs=1e-12)
        assert np.isnan(found[metric]["none"])
        assert 0 < found[metric]["all"] < 1


def _official(folder: Path) -> dict[str, dict[int, float]]:
    with redirect_stdout(io.StringIO()):
        dataset = trackeval.datasets.BURST(
            {
                "GT_FOLDER": str(folder / "gt"),
                "TRACKERS_FOLDER": str(folder / "trackers"),
                "PRINT_CONFIG": False,
            }
        )
        metrics = {"HOTA": trackeval.metrics.HOTA()}
        metrics["TrackMAP"] = trackeval.metrics.TrackMAP({"PRINT_CONFIG": False})
        _, sequences, labels = dataset.get_eval_info()
        parts = {name: {label: {} for label in labels} for name in metrics}
        for sequence in sorted(sequences):
            raw = dataset.get_raw_seq_data("run", sequence)
            for label in labels:
                data = dataset.get_preprocessed_seq_data(raw, label)
                for name, metric in metrics.items():
                    parts[name][label][sequence] = metric.eval_sequence(copy.deepcopy(data))
        scores = {
            name: {label: metrics[name].combine_sequences(parts[name][label]) for label in labels}
            for name in metrics
        }
    number = dataset.class_name_to_class_id
    fields = {"HOTA": "HOTA", "DetA": "HOTA", "AssA": "HOTA", "AP": "TrackMAP"}
    return {
        field: {
            number[label]: scores[name][label]["AP_all" if field == "AP" else field].mean()
            for label in labels
        }
        for field, name in fields.items()
    }


def test_track_ap_equals_our_average_precision(make_video_set, tmp_path) -> None:
    for seed in range(3):
        truth, predictions = make_video_set(seed, lists=True)
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth))
        loaded = load_vis_json(path)
        metric = VideoMetric(loaded)
        metric.update(predictions)
        found = score_burst_hota(loaded, predictions)["AP"]["all"]
        assert found == pytest.approx(metric.compute().group()[0], abs=1e-12)


def test_two_processes_give_the_same(burst) -> None:
    _, loaded, predictions = burst
    assert score_burst_hota(loaded, predictions, workers=2) == score_burst_hota(loaded, predictions)


def test_no_predictions_score_zero(burst) -> None:
    found = score_burst_hota(burst[1], [])
    assert found["HOTA"]["all"] == found["AP"]["all"] == 0


def test_foreign_results_are_an_error(burst) -> None:
    _, loaded, predictions = burst
    with pytest.raises(ValueError, match="video 9999, which the ground truth does not have"):
        score_burst_hota(loaded, [{**predictions[0], "video_id": 9999}])


def test_missing_labels_are_an_error(burst) -> None:
    with pytest.raises(ValueError, match="no annotations"):
        score_burst_hota({**burst[1], "annotations": None}, [])


def test_table_and_files(tmp_path) -> None:
    values = {"all": 0.25, "common": float("nan")}
    hota = {"HOTA": values, "DetA": values, "AssA": values, "AP": values}
    assert format_hota(hota).splitlines()[1].split() == ["HOTA", "25.00", "nan"]
    write_hota(hota, tmp_path / "scores_hota", dataset="burst_val")
    content = json.loads((tmp_path / "scores_hota.json").read_text())
    assert content["groups"]["all"]["AP"] == 0.25 and content["groups"]["common"]["AP"] is None
    assert content["dataset"] == "burst_val" and content["protocol"] == "hota"
    assert "hota,group,all,0.25,0.25,0.25,0.25" in (tmp_path / "scores_hota.csv").read_text()
