"""Tracks that follow the same object, found by where their masks lie over time.

Queries compete for the objects of a frame, not of a video. So several tracks may follow one object,
and in each frame another one is the best. Two tracks are duplicates if their masks coincide in most
of the frames in which both are visible. That is judged over time: two objects that cross stay two.

N tracks or objects, T frames
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from scipy.optimize import linear_sum_assignment

from ovformer.evaluation.results_reader import ResultsChecker
from ovformer.evaluation.tube_iou import Tube, frame_ious, tube_areas

# Two masks of one frame coincide if their IoU exceeds this: masks of one object by two queries
# differ at its border, masks of two objects hardly ever overlap that much.
MAX_IOU = 0.5
# Objects of a stream that are remembered, for each of its tracks.
_OBJECTS_PER_TRACK = 4


def merge_duplicates(
    tubes: Sequence[Tube], num_frames: int, max_iou: float, limit: int | None = None
) -> list[tuple[int, list[dict | None]]]:
    """Merge the tracks of a video that follow the same object.

    Args:
        tubes: N tracks, the best first.
        num_frames: T.
        max_iou: masks coincide if their IoU exceeds this.
        limit: most objects; None for all.

    Returns:
        For each object the number of its best track, and T masks: in each frame the mask of the
        best of its tracks that has one there, ``None`` if no track has.
    """
    numbers: list[int] = []
    merged: list[list[dict | None]] = []
    all_areas = tube_areas(tubes, num_frames)
    areas = np.zeros((0, num_frames), dtype=np.int64)  # of the merged tubes
    for number in np.flatnonzero(all_areas.any(axis=1)).tolist():
        own = all_areas[number]
        common = (own > 0) & (areas > 0)
        ious = frame_ious([tubes[number]], merged, own[None], areas)[:, 0].T
        same = np.flatnonzero((common & (ious > max_iou)).sum(1) > common.sum(1) / 2)
        if len(same):
            new = (own > 0) & (areas[same[0]] == 0)
            areas[same[0], new] = own[new]
            for t in np.flatnonzero(new):
                merged[same[0]][t] = tubes[number][t]
        elif len(numbers) != limit:
            numbers.append(number)
            tube = zip(tubes[number], own, strict=True)
            merged.append([mask if area else None for mask, area in tube])
            areas = np.concatenate([areas, own[None]])
    return list(zip(numbers, merged, strict=True))


def merge_predictions(
    ground_truth: Mapping, predictions: Iterable[dict], score_threshold: float = 0.0
) -> Iterator[dict]:
    """Yield predictions in which each object of a video has one track and one name.

    Args:
        ground_truth: see :class:`.ResultsChecker`.
        predictions: entries of results.json; those of a video follow one another.
        score_threshold: predictions with a lower score are left out.

    Raises:
        ValueError: a prediction is damaged, or belongs to other videos or categories.
    """
    checker = ResultsChecker(ground_truth)
    for video_id, entries in groupby(predictions, key=itemgetter("video_id")):
        entries = list(entries)
        checker.check(video_id, entries)
        entries = [entry for entry in entries if entry["score"] >= score_threshold]
        entries.sort(key=itemgetter("score"), reverse=True)
        tubes = [entry["segmentations"] for entry in entries]
        num_frames = max(map(len, tubes), default=0)
        for number, tube in merge_duplicates(tubes, num_frames, MAX_IOU):
            yield {**entries[number], "segmentations": tube, "track_id": number}


class StreamIdentities:
    """Numbers the objects of a stream, so that each keeps its number.

    In each frame, tracks whose masks coincide are one object. Each of its tracks votes for the
    numbers of the objects that it followed before, with the sum of its scores there. So an object
    keeps its number while any of its tracks sees it, also after it was out of sight, and a track
    that has gone over to another object is outvoted.

    Memory and time of a frame depend on the number of tracks, not of frames.

    Args:
        max_iou: masks coincide if their IoU exceeds this.
        memory: number of latest frames whose votes count, about; None for all.
    """

    def __init__(self, max_iou: float = MAX_IOU, memory: int | None = None) -> None:
        self._max_iou = max_iou
        self._decay = 1.0 if memory is None else 1 - 1 / memory
        self._next_number = 0
        self._num_frames = 0
        self._numbers: list[int] = []  # of the M objects that are remembered
        self._last_seen: list[int] = []  # frame, of each of them
        self._votes = np.zeros((0, 0))  # (tracks, M)

    @property
    def num_objects(self) -> int:
        """Number of objects that are remembered, in sight or not."""
        return len(self._numbers)

    def update(
        self, tracks: Sequence[int], scores: Sequence[float], ious: np.ndarray, least_score: float
    ) -> list[tuple[int, int]]:
        """Add a frame.

        Args:
            tracks: numbers of the N tracks in it, best first.
            scores: (N,) of the tracks. Those with a score below ``least_score`` vote, too.
            ious: (N, N) of their masks.
            least_score: of an object that is shown.

        Returns:
            For each object to show, best first, the index of its best track and its number.
        """
        objects = self._group(ious)
        self._num_frames += 1
        self._votes *= self._decay
        self._grow(max(tracks, default=-1) + 1)
        weights = np.zeros((len(objects), len(tracks)))
        for row, members in enumerate(objects):
            weights[row, members] = 1
        weights *= np.asarray(scores)
        votes = weights @ self._votes[list(tracks)]
        pairs = zip(*(side.tolist() for side in linear_sum_assignment(-votes)), strict=True)
        known = {row: column for row, column in pairs if votes[row, column] > 0}
        # Before a new object takes the place of the one longest unseen.
        for column in known.values():
            self._last_seen[column] = self._num_frames
        shown = []
        for row, members in enumerate(objects):
            is_shown = scores[members[0]] >= least_score
            if row not in known and not is_shown:
                continue
            column = known[row] if row in known else self._add_number()
            self._votes[np.asarray(tracks)[members], column] += np.asarray(scores)[members]
            if is_shown:
                shown.append((members[0], self._numbers[column]))
        return shown

    def _group(self, ious: np.ndarray) -> list[list[int]]:
        """Return the indices of the tracks of each object, the best first."""
        objects: list[list[int]] = []
        for index in range(len(ious)):
            leaders = [members[0] for members in objects]
            same = np.flatnonzero(ious[index, leaders] > self._max_iou)
            if len(same):
                objects[same[0]].append(index)
            else:
                objects.append([index])
        return objects

    def _add_number(self) -> int:
        """Return the column of a new object: the one longest unseen is forgotten for it."""
        number, self._next_number = self._next_number, self._next_number + 1
        if len(self._numbers) < _OBJECTS_PER_TRACK * len(self._votes):
            self._numbers.append(number)
            self._last_seen.append(self._num_frames)
            self._votes = np.pad(self._votes, ((0, 0), (0, 1)))
            return len(self._numbers) - 1
        column = int(np.argmin(self._last_seen))
        self._numbers[column], self._last_seen[column] = number, self._num_frames
        self._votes[:, column] = 0
        return column

    def _grow(self, size: int) -> None:
        """Make room for track numbers below ``size``."""
        self._votes = np.pad(self._votes, ((0, max(0, size - len(self._votes))), (0, 0)))
