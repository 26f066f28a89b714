"""Queries over time: which query of a frame continues which track, and what tracks are worth.

The network sees each frame by itself. A track is query i of the first frame and, in each later
frame, the query that is assigned to it.

Legend: Q queries (and tracks), K classes, C channels, T frames, N predictions, h w resolution of
the mask features.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from ovformer.modeling.mask_store import MaskStore, SpillFile
from ovformer.modeling.postprocess import class_scores, select_top


class QueryTracker:
    """Assigns queries to tracks, which have a memory of the queries assigned so far."""

    def __init__(self, momentum: float) -> None:
        """Start without tracks.

        Args:
            momentum: weight of the current query in the memory; the rest is the memory before.
        """
        self.momentum = momentum
        self.memory: Tensor | None = None

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Assign the queries of the next frame, so that cosines with the memory are largest.

        Args:
            embeddings: (Q, C) of the queries.

        Returns:
            (Q,) the query that continues each track. In the first frame query i starts track i.

        Raises:
            FloatingPointError: an embedding is not finite.
        """
        embeddings = embeddings.float()
        if self.memory is None:
            self.memory = embeddings
            return torch.arange(len(embeddings), device=embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.normalize(self.memory, dim=1) @ F.normalize(embeddings, dim=1).t()
        costs = (1 - cosines).cpu().numpy()
        if not np.isfinite(costs).all():
            raise FloatingPointError(
                "query embeddings are NaN or infinite, so they can't be assigned to tracks. "
                "Look at the weights (a diverged training?) and the precision of inference"
            )
        assigned = torch.from_numpy(linear_sum_assignment(costs)[1]).to(embeddings.device)
        self.memory = self.momentum * embeddings[assigned] + (1 - self.momentum) * self.memory
        return assigned


class TrackSelection(NamedTuple):
    """The predictions of a video, highest score first.

    Attributes:
        scores: (N,).
        queries: (N,) the track of each.
        classes: (N,).
        visible: bool (N, T), whether the mask in a frame counts and is not empty.
    """

    scores: Tensor
    queries: Tensor
    classes: Tensor
    visible: Tensor


class VideoTracks:
    """What is known of the tracks of a video, in memory that does not grow with its length.

    Only sums over frames are kept there. What is known of each frame goes to a temporary file: the
    scores of all classes, the size and total probability of each mask's foreground, and the masks.
    Arrays of a frame that stayed in memory, however small, would scatter among the large ones that
    come and go, and keep the allocator from using that space again.
    """

    def __init__(self) -> None:
        """Start without frames."""
        self._file = SpillFile()
        self.masks = MaskStore(self._file)
        self._offsets: list[int] = []

    def __enter__(self) -> "VideoTracks":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def num_frames(self) -> int:
        """How many frames there are so far."""
        return len(self._offsets)

    def append(self, logits: Tensor, object_logits: Tensor, masks: Tensor) -> None:
        """Add the next frame, its queries in the order of the tracks.

        Args:
            logits: (Q, K + 1) class logits.
            object_logits: (Q, 2), object and no object.
            masks: (Q, h, w) logits.
        """
        logits, object_logits = logits.float(), object_logits.float()
        if not self._offsets:
            self._logits, self._object_logits = logits.clone(), object_logits.clone()
        else:
            self._logits += logits
            self._object_logits += object_logits
        inside = masks > 0
        probabilities = (masks.sigmoid() * inside).sum((1, 2))
        scores = class_scores(logits, object_logits)
        pixels = inside.sum((1, 2))
        numbers = torch.cat((scores, probabilities[:, None], pixels[:, None]), dim=1)
        self._offsets.append(self._file.write(numbers.cpu().numpy()))
        self.masks.append(masks)

    def select(self, limit: int, frame_score_ratio: float) -> TrackSelection:
        """Choose the best pairs of track and class.

        The score is that of the logits' averages over frames. A frame where the pair's own score is
        below ``frame_score_ratio`` times that is left out: its mask is empty. The score is then
        multiplied by the mean probability over the foreground of the remaining masks.

        Args:
            limit: how many are wanted; all if there are fewer.
            frame_score_ratio: see above.
        """
        mean = (self._logits / self.num_frames, self._object_logits / self.num_frames)
        scores = class_scores(*mean)
        scores, queries, classes = select_top(scores, limit)
        frame_scores, probabilities, pixels = self._numbers(queries, classes).to(scores.device)
        visible = ~(frame_scores < frame_score_ratio * scores[:, None])
        probability, area = ((numbers * visible).sum(1) for numbers in (probabilities, pixels))
        scores, order = (scores * probability / (area + 1e-6)).sort(descending=True)
        visible &= pixels > 0
        return TrackSelection(scores, queries[order], classes[order], visible[order])

    def _numbers(self, queries: Tensor, classes: Tensor) -> Tensor:
        """Read each pair's score, total probability and pixels in each frame: (3, N, T)."""
        num_queries, num_logits = self._logits.shape
        shape = (num_queries, num_logits + 1)  # see append()
        queries, classes = queries.cpu().numpy(), classes.cpu().numpy()
        frames = []
        for offset in self._offsets:
            numbers = self._file.read(offset, shape[0] * shape[1], np.float32).reshape(shape)
            frames.append([numbers[queries, column] for column in (classes, -2, -1)])
        return torch.from_numpy(np.stack(frames, axis=2))
