"""Queries over time: which query of a frame continues which track, and the scores of tracks.

The network sees each frame or clip by itself. A track is query i of the first one and, in each
later one, the query that is assigned to it.

Legend: Q queries (and tracks), K classes, C channels, T frames, N predictions, h w resolution of
the mask features.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from ovformer.modeling.tracks.mask_store import MaskStore, SpillFile
from ovformer.modeling.tracks.postprocess import class_scores, select_top


class QueryTracker:
    """Assigns queries to tracks; a track remembers a mean of the queries assigned to it.

    Source: MinVIS, https://arxiv.org/abs/2208.02245, with a memory in place of the previous frame.

    Args:
        momentum: weight of the current query in the memory; the old memory has the rest.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.memory: Tensor | None = None

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Assign the queries of the next frame or clip: their cosines to the memory are largest.

        Args:
            embeddings: (Q, C) of the queries.

        Returns:
            (Q,) the query that continues each track. In the first call query i starts track i.

        Raises:
            FloatingPointError: an embedding is not finite.
        """
        embeddings = embeddings.float()
        if self.memory is None:
            self.memory = embeddings
            return torch.arange(len(embeddings), device=embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.normalize(self.memory, dim=1) @ F.normalize(embeddings, dim=1).t()
        # One to one: the closest query of two tracks may be the same, and then one has to yield.
        costs = (1 - cosines).cpu().numpy()
        if not np.isfinite(costs).all():
            raise FloatingPointError(
                "query embeddings are NaN or infinite, so they can't be assigned to tracks. "
                "Look at the weights (a diverged training?) and the precision of inference"
            )
        assigned = torch.from_numpy(linear_sum_assignment(costs)[1]).to(embeddings.device)
        # A mean, so that one frame in which an object is hidden does not lose its track.
        self.memory = self.momentum * embeddings[assigned] + (1 - self.momentum) * self.memory
        return assigned


class TrackSelection(NamedTuple):
    """The predictions of a video, highest score first.

    Attributes:
        scores: (N,).
        queries: (N,) the track of each.
        classes: (N,).
        visible: bool (N, T), true where the mask of a frame counts and is not empty.
    """

    scores: Tensor
    queries: Tensor
    classes: Tensor
    visible: Tensor


class TrackStore:
    """Tracks of a video, in memory that does not grow with its length.

    Memory holds sums over frames or clips only. A temporary file holds some numbers of each frame,
    and its masks. Even small arrays that stayed in memory for each frame would scatter among the
    large ones that come and go, and the allocator could not use that space again.
    """

    def __init__(self) -> None:
        self._file = SpillFile()
        self.masks = MaskStore(self._file)
        self._offsets: list[int] = []
        self._num_columns = 0
        self._num_summands = 0

    def __enter__(self) -> "TrackStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def num_frames(self) -> int:
        """Number of frames so far."""
        return len(self._offsets)

    def _add_logits(self, logits: Tensor, object_logits: Tensor) -> None:
        """Add class logits (Q, K + 1) and object logits (Q, 2) to the sums."""
        if not self._num_summands:
            self._logits = torch.zeros_like(logits, dtype=torch.float32)
            self._object_logits = torch.zeros_like(object_logits, dtype=torch.float32)
        self._logits += logits
        self._object_logits += object_logits
        self._num_summands += 1

    def _mean_scores(self) -> Tensor:
        """Return the scores of the mean logits: (Q, K)."""
        return class_scores(
            self._logits / self._num_summands, self._object_logits / self._num_summands
        )

    def _write_frames(self, masks: Tensor, numbers: Tensor) -> None:
        """Store mask logits (T, Q, h, w) of frames, and some numbers (T, Q, any) of each query."""
        self._num_columns = numbers.shape[2]
        for of_frame in numbers.float().cpu().numpy():
            self._offsets.append(self._file.write(of_frame))
        self.masks.extend(masks)

    def _read_frames(self, queries: Tensor, *columns: Tensor | int) -> Tensor:
        """Read numbers of some queries in each frame.

        Args:
            queries: (N,).
            *columns: of the numbers: one column for all queries, or (N,) a column for each.

        Returns:
            (len(columns), N, T), on the device of ``queries``.
        """
        # A frame at a time: only the numbers of chosen queries stay in memory.
        shape = (len(self._logits), self._num_columns)
        rows = queries.cpu().numpy()
        columns = [x.cpu().numpy() if isinstance(x, Tensor) else x for x in columns]
        frames = []
        for offset in self._offsets:
            numbers = self._file.read(offset, shape[0] * shape[1], np.float32).reshape(shape)
            frames.append([numbers[rows, column] for column in columns])
        return torch.from_numpy(np.stack(frames, axis=2)).to(queries.device)


class VideoTracks(TrackStore):
    """Tracks of a model of frames: a query sees one frame."""

    def extend(self, logits: Tensor, object_logits: Tensor, masks: Tensor) -> None:
        """Add the next frames, their queries in the order of the tracks.

        What is stored of them is copied from an accelerator together.

        Args:
            logits: (T, Q, K + 1) class logits.
            object_logits: (T, Q, 2), object and no object.
            masks: (T, Q, h, w) logits.
        """
        for of_frame in zip(logits, object_logits, strict=True):
            self._add_logits(*of_frame)
        # A mask's mean probability over its foreground is a quotient of two sums: both are stored,
        # because only select() knows which frames count.
        inside = masks > 0
        probabilities = (masks.sigmoid() * inside).sum((2, 3))
        scores = class_scores(logits, object_logits)
        pixels = inside.sum((2, 3))
        numbers = torch.cat((scores, probabilities[..., None], pixels[..., None]), dim=2)
        self._write_frames(masks, numbers)

    def select(self, limit: int, frame_score_ratio: float) -> TrackSelection:
        """Choose the best pairs of track and class.

        The score is that of the mean logits over frames. A frame where the score of the pair is
        below ``frame_score_ratio`` times that is left out: its mask is empty. The score is then
        multiplied by the mean probability over the foreground of the remaining masks.

        Args:
            limit: number of pairs; all if there are fewer.
            frame_score_ratio: see above.
        """
        scores, queries, classes = select_top(self._mean_scores(), limit)
        frame_scores, probabilities, pixels = self._read_frames(queries, classes, -2, -1)
        visible = ~(frame_scores < frame_score_ratio * scores[:, None])
        probability, area = ((numbers * visible).sum(1) for numbers in (probabilities, pixels))
        # Only now are scores final: up to here they ranked pairs without their masks.
        scores, order = (scores * probability / (area + 1e-6)).sort(descending=True)
        visible &= pixels > 0
        return TrackSelection(scores, queries[order], classes[order], visible[order])


class ClipTracks(TrackStore):
    """Tracks of a model of clips: a query sees one clip. Clips may overlap.

    A frame that is in several clips gets one mask, from the mean of their logits. It waits in
    memory until no later clip can have it.

    Args:
        overlap: number of the last frames of a clip that are the first ones of the next.
    """

    def __init__(self, overlap: int = 0) -> None:
        super().__init__()
        self._overlap = overlap
        self._waiting: list[tuple[Tensor, int]] = []  # sum of mask logits, and number of clips

    @property
    def num_frames(self) -> int:
        """Number of frames so far, each counted once."""
        return super().num_frames + len(self._waiting)

    def append(self, logits: Tensor, object_logits: Tensor, masks: Tensor) -> None:
        """Add the next clip, its queries in the order of the tracks.

        Args:
            logits: (Q, K + 1) class logits.
            object_logits: (Q, 2), object and no object.
            masks: (T, Q, h, w) logits.
        """
        self._add_logits(logits, object_logits)
        # The first frames of a clip are those that wait: their logits are added up.
        known = len(self._waiting)
        self._waiting = [
            (total + of_frame, number + 1)
            for (total, number), of_frame in zip(self._waiting, masks[:known], strict=True)
        ] + [(of_frame, 1) for of_frame in masks[known:]]
        self._write_all_but(self._overlap)

    def select(self, limit: int) -> TrackSelection:
        """Choose the best pairs of track and class, by the score of the mean logits of all clips.

        Args:
            limit: number of pairs; all if there are fewer.
        """
        # No clip follows that could add to the frames that wait.
        self._write_all_but(0)
        scores, queries, classes = select_top(self._mean_scores(), limit)
        (pixels,) = self._read_frames(queries, 0)
        return TrackSelection(scores, queries, classes, pixels > 0)

    def _write_all_but(self, number: int) -> None:
        """Write the waiting frames, except the last ``number`` of them."""
        done = len(self._waiting) - number
        if done > 0:
            masks = torch.stack([total / clips for total, clips in self._waiting[:done]])
            del self._waiting[:done]
            self._write_frames(masks, (masks > 0).sum((2, 3))[..., None])
