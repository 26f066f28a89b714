"""BURST's official class-guided metrics, HOTA and track AP, through the trackeval package.

Ground truth and results in the YouTube-VIS format are turned back into BURST's own, which TrackEval
reads. It scores a class only in the videos where the class is present or known to be absent, and
drops unmatched predictions where not every instance was annotated. The official code has two
peculiarities: HOTA compares the *boxes* of the masks (track AP the masks), and the classes that TAO
calls distractors (groups and near-synonyms) are left out.
"""

import contextlib
import io
import itertools
import tempfile
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.data.files.json_file import write_json
from ovformer.evaluation.results_reader import ResultsChecker

try:
    import trackeval
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "BURST's HOTA needs the package trackeval: pip install 'ovformer[eval]'."
    ) from error

METRICS = ("HOTA", "DetA", "AssA", "AP")

# Added to our category ids: TrackEval treats some of TAO's ids specially.
_OWN_IDS = 10_000
_SPLIT = "val"


class _OwnCategories(trackeval.datasets.BURST):
    """BURST's format with the categories of the file in place of TAO's."""

    def _postproc_ground_truth_data(self, data: dict) -> dict:
        return super()._postproc_ground_truth_data(data) | {"categories": data["categories"]}


def score_burst_hota(
    ground_truth: Mapping,
    predictions: Iterable[dict],
    groups: Mapping[str, Collection[int]] | None = None,
    workers: int = 1,
) -> dict[str, dict[str, float]]:
    """Score results with TrackEval, as the official BURST benchmark does.

    Args:
        ground_truth: from :func:`.load_vis_json`. Where it has "cate_ori" (TAO's categories in the
            order of "categories"), TrackEval gets these, otherwise "categories".
        predictions: entries of results.json.
        groups: name of a group -> its category ids.
        workers: processes.

    Returns:
        metric (:data:`METRICS`) -> "all" or group -> mean over the classes with ground truth, from
        0 to 1; NaN where a group has none.

    Raises:
        ValueError: the ground truth has no annotations, or a prediction belongs to another data
            set.
    """
    if not ground_truth.get("annotations"):
        raise ValueError("The annotation file has no annotations: HOTA cannot be computed.")
    original = _map_to_original_ids(ground_truth)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_json(root / "gt" / "all_classes.json", _convert_ground_truth(ground_truth, original))
        write_json(
            root / "trackers" / "results" / "data" / "results.json",
            {"sequences": list(_convert_predictions(ground_truth, predictions, original))},
        )
        per_class = _run_trackeval(root, "cate_ori" not in ground_truth, workers)
    own = {number: category_id for category_id, number in original.items()}
    members = {"all": set(original), **{name: set(ids) for name, ids in (groups or {}).items()}}
    return {
        metric: {
            name: _mean(values[metric] for i, values in per_class.items() if own.get(i) in ids)
            for name, ids in members.items()
        }
        for metric in METRICS
    }


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def _map_to_original_ids(ground_truth: Mapping) -> dict[int, int]:
    """Return {category id of the file: category id that TrackEval gets}."""
    categories = ground_truth["categories"]
    if "cate_ori" in ground_truth:
        pairs = zip(categories, ground_truth["cate_ori"], strict=True)
        return {category["id"]: original["id"] for category, original in pairs}
    return {category["id"]: _OWN_IDS + category["id"] for category in categories}


def _make_sequence(video: Mapping) -> dict:
    """Describe a video in BURST's format. TrackEval reads frame numbers from the file names."""
    return {
        "id": video["id"],
        "dataset": Path(video["file_names"][0]).parent.as_posix().replace("/", "-"),
        "seq_name": f"{video['id']:08d}",
        "height": video["height"],
        "width": video["width"],
        "annotated_image_paths": [f"frame{t:08d}.jpg" for t in range(video["length"])],
    }


def _convert_ground_truth(ground_truth: Mapping, original: Mapping[int, int]) -> dict:
    sequences = {}
    for video in ground_truth["videos"]:
        sequences[video["id"]] = {
            **_make_sequence(video),
            "track_category_ids": {},
            "segmentations": [{} for _ in range(video["length"])],
            **{
                key: [original[number] for number in video.get(key, ()) if number in original]
                for key in ("neg_category_ids", "not_exhaustive_category_ids")
            },
        }
    for annotation in ground_truth["annotations"]:
        sequence = sequences[annotation["video_id"]]
        track = str(len(sequence["track_category_ids"]) + 1)
        sequence["track_category_ids"][track] = original[annotation["category_id"]]
        for frame, mask in zip(sequence["segmentations"], annotation["segmentations"], strict=True):
            if mask:
                frame[track] = {"rle": mask["counts"]}
    categories = [
        {"id": original[category["id"]], "name": category["name"]}
        for category in ground_truth["categories"]
    ]
    return {"split": _SPLIT, "categories": categories, "sequences": list(sequences.values())}


def _convert_predictions(
    ground_truth: Mapping, predictions: Iterable[dict], original: Mapping[int, int]
) -> Iterable[dict]:
    videos = {video["id"]: video for video in ground_truth["videos"]}
    checker = ResultsChecker(ground_truth)
    tracks = itertools.count(1)  # unique over all videos
    for video_id, entries in groupby(predictions, key=itemgetter("video_id")):
        entries = list(entries)
        # Before TrackEval hands the masks to pycocotools, which trusts them.
        checker.check(video_id, entries)
        sequence = {**_make_sequence(videos[video_id]), "track_category_ids": {}}
        frames = [{} for _ in range(videos[video_id]["length"])]
        for entry in entries:
            track = str(next(tracks))
            sequence["track_category_ids"][track] = original[entry["category_id"]]
            for frame, mask in zip(frames, entry["segmentations"], strict=True):
                # The official code counts an empty mask as a detection, so drop it here.
                if mask and coco_mask.area(mask):
                    frame[track] = {"rle": mask["counts"], "score": entry["score"]}
        yield {**sequence, "segmentations": frames}


def _run_trackeval(root: Path, own_categories: bool, workers: int) -> dict[int, dict[str, float]]:
    """Return the metrics of each class with ground truth, by the id that TrackEval got."""
    dataset_class = _OwnCategories if own_categories else trackeval.datasets.BURST
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = dataset_class(
            {
                "GT_FOLDER": str(root / "gt"),
                "TRACKERS_FOLDER": str(root / "trackers"),
                "SPLIT_TO_EVAL": _SPLIT,
                "PRINT_CONFIG": False,
            }
        )
        evaluator = trackeval.Evaluator(
            {
                "USE_PARALLEL": workers > 1,
                "NUM_PARALLEL_CORES": workers,
                "LOG_ON_ERROR": None,
                "PRINT_RESULTS": False,
                "PRINT_CONFIG": False,
                "TIME_PROGRESS": False,
                "OUTPUT_SUMMARY": False,
                "OUTPUT_DETAILED": False,
                "PLOT_CURVES": False,
            }
        )
        metrics = [trackeval.metrics.HOTA(), trackeval.metrics.TrackMAP({"PRINT_CONFIG": False})]
        results, _ = evaluator.evaluate([dataset], metrics, show_progressbar=True)
    combined = results[dataset.get_name()]["results"]["COMBINED_SEQ"]
    return {
        number: {
            **{name: float(combined[label]["HOTA"][name].mean()) for name in METRICS[:3]},
            "AP": float(combined[label]["TrackMAP"]["AP_all"].mean()),
        }
        for label, number in dataset.class_name_to_class_id.items()
    }
