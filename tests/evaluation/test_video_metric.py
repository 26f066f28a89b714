import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from ovformer.data.files.vis_json import group_categories, load_vis_json
from ovformer.evaluation.results_reader import read_results
from ovformer.evaluation.video_metric import Protocol, VideoMetric, get_protocol
from ovformer.evaluation.video_scores import VideoScores
from support.masks import compressed_rle

PARTITIONS = {"base": ("partition", (0, 1)), "novel": ("partition", (2, 3))}
BURST_GROUPS = {
    "base": ("frequency", ("c", "f")),
    "novel": ("frequency", ("r",)),
    "common": ("split", ("common",)),
    "uncommon": ("split", ("uncommon",)),
}


def score(truth: dict, predictions: list[dict], protocol: Protocol | None = None) -> VideoScores:
    metric = VideoMetric(truth, protocol=protocol)
    metric.update(predictions)
    return metric.compute()


@pytest.mark.parametrize(
    ("scorer", "evaluator", "groups"),
    [("lvvis", "vis", PARTITIONS), ("burst", "burst", BURST_GROUPS), ("ytvos", "vis", {})],
)
def test_equals_the_published_scorers(reference, scorer, evaluator, groups) -> None:
    truth = load_vis_json(reference("eval_small_gt.json"))
    metric = VideoMetric(
        truth,
        group_categories(truth["categories"], groups, ()),
        get_protocol("published", evaluator),
    )
    metric.update(read_results(reference("eval_small_dt.json")))
    scores = metric.compute()
    expected = json.loads(reference("eval_small_stats.json").read_text())[scorer]
    np.testing.assert_allclose(scores.group(), expected["stats"], rtol=0, atol=1e-12)
    per_class = [np.nan if ap is None else ap for ap in expected["per_category_AP"]]
    np.testing.assert_allclose(scores.values[0], per_class, rtol=0, atol=1e-12)
    # The YouTube-VIS scorer writes the metric in brackets.
    printed = "\n".join(expected["printed"]).replace("(AP)", "AP").replace("(AR)", "AR")
    assert scores.table() == printed
    assert scores.protocol == "published"
    assert bool(scores.note) == (scorer == "burst")


def test_negative_ids_are_ids(load_truth) -> None:
    mask = {"size": [2, 2], "counts": "04"}
    ids = {"video_id": -1, "category_id": -1}
    truth = {
        "videos": [{"id": -1, "height": 2, "width": 2, "file_names": ["0.png"]}],
        "categories": [{"id": -1, "name": "cat"}],
        "annotations": [{"id": -1, **ids, "segmentations": [mask]}],
    }
    predictions = [{**ids, "score": s, "segmentations": [mask]} for s in (0.5, 0.9)]
    assert score(load_truth(truth), predictions).group()[0] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_equals_trackeval(make_video_set, load_truth, tmp_path, seed) -> None:
    trackeval = pytest.importorskip("trackeval", reason="needs the extra [eval]")
    truth, predictions = make_video_set(seed, num_videos=12, num_frames=4, size=(300, 400))
    own = score(load_truth(copy.deepcopy(truth)), predictions).group()
    for part, content in (("gt", truth), ("tracker/run/data", predictions)):
        base, _, rest = part.partition("/")
        folder = tmp_path / base / "youtube_vis_val" / rest
        folder.mkdir(parents=True)
        (folder / "file.json").write_text(json.dumps(content))
    for limit, rows in ((100, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]), (1, [6]), (10, [7])):
        with redirect_stdout(io.StringIO()):
            expected = _trackeval_rows(trackeval, tmp_path, limit)
        np.testing.assert_allclose(own[rows], expected[rows], rtol=0, atol=1e-12)
    assert 0.1 < own[0] < 0.9


def _trackeval_rows(trackeval, folder: Path, limit: int) -> np.ndarray:
    folders = {"GT_FOLDER": f"{folder}/gt/", "TRACKERS_FOLDER": f"{folder}/tracker/"}
    quiet = {"PRINT_CONFIG": False}
    dataset = trackeval.datasets.YouTubeVIS({**folders, "SPLIT_TO_EVAL": "val", **quiet})
    # TrackEval takes the track with id 0 for no track at all.
    dataset.global_tid_counter = 1
    areas = [[0, 128**2], [128**2, 256**2], [256**2, 1e10]]
    options = {"AREA_RANGES": areas, "USE_TIME_RANGES": False, "MAX_DETECTIONS": limit}
    metric = trackeval.metrics.TrackMAP({**options, **quiet})
    off = ("PRINT_RESULTS", "TIME_PROGRESS", "OUTPUT_SUMMARY", "OUTPUT_DETAILED", "PLOT_CURVES")
    evaluator = trackeval.Evaluator({"LOG_ON_ERROR": None, **dict.fromkeys(off, False), **quiet})
    results, _ = evaluator.evaluate([dataset], [metric])
    combined = results["YouTubeVIS"]["run"]["COMBINED_SEQ"]["cls_comb_cls_av"]["TrackMAP"]
    ap = {label: combined[f"AP_{label}"] for label in ("all", "area_s", "area_m", "area_l")}
    ar = {label: combined[f"AR_{label}"].mean() for label in ap}
    by_area = [ap[label].mean() for label in ("area_s", "area_m", "area_l")]
    recall_by_area = [ar[label] for label in ("area_s", "area_m", "area_l")]
    whole = [ap["all"].mean(), ap["all"][0], ap["all"][5]]
    return np.array([*whole, *by_area, ar["all"], ar["all"], ar["all"], *recall_by_area])


def test_no_predictions_no_annotations_no_labels(make_video_set, load_truth) -> None:
    truth, predictions = make_video_set(1)
    values = score(load_truth(truth), []).group()
    np.testing.assert_array_equal(values, [0, 0, 0, 0, -1, -1, 0, 0, 0, 0, -1, -1])
    truth["annotations"] = []
    assert (score(load_truth(truth), predictions).group() == -1).all()
    truth["annotations"] = None
    with pytest.raises(ValueError, match="has no annotations.*ytvis_json"):
        VideoMetric(load_truth(truth))
    with pytest.raises(ValueError, match="Unknown protocol 'mine'. Known: standard, published"):
        get_protocol("mine", "vis")


def test_what_does_not_matter(make_video_set, load_truth) -> None:
    truth, predictions = make_video_set(4, size=(300, 400))
    truth = load_truth(truth)
    expected = score(truth, predictions)
    assert expected.group()[4] >= 0  # there are medium ones
    # The order of the file, an empty mask in the place of null, and areas that the masks tell.
    np.random.default_rng(0).shuffle(predictions)
    empty = compressed_rle(np.zeros((300, 400)))
    for entry in predictions:
        entry["segmentations"] = [mask or empty for mask in entry["segmentations"]]
    for annotation in truth["annotations"]:
        del annotation["areas"]
    np.testing.assert_array_equal(score(truth, predictions).values, expected.values)


def test_crowds_match_many_and_count_for_none(make_video_set, load_truth) -> None:
    truth = load_truth(make_video_set(1, num_videos=1)[0])
    crowd = {**truth["annotations"][0], "iscrowd": 1, "category_id": 1}
    # Visible in the first frame only, so that the two overlap by less than half.
    plain = {**crowd, "id": 998, "iscrowd": 0}
    plain["segmentations"] = crowd["segmentations"][:1] + [None] * 4
    truth["annotations"] = [crowd, plain]
    hits = [{**crowd, "score": s} for s in (0.9, 0.8)]
    both = score(truth, [*hits, {**plain, "score": 0.1}]).values[:, 0]
    assert both[0] == pytest.approx(1) and both[8] == 1
    truth["annotations"] = [crowd]
    assert np.isnan(score(truth, hits).values[0]).all()


@pytest.mark.parametrize(("wrong", "recall"), [(99, 1), (100, 0)])
def test_only_the_best_hundred_of_a_class_and_video_count(
    make_video_set, load_truth, wrong, recall
) -> None:
    truth = load_truth(make_video_set(1, num_videos=1)[0])
    target = truth["annotations"][0]
    truth["annotations"] = [target]
    miss = {**target, "score": 0.9, "segmentations": [None] * 5}
    values = score(truth, [{**target, "score": 0.1}, *[miss] * wrong]).values
    assert np.nanmax(values[8]) == recall
    assert np.nanmax(values[7]) == 0  # not among the best ten


def test_unsearched_categories_do_not_count(make_video_set, load_truth) -> None:
    truth = load_truth(make_video_set(1, num_videos=2)[0])
    first = truth["annotations"][0]
    truth["annotations"] = [first]
    other = next(video for video in truth["videos"] if video["id"] != first["video_id"])
    wrong = {**first, "video_id": other["id"], "score": 0.9}
    right = {**first, "score": 0.5}
    index = [c["id"] for c in truth["categories"]].index(first["category_id"])

    def ap(**lists: list[int]) -> float:
        other.update(lists)
        return score(truth, [wrong, right]).values[0, index]

    assert ap() == pytest.approx(0.5)  # every video was searched
    assert ap(neg_category_ids=[]) == pytest.approx(1)  # not searched for this category
    assert ap(neg_category_ids=[first["category_id"]]) == pytest.approx(0.5)
    assert ap(not_exhaustive_category_ids=[first["category_id"]]) == pytest.approx(1)
    published = get_protocol("published", "burst")
    assert score(truth, [wrong, right], published).values[0, index] == pytest.approx(0.5)


def test_published_burst_scorer_loses_annotation_zero(make_video_set, load_truth) -> None:
    truth = load_truth(make_video_set(1, num_videos=1)[0])
    target = truth["annotations"][0] = {**truth["annotations"][0], "id": 0}
    truth["annotations"] = [target]
    hit = [{**target, "score": 0.5}]
    assert np.nanmax(score(truth, hit).values[0]) == pytest.approx(1)
    assert np.nanmax(score(truth, hit, get_protocol("published", "burst")).values[0]) == 0
