"""AP and AR of video instance segmentation: one metric for all video data sets.

It is COCO's metric with tubes in place of masks: predictions of a class are matched with true
tubes, best score first, at ten thresholds of tube IoU; areas are averaged over the frames in which
a tube is visible. As in LVIS and TAO, a file may have two lists for a video: categories that are
absent ("neg_category_ids"), and categories with instances that were not annotated
("not_exhaustive_category_ids"). Then a prediction is ignored if its category is not annotated and
not listed as absent, or if it is unmatched and its category is in the second list.

Predictions are added one video at a time, and only scores, areas and overlaps are kept.

D predictions and G targets (true tubes) of one class in one video, N predictions of one class in
all videos, A area ranges, I IoU thresholds, R recall thresholds, T frames, K classes
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from ovformer.evaluation.results_reader import ResultsChecker
from ovformer.evaluation.tube_iou import Tube, mean_areas, tube_areas, tube_iou
from ovformer.evaluation.video_scores import AREAS, IOU_THRESHOLDS, VideoScores, score_class

MAX_PREDICTIONS = 100  # of one class in one video

_NO_ID = np.iinfo(np.int64).min  # below every id, of any sign
_RANGES = np.array(list(AREAS.values()), dtype=np.float64)
# A perfect overlap passes a threshold of 1 whatever its rounding.
_THRESHOLDS = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]


@dataclass(frozen=True)
class Protocol:
    """How predictions and targets are compared.

    Attributes:
        name: "standard", or "published" for the published scorer of a data set.
        reuse_targets: one target may match any number of predictions.
        all_small: every tube counts as small.
        all_labelled: each video counts as searched for all instances of all categories.
        lose_id_zero: predictions that match the annotation with id 0 count as unmatched.
        note: what a reader of the scores has to know.
    """

    name: str = "standard"
    reuse_targets: bool = False
    all_small: bool = False
    all_labelled: bool = False
    lose_id_zero: bool = False
    note: str = ""


_PUBLISHED_BURST = Protocol(
    "published",
    reuse_targets=True,
    all_small=True,
    all_labelled=True,
    lose_id_zero=True,
    note="the published BURST scorer: a ground truth may match many predictions, so that these are "
    "no average precisions; only for comparison with published figures",
)


def get_protocol(name: str, evaluator: str) -> Protocol:
    """Return a protocol.

    Args:
        name: "standard" or "published".
        evaluator: of the data set, "vis" or "burst". Only BURST's published scorer differs.

    Raises:
        ValueError: there is no protocol of this name.
    """
    if name not in ("standard", "published"):
        raise ValueError(f"Unknown protocol {name!r}. Known: standard, published.")
    if name == "published" and evaluator == "burst":
        return _PUBLISHED_BURST
    return Protocol(name)


class _Ranked(NamedTuple):
    """All predictions sorted by category, best first."""

    categories: np.ndarray  # int64 (N,)
    areas: np.ndarray  # float64 (N,)
    partial: np.ndarray  # bool (N,): not all instances of the category in the video are annotated
    ranks: np.ndarray  # int64 (N,), among the predictions of one class in one video, from 0
    places: np.ndarray  # int64: of each prediction in the order of update; -1 beyond the limit


@dataclass
class _Targets:
    """The true tubes of one class in one video."""

    tubes: list[Tube]
    areas: np.ndarray  # int64 (G, T)
    crowd: np.ndarray  # bool (G,)
    counted: np.ndarray  # bool (A, G): in the area range and no crowd
    ids: np.ndarray  # int64 (G,)


class VideoMetric:
    """Compares predictions with the ground truth, one video at a time.

    Args:
        ground_truth: from :func:`ovformer.data.files.vis_json.load_vis_json`.
        groups: name of a group -> its category ids.
        protocol: the standard one by default.

    Raises:
        ValueError: the ground truth has no annotations.
    """

    def __init__(
        self,
        ground_truth: Mapping,
        groups: Mapping[str, Collection[int]] | None = None,
        protocol: Protocol | None = None,
    ):
        if ground_truth.get("annotations") is None:
            raise ValueError(
                "The annotation file has no annotations, so nothing can be scored here. (Labels of "
                "YouTube-VIS and OVIS validation videos are on a server; tools/ytvis_json.py packs "
                "results for it.)"
            )
        self.protocol = protocol or Protocol()
        self.categories = sorted(ground_truth["categories"], key=lambda c: c["id"])
        self.groups = dict(groups or {})
        self._lengths = {video["id"]: video["length"] for video in ground_truth["videos"]}
        self._checker = ResultsChecker(ground_truth)
        # By (category id, video id); overlaps as (numbers of the predictions (D,), IoU (D, G)).
        self._targets = self._index_targets(ground_truth["annotations"])
        self._overlaps = defaultdict(list)
        # One entry per call of _add_video: category ids, video ids, scores, areas, partial, (N,).
        self._predictions: list[tuple[np.ndarray, ...]] = []
        self._num_predictions = 0
        self._scored = {category_id for category_id, _ in self._targets}
        # Categories for which a video was searched, if not all; pairs not annotated exhaustively.
        self._searched: dict[int, set[int]] = {}
        self._partial: set[tuple[int, int]] = set()
        if not self.protocol.all_labelled:
            self._index_labels(ground_truth["videos"])

    def update(self, predictions: Iterable[dict]) -> None:
        """Add predictions, which are entries of results.json.

        Args:
            predictions: of any number of videos; ordering them by video is faster. A video may be
                split over several calls.

        Raises:
            ValueError: a prediction is damaged, or belongs to other videos or categories.
        """
        for video_id, entries in groupby(predictions, key=itemgetter("video_id")):
            self._add_video(video_id, list(entries))

    def compute(self) -> VideoScores:
        """Score all predictions added so far."""
        predictions = self._rank_predictions()
        videos = defaultdict(list)
        for category_id, video_id in sorted(self._targets):
            videos[category_id].append(video_id)
        values = [
            self._score_category(category["id"], videos[category["id"]], predictions)
            for category in self.categories
        ]
        return VideoScores(
            categories=self.categories,
            groups=self.groups,
            values=np.stack(values, axis=1),
            protocol=self.protocol.name,
            note=self.protocol.note,
        )

    def _index_targets(self, annotations: list[dict]) -> dict[tuple[int, int], _Targets]:
        groups = defaultdict(list)
        for annotation in annotations:
            groups[annotation["category_id"], annotation["video_id"]].append(annotation)
        return {key: self._make_targets(group) for key, group in groups.items()}

    def _index_labels(self, videos: list[dict]) -> None:
        for video in videos:
            if "neg_category_ids" in video:
                self._searched[video["id"]] = set(video["neg_category_ids"])
            partial = video.get("not_exhaustive_category_ids", ())
            self._partial |= {(category_id, video["id"]) for category_id in partial}
        for category_id, video_id in self._targets:
            if video_id in self._searched:
                self._searched[video_id].add(category_id)

    def _make_targets(self, annotations: list[dict]) -> _Targets:
        tubes = [annotation["segmentations"] for annotation in annotations]
        areas = tube_areas(tubes, len(tubes[0]))
        mean = mean_areas(areas)
        for index, annotation in enumerate(annotations):
            # Areas of the file have precedence, as in the official scorers.
            given = [area for area in annotation.get("areas") or () if area]
            if given:
                mean[index] = np.mean(given)
        if self.protocol.all_small:
            mean[:] = 0
        crowd = np.array([bool(annotation.get("iscrowd")) for annotation in annotations])
        return _Targets(
            tubes=tubes,
            areas=areas,
            crowd=crowd,
            counted=~(_find_outside(mean) | crowd),
            ids=np.array([annotation["id"] for annotation in annotations]),
        )

    def _add_video(self, video_id: int, entries: list[dict]) -> None:
        self._checker.check(video_id, entries)
        # Overlaps are the costly part: skip categories that are not scored in this video.
        scored = self._scored & self._searched.get(video_id, self._scored)
        entries = [entry for entry in entries if entry["category_id"] in scored]
        tubes = [entry["segmentations"] for entry in entries]
        areas = tube_areas(tubes, self._lengths[video_id])
        categories = np.array([entry["category_id"] for entry in entries], dtype=np.int64)
        scores = np.array([entry["score"] for entry in entries], dtype=np.float64)
        means = np.zeros(len(entries)) if self.protocol.all_small else mean_areas(areas)
        present = {entry["category_id"] for entry in entries}
        # Kept per prediction, because all videos of a class are scored together later.
        partial = [
            category_id for category_id in present if (category_id, video_id) in self._partial
        ]
        columns = categories, np.full(len(entries), video_id), scores, means
        self._predictions.append((*columns, np.isin(categories, partial)))
        # Now, while the masks are in memory: only numbers are kept of a video.
        for category_id in present:
            targets = self._targets.get((category_id, video_id))
            if targets is not None:
                rows = np.flatnonzero(categories == category_id)
                overlaps = tube_iou(
                    [tubes[row] for row in rows], targets.tubes, areas[rows], targets.areas
                )
                numbers = self._num_predictions + rows
                self._overlaps[category_id, video_id].append((numbers, overlaps))
        self._num_predictions += len(entries)

    def _rank_predictions(self) -> _Ranked:
        """Sort all predictions by category, best first; drop those over the limit of a video."""
        # An empty column in front keeps the types, and concatenates where nothing was predicted.
        nothing = tuple(np.zeros(0, dtype) for dtype in (int, int, float, float, bool))
        columns = zip(nothing, *self._predictions, strict=True)
        categories, videos, scores, areas, partial = map(np.concatenate, columns)
        # Rank among the predictions of one class in one video; lexsort's last key comes first.
        order = np.lexsort((-scores, videos, categories))
        pairs = np.stack([categories, videos])[:, order]
        first = np.flatnonzero(np.diff(pairs, prepend=_NO_ID).any(axis=0))
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
        # The limit holds per video, the precision curve runs over all videos: so the predictions
        # of a class are sorted again, now by score alone. The video breaks ties, so that the order
        # of the videos in the file does not matter.
        order = np.lexsort((videos, -scores, categories))
        order = order[ranks[order] < MAX_PREDICTIONS]
        places = np.full(len(scores), -1)
        places[order] = np.arange(len(order))
        return _Ranked(categories[order], areas[order], partial[order], ranks[order], places)

    def _score_category(
        self, category_id: int, video_ids: list[int], predictions: _Ranked
    ) -> np.ndarray:
        """Compute the values of :data:`ovformer.evaluation.video_scores.ROWS` for one class.

        Args:
            category_id: the class.
            video_ids: the videos that have targets of it.
            predictions: of all classes.
        """
        start, stop = np.searchsorted(predictions.categories, [category_id, category_id + 1])
        # Unmatched predictions outside of the area range are neither right nor wrong.
        ignored = np.repeat(
            _find_outside(predictions.areas[start:stop])[:, None], len(IOU_THRESHOLDS), axis=1
        )
        matched = np.zeros_like(ignored)
        num_targets = np.zeros(len(AREAS), dtype=np.int64)
        for video_id in video_ids:
            targets = self._targets[category_id, video_id]
            num_targets += targets.counted.sum(axis=1)
            blocks = self._overlaps.get((category_id, video_id))
            if blocks:
                numbers = np.concatenate([numbers for numbers, _ in blocks])
                overlaps = np.concatenate([overlaps for _, overlaps in blocks])
                places = predictions.places[numbers]
                # Best first, as the matching is greedy; those over the limit have the place -1.
                rows = np.argsort(places)
                rows = rows[places[rows] >= 0]
                match_tubes(
                    overlaps[rows], targets, self.protocol, matched, ignored, places[rows] - start
                )
        # After the matching: where a class was annotated in part, a right prediction counts, and a
        # wrong one may have found an object that nobody annotated.
        ignored |= predictions.partial[start:stop] & ~matched
        return score_class(matched, ignored, predictions.ranks[start:stop], num_targets)


def match_tubes(
    overlaps: np.ndarray,
    targets: _Targets,
    protocol: Protocol,
    matched: np.ndarray,
    ignored: np.ndarray,
    places: np.ndarray,
) -> None:
    """Match the predictions of one class in one video, best first, each with its best free target.

    A prediction takes a target that does not count only where no other target is left, and the last
    one of equally good targets. A prediction with a target that does not count is ignored.

    Args:
        overlaps: (D, G) tube IoU, best prediction first.
        targets: the G targets.
        protocol: whether a target may be taken again.
        matched: bool (A, I, N), False for all D; set to True where a prediction is matched.
        ignored: bool (A, I, N), which unmatched predictions are ignored; changed where a prediction
            is matched.
        places: (D,) indices of the D predictions among the N of the class.
    """
    reusable = targets.crowd | protocol.reuse_targets
    # Each area range and IoU threshold is a matching of its own, hence two axes in front of (G,).
    free = np.ones((*matched.shape[:2], len(targets.tubes)), dtype=bool)
    # A prediction below the lowest threshold can match nothing, and leaves its flags as they are.
    for d in np.flatnonzero((overlaps >= _THRESHOLDS[0]).any(axis=1)):
        possible = free & (overlaps[d] >= _THRESHOLDS)
        preferred = possible & targets.counted[:, None]
        candidates = np.where(preferred.any(axis=2, keepdims=True), preferred, possible)
        # COCO's matching takes the last of equal overlaps, argmax the first: look from the end.
        reverse = np.where(candidates, overlaps[d], -1)[..., ::-1]
        a, i = candidates.any(axis=2).nonzero()
        g = len(targets.tubes) - 1 - reverse.argmax(axis=2)[a, i]
        matched[a, i, places[d]] = (targets.ids[g] != 0) | (not protocol.lose_id_zero)
        ignored[a, i, places[d]] = ~targets.counted[a, g]
        free[a, i, g] = reusable[g]


def _find_outside(areas: np.ndarray) -> np.ndarray:
    """Return whether each area (N,) is outside each range: bool (A, N)."""
    return (areas < _RANGES[:, :1]) | (areas > _RANGES[:, 1:])
