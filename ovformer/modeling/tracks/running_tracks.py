"""Tracks of a stream: their scores and labels up to the present frame, without the past frames.

Legend: T frames of a clip, Q queries (and tracks), K classes, N objects, h w resolution of the mask
features.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from ovformer.modeling.tracks.postprocess import class_scores


class FrameTracks(NamedTuple):
    """The tracks that are visible in a frame, highest score first.

    Attributes:
        tracks: (N,) int64, their numbers.
        labels: (N,) int64.
        scores: (N,) float32, running means.
        masks: (N, h, w) logits in this frame.
    """

    tracks: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor


class RunningTracks:
    """Tracks of streams without end, as :class:`.VideoTracks` are tracks of videos.

    They have the same ``extend``, and ``append`` as :class:`.ClipTracks`. A track has one label,
    the best by the mean of its logits over the frames so far. Its score is the score of that mean,
    times the mean probability over the foreground of its masks. A mask does not count if the score
    of its own frame is below ``frame_score_ratio`` times the score of the mean. At the end of a
    video the scores equal those of ``VideoTracks.select`` if no label changed, and if the last mean
    would have judged each frame as the mean at that frame did.

    For a model of clips the mean is over clips, and its score is the score of the track: see
    :class:`ovformer.modeling.tracks.tracking.ClipTracks`.

    Args:
        limit: largest number of objects of a frame.
        frame_score_ratio: see above; None for a model of clips.
        score_threshold: least score of an object.
        memory: number of frames or clips that the mean is mostly over, later ones with more weight;
            None for the plain mean over all. A stream without end needs it: otherwise objects that
            appear late never outweigh the frames before them.

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
        # The mean fades by the factor 1 - 1 / memory per frame; without a memory by none.
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
            # The score of the frame for the label of the track, which may not be the frame's best.
            frame_scores = class_scores(*now).gather(1, labels[:, None])[:, 0]
            counts = frame_scores >= self.frame_score_ratio * scores
            scores = scores * self._update_mask_probability(masks, counts)
        if masks.dim() == 3:  # a frame is a clip of one frame
            masks = masks[None]
        for of_frame in masks:
            # topk cannot skip rows: tracks that are not seen get a score below all others.
            seen = counts & (of_frame > 0).any(2).any(1) & (scores >= self.score_threshold)
            best, tracks = scores.masked_fill(~seen, -1).topk(min(self.limit, len(scores)))
            tracks = tracks[best >= 0]
            self.ready.append(FrameTracks(tracks, labels[tracks], scores[tracks], of_frame[tracks]))

    def extend(self, logits: Tensor, object_logits: Tensor, masks: Tensor) -> None:
        """Add the next frames of a model of frames: as :meth:`append`, each (T, Q, ...)."""
        for of_frame in zip(logits, object_logits, masks, strict=True):
            self.append(*of_frame)

    def _update_mask_probability(self, masks: Tensor, counts: Tensor) -> Tensor:
        """Add a frame's masks (Q, h, w), those that count, and return the mean probability (Q,)."""
        inside = masks > 0
        numbers = torch.stack(((masks.sigmoid() * inside).sum((1, 2)), inside.sum((1, 2)).float()))
        if self._mask_sums is None:
            self._mask_sums = torch.zeros_like(numbers)
        self._mask_sums.mul_(self._decay).add_(numbers * counts)
        probability, area = self._mask_sums
        return probability / (area + 1e-6)
