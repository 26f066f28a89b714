"""HOTA and identity switches of tracks in videos, through the metrics of the trackeval package.

A track is a prediction or annotation of one object over time. Once every class is scored by itself,
as trackeval does with files of YouTube-VIS; once all classes are one, which asks for identities
alone. Source of HOTA: Luiten et al. 2021, https://doi.org/10.1007/s11263-020-01375-2.

T frames, D predicted and G true tracks
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.data.files.json_file import write_json
from ovformer.evaluation.results_reader import ResultsChecker
from ovformer.evaluation.tube_iou import Tube, tube_areas
from ovformer.files import write_csv

try:
    from trackeval.metrics import CLEAR, HOTA
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "HOTA needs the package trackeval: pip install 'ovformer[eval]'."
    ) from error

# The group of scores for which all classes are one.
CLASS_AGNOSTIC = "class_agnostic"

_HOTA = HOTA()
_CLEAR = CLEAR({"PRINT_CONFIG": False})


def score_hota(
    ground_truth: Mapping,
    predictions: Iterable[dict],
    groups: Mapping[str, Collection[int]] | None = None,
) -> dict[str, dict[str, float]]:
    """Score the identities of results.

    All predictions count, however low their score: HOTA knows no scores. An empty mask counts as
    absent. Predictions of one video with the same "track_id" are one track that is listed under
    several names: without classes, the one with the highest score stands for it. A prediction
    without that field is a track of its own.

    Args:
        ground_truth: from :func:`.load_vis_json`.
        predictions: entries of results.json; those of a video follow one another.
        groups: name of a group -> its category ids.

    Returns:
        metric -> "all", group or :data:`CLASS_AGNOSTIC` -> value. HOTA, DetA and AssA are means
        over the classes with ground truth, from 0 to 1, NaN where a group has none; IDSW is the
        number of identity switches.

    Raises:
        ValueError: the ground truth has no annotations; a prediction is damaged or belongs to
            another data set; a track is listed twice under one class.
    """
    if not ground_truth.get("annotations"):
        raise ValueError("The annotation file has no annotations: HOTA cannot be computed.")
    truth = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        truth[annotation["video_id"]].append(annotation)
    lengths = {video["id"]: video["length"] for video in ground_truth["videos"]}
    checker = ResultsChecker(ground_truth)
    # By class, then by video; None is the class of all objects.
    parts: dict[int | None, dict[int, dict]] = defaultdict(dict)
    waiting = set(lengths)
    for video_id, entries in groupby(predictions, key=itemgetter("video_id")):
        entries = list(entries)
        checker.check(video_id, entries)
        if video_id not in waiting:
            raise ValueError(
                f"The predictions for video {video_id} do not follow one another. Sort the list by "
                "video_id."
            )
        waiting.remove(video_id)
        _score_video(video_id, truth[video_id], entries, lengths[video_id], parts)
    for video_id in waiting:  # without predictions all their true tracks are missed
        _score_video(video_id, truth[video_id], [], lengths[video_id], parts)
    classes = {annotation["category_id"] for annotation in ground_truth["annotations"]}
    per_class = {number: _combine(parts[number]) for number in classes}
    members = {"all": classes, **{name: classes & set(ids) for name, ids in (groups or {}).items()}}
    columns = {
        name: _average([per_class[number] for number in ids]) for name, ids in members.items()
    }
    columns[CLASS_AGNOSTIC] = _combine(parts[None])
    metrics = columns[CLASS_AGNOSTIC]
    return {
        metric: {name: column[metric] for name, column in columns.items()} for metric in metrics
    }


def format_hota(hota: Mapping[str, Mapping[str, float]]) -> str:
    """Return the scores of :func:`score_hota` as a table, in percent; switches as a number."""
    names = list(hota["HOTA"])
    width = max(10, *(len(name) + 2 for name in names))
    lines = [f"{'Metric':<8}" + "".join(f"{name:>{width}}" for name in names)]
    for metric, values in hota.items():
        cells = [
            f"{value:{width}.0f}" if metric == "IDSW" else f"{100 * value:{width}.2f}"
            for value in values.values()
        ]
        lines.append(f"{metric:<8}" + "".join(cells))
    return "\n".join(lines)


def write_hota(hota: Mapping[str, Mapping[str, float]], path: Path, **about: str) -> None:
    """Write the scores of :func:`score_hota`.

    Args:
        hota: the scores.
        path: without suffix; ``.json`` and ``.csv`` are added.
        about: where the scores come from; written to the JSON file.
    """
    names = list(hota["HOTA"])
    groups = {
        name: {m: None if np.isnan(v[name]) else v[name] for m, v in hota.items()} for name in names
    }
    write_json(path.with_name(path.name + ".json"), {**about, "protocol": "hota", "groups": groups})
    rows = [["hota", "group", name, *values.values()] for name, values in groups.items()]
    write_csv(path.with_name(path.name + ".csv"), [["protocol", "kind", "name", *hota], *rows])


def _score_video(
    video_id: int,
    annotations: Sequence[Mapping],
    entries: Sequence[Mapping],
    num_frames: int,
    parts: dict[int | None, dict[int, dict]],
) -> None:
    """Add what trackeval counts in a video to ``parts``, for each class and for all as one."""
    true_tubes = [annotation["segmentations"] for annotation in annotations]
    tubes = [entry["segmentations"] for entry in entries]
    overlaps = _compute_overlaps(true_tubes, tubes, num_frames)
    true_classes = np.array([annotation["category_id"] for annotation in annotations], dtype=int)
    classes = np.array([entry["category_id"] for entry in entries], dtype=int)
    _check_tracks(video_id, entries)
    for number in {*true_classes.tolist(), *classes.tolist()}:
        rows, columns = np.flatnonzero(true_classes == number), np.flatnonzero(classes == number)
        parts[number][video_id] = _count(overlaps, rows, columns)
    rows, columns = np.arange(len(annotations)), _choose_best_names(entries)
    parts[None][video_id] = _count(overlaps, rows, columns)


def _compute_overlaps(
    true_tubes: Sequence[Tube], tubes: Sequence[Tube], num_frames: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return for each frame the visible true tracks (g,), predictions (d,) and IoUs (g, d)."""
    true_seen, seen = tube_areas(true_tubes, num_frames) > 0, tube_areas(tubes, num_frames) > 0
    frames = []
    for t in range(num_frames):
        rows, columns = np.flatnonzero(true_seen[:, t]), np.flatnonzero(seen[:, t])
        ious = coco_mask.iou(
            [true_tubes[row][t] for row in rows],
            [tubes[column][t] for column in columns],
            [0] * len(columns),
        )
        # pycocotools returns an empty list where there is nothing to compare.
        frames.append((rows, columns, np.reshape(ious, (len(rows), len(columns)))))
    return frames


def _check_tracks(video_id: int, entries: Sequence[Mapping]) -> None:
    """Raise ValueError if a track has two predictions of one class."""
    seen = set()
    for entry in entries:
        key = entry.get("track_id"), entry["category_id"]
        if key[0] is not None and key in seen:
            raise ValueError(
                f"Video {video_id}: track_id {key[0]!r} has two predictions with the category_id "
                f"{key[1]!r}. A track can be in one place only: give each object its own track_id."
            )
        seen.add(key)


def _choose_best_names(entries: Sequence[Mapping]) -> np.ndarray:
    """Return the numbers of the predictions that stand for their tracks, (N,)."""
    best: dict[Any, int] = {}
    for number, entry in enumerate(entries):
        track = entry.get("track_id")
        key = ("own", number) if track is None else ("track", track)
        if key not in best or entry["score"] > entries[best[key]]["score"]:
            best[key] = number
    return np.array(sorted(best.values()), dtype=int)


def _count(
    overlaps: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    true_tracks: np.ndarray,
    tracks: np.ndarray,
) -> dict[str, dict]:
    """Return trackeval's counts of a video for some true (G,) and some predicted (D,) tracks."""
    frames = []
    for rows, columns, ious in overlaps:
        kept_rows, kept_columns = np.isin(rows, true_tracks), np.isin(columns, tracks)
        frames.append((rows[kept_rows], columns[kept_columns], ious[kept_rows][:, kept_columns]))
    # trackeval wants ids from 0 without gaps, and none that is never seen.
    true_ids, ids = (
        np.unique(np.concatenate([frame[side] for frame in frames])) for side in (0, 1)
    )
    data = {
        "num_timesteps": len(frames),
        "num_gt_ids": len(true_ids),
        "num_tracker_ids": len(ids),
        "num_gt_dets": sum(len(rows) for rows, _, _ in frames),
        "num_tracker_dets": sum(len(columns) for _, columns, _ in frames),
        "gt_ids": [np.searchsorted(true_ids, rows) for rows, _, _ in frames],
        "tracker_ids": [np.searchsorted(ids, columns) for _, columns, _ in frames],
        "similarity_scores": [ious for _, _, ious in frames],
    }
    return {"HOTA": _HOTA.eval_sequence(data), "IDSW": _CLEAR.eval_sequence(data)["IDSW"]}


def _combine(videos: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Return the scores of one class over all its videos."""
    hota = _HOTA.combine_sequences({video_id: part["HOTA"] for video_id, part in videos.items()})
    scores = {name: float(hota[name].mean()) for name in ("HOTA", "DetA", "AssA")}
    return {**scores, "IDSW": float(sum(part["IDSW"] for part in videos.values()))}


def _average(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of the scores of classes, and the sum of their switches."""
    if not scores:
        return dict.fromkeys(("HOTA", "DetA", "AssA", "IDSW"), float("nan"))
    means = {name: float(np.mean([item[name] for item in scores])) for name in scores[0]}
    return {**means, "IDSW": sum(item["IDSW"] for item in scores)}
