import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from ovformer.evaluation.video_metric import VideoMetric

trackeval = pytest.importorskip("trackeval", reason="needs the extra [eval]")
from ovformer.evaluation.burst_hota import score_burst_hota  # noqa: E402

# No distractors of TAO, and not the file's own ids 1, 3, 5, 7.
TAO_IDS = [4, 13, 34, 35]


@pytest.fixture
def burst(make_video_set, load_truth) -> tuple[dict, dict, list[dict]]:
    """A ground truth as made from BURST, the same read by us, and predictions."""
    truth, predictions = make_video_set(3, num_videos=10, lists=True)
    own = [category["id"] for category in truth["categories"]]
    tao = dict(zip(own, TAO_IDS, strict=True))
    truth["cate_ori"] = [{"id": tao[i], "name": f"tao {i}"} for i in own]
    for video in truth["videos"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            video[key] = [tao[i] for i in video[key]]
    return truth, load_truth(truth), predictions


def test_equals_the_official_code(burst, tmp_path: Path) -> None:
    truth, loaded, predictions = burst
    groups = {"common": [3], "uncommon": [1, 5, 7], "none": []}
    found = score_burst_hota(copy.deepcopy(loaded), predictions, groups)

    # BURST's own format, written down independently.
    tao = {c["id"]: o["id"] for c, o in zip(truth["categories"], truth["cate_ori"], strict=True)}
    kept = ("id", "width", "height", "neg_category_ids", "not_exhaustive_category_ids")
    for kind, tubes in (("gt", loaded["annotations"]), ("trackers/run/data", predictions)):
        sequences = []
        for video in truth["videos"]:
            mine = [tube for tube in tubes if tube["video_id"] == video["id"]]
            frames = [{} for _ in range(5)]
            for number, tube in enumerate(mine, start=1):
                for frame, mask in zip(frames, tube["segmentations"], strict=True):
                    if mask:
                        frame[str(number)] = {"rle": mask["counts"], "score": tube.get("score")}
            labels = {str(i): tao[tube["category_id"]] for i, tube in enumerate(mine, start=1)}
            sequences.append(
                {
                    **{key: video[key] for key in kept},
                    "dataset": "LaSOT",
                    "seq_name": f"clip{video['id']:04d}",
                    "annotated_image_paths": [f"{t:05d}.jpg" for t in range(5)],
                    "track_category_ids": labels,
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
    """Scores of TrackEval: field -> TAO's id of a category -> value."""
    folders = {"GT_FOLDER": f"{folder}/gt", "TRACKERS_FOLDER": f"{folder}/trackers"}
    with redirect_stdout(io.StringIO()):
        dataset = trackeval.datasets.BURST({**folders, "PRINT_CONFIG": False})
        hota, ap = trackeval.metrics.HOTA(), trackeval.metrics.TrackMAP({"PRINT_CONFIG": False})
        _, sequences, labels = dataset.get_eval_info()
        scores: dict[str, dict[int, float]] = {"HOTA": {}, "DetA": {}, "AssA": {}, "AP": {}}
        for label in labels:
            parts = {hota: {}, ap: {}}
            for sequence in sorted(sequences):
                raw = dataset.get_raw_seq_data("run", sequence)
                data = dataset.get_preprocessed_seq_data(raw, label)
                for metric, found in parts.items():
                    found[sequence] = metric.eval_sequence(copy.deepcopy(data))
            whole = {m: m.combine_sequences(found) for m, found in parts.items()}
            number = dataset.class_name_to_class_id[label]
            for field in ("HOTA", "DetA", "AssA"):
                scores[field][number] = whole[hota][field].mean()
            scores["AP"][number] = whole[ap]["AP_all"].mean()
    return scores


def test_track_ap_equals_our_average_precision(make_video_set, load_truth) -> None:
    for seed in range(3):
        truth, predictions = make_video_set(seed, lists=True)
        loaded = load_truth(truth)
        metric = VideoMetric(loaded)
        metric.update(predictions)
        found = score_burst_hota(loaded, predictions)["AP"]["all"]
        assert found == pytest.approx(metric.compute().group()[0], abs=1e-12)


def test_processes_and_wrong_results(burst) -> None:
    _, loaded, predictions = burst
    assert score_burst_hota(loaded, predictions, workers=2) == score_burst_hota(loaded, predictions)
    nothing = score_burst_hota(loaded, [])
    assert nothing["HOTA"]["all"] == nothing["AP"]["all"] == 0
    with pytest.raises(ValueError, match="video 9999, which the ground truth does not have"):
        score_burst_hota(loaded, [{**predictions[0], "video_id": 9999}])
    with pytest.raises(ValueError, match="no annotations"):
        score_burst_hota({**loaded, "annotations": None}, [])
