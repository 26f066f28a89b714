"""Tracks of a stream: their scores and labels up to the present frame, and nothing of the past.

Legend: T frames of a clip, Q queries (and tracks), K classes, N objects, h w resolution of the mask
features.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from ovformer.modeling.tracks.postprocess import class_scores


class FrameTracks(NamedTuple):
    """The tracks that are seen in a frame, highest score first.

    Attributes:
        tracks: (N,) int64, which they are.
        labels: (N,) int64.
        scores: (N,) float32, running means.
        masks: (N, h, w) logits in this frame.
    """

    tracks: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor


class RunningTracks:
    """What :class:`.VideoTracks` is for videos, for streams without end.

    It has the same ``append`` and ``extend``. A track has one label, the best by the mean of its
    logits over the frames so far. Its score is that mean's, times the mean probability over the
    foreground of its masks, of which those do not count where the frame's own score is below
    ``frame_score_ratio`` times the mean's. At the end of a video these are the scores of
    ``VideoTracks.select``, if no label changed and each frame was judged by the last mean as by its
    own.

    Of a model of clips the mean is over clips, and is the score as it is: see
    :class:`ovformer.modeling.tracks.tracking.ClipTracks`.

    Args:
        limit: most objects of a frame.
        frame_score_ratio: see above; None for a model of clips.
        score_threshold: least score of an object.
        memory: the mean is over about so many frames or clips, of which later ones weigh more;
            None for the plain mean over all. A stream without end needs it to give things that
            come late a name of their own.

    Attributes:
        ready: the frames that were appended and not yet taken, oldest first.
    """

    def __init__(
        self,
        limit: int,
        frame_score_ratio: float | None,
        score_threshold: float = 0.0,
        memory: int | None = None,
    ) -> None:
        self.limit = limit
        self.frame_score_ratio = frame_score_ratio
        self.score_threshold = score_threshold
        self.ready: deque[FrameTracks] = deque()
        self._decay = 1.0 if memory is None else 1 - 1 / memory
        self._weight = 0.0  # number of frames; less where old ones fade
        self._sums: list[Tensor] = []  # logits (Q, K + 1) and object logits (Q, 2)
        self._mask_sums: Tensor | None = None  # (2, Q) probability and pixels of foreground

    def append(self, logits: Tensor, object_logits: Tensor, masks: Tensor) -> None:
        """Add the next frame or clip, its queries in the order of the tracks.

        Args:
            logits: (Q, K + 1) class logits.
            object_logits: (Q, 2), object and no object.
            masks: (Q, h, w) logits, or (T, Q, h, w) of a clip.
        """
        now = [logits.float(), object_logits.float()]
        if not self._sums:
            self._sums = [torch.zeros_like(values) for values in now]
        self._weight = self._weight * self._decay + 1
        for total, values in zip(self._sums, now, strict=True):
            total.mul_(self._decay).add_(values)
        means = [total / self._weight for total in self._sums]
        scores, labels = class_scores(*means).max(1)
        counts = torch.ones_like(labels, dtype=torch.bool)
        if self.frame_score_ratio is not None:
            frame_scores = class_scores(*now).gather(1, labels[:, None])[:, 0]
            counts = frame_scores >= self.frame_score_ratio * scores
            scores = scores * self._mask_probability(masks, counts)
        for of_frame in masks if masks.dim() == 4 else masks[None]:
            seen = counts & (of_frame > 0).any(2).any(1) & (scores >= self.score_threshold)
            best, tracks = scores.masked_fill(~seen, -1).topk(min(self.limit, len(scores)))
            tracks = tracks[best >= 0]
            self.ready.append(FrameTracks(tracks, labels[tracks], scores[tracks], of_frame[tracks]))

    def extend(self, logits: Tensor, object_logits: Tensor, masks: Tensor) -> None:
        """Add the next frames of a model of frames: as :meth:`append`, each (T, Q, ...)."""
        for of_frame in zip(logits, object_logits, masks, strict=True):
            self.append(*of_frame)

    def _mask_probability(self, masks: Tensor, counts: Tensor) -> Tensor:
        """Add a frame's masks (Q, h, w), those that count, and return the mean probability (Q,)."""
        inside = masks > 0
        numbers = torch.stack(((masks.sigmoid() * inside).sum((1, 2)), inside.sum((1, 2)).float()))
        if self._mask_sums is None:
            self._mask_sums = torch.zeros_like(numbers)
        self._mask_sums.mul_(self._decay).add_(numbers * counts)
        probability, area = self._mask_sums
        return probability / (area + 1e-6)
