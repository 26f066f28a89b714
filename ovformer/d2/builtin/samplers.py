"""Samplers: the order of the records, and each process's part of them."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ovformer.d2.builtin import comm


class _SharedStream(Sampler):
    """An endless stream of indices, which N processes share: each takes every N-th index."""

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        # All processes draw the same stream, so their parts are disjoint without communication.
        yield from islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def _epoch(self, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


class TrainingSampler(_SharedStream):
    """Yields all indices, shuffled, again and again.

    Args:
        size: number of records.
        shuffle: draw a new order for each pass.
        seed: the same on all processes; None draws one that all share.

    Raises:
        TypeError: ``size`` is not an int.
        ValueError: ``size`` is not positive.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler: size must be an int, got {type(size)}")
        if size <= 0:
            raise ValueError(f"TrainingSampler: size must be positive, got {size}")
        super().__init__(shuffle, seed)
        self._size = size

    def _epoch(self, generator: torch.Generator) -> Tensor:
        return torch.arange(self._size)


class RepeatFactorTrainingSampler(_SharedStream):
    """Repeats record i ``repeat_factors[i]`` times per pass, on average.

    With the factors of LVIS, rare categories are seen more often.

    Args:
        repeat_factors: float (records,).
        shuffle: draw a new order for each pass.
        seed: the same on all processes; None draws one that all share.
    """

    def __init__(
        self, repeat_factors: Tensor, *, shuffle: bool = True, seed: int | None = None
    ) -> None:
        super().__init__(shuffle, seed)
        self._whole = repeat_factors.trunc()
        self._fraction = repeat_factors - self._whole

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> Tensor:
        """Compute the repeat factors of LVIS (Gupta et al. 2019, appendix B.2).

        A category's factor is max(1, sqrt(threshold / share of images with it)); an image
        has the largest factor of its categories.

        Args:
            dataset_dicts: records with "annotations", each with a "category_id".
            repeat_thresh: categories in a smaller share of images are repeated.
            sqrt: take the square root.

        Returns:
            float32 (records,).
        """
        categories = [
            {annotation["category_id"] for annotation in record["annotations"]}
            for record in dataset_dicts
        ]
        image_count = Counter(category for present in categories for category in present)
        factors = {}
        for category, count in image_count.items():
            ratio = repeat_thresh / (count / len(dataset_dicts))
            factors[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
        return torch.tensor(
            [max((factors[c] for c in present), default=1.0) for present in categories],
            dtype=torch.float32,
        )

    def _epoch(self, generator: torch.Generator) -> Tensor:
        # Rounded up with the fraction as probability: over many passes the mean is the factor.
        round_up = torch.rand(len(self._fraction), generator=generator) < self._fraction
        counts = (self._whole + round_up).long()
        return torch.arange(len(counts)).repeat_interleave(counts)


class InferenceSampler(Sampler):
    """Yields all indices once: each process gets one of nearly equal contiguous parts.

    Args:
        size: number of records.

    Raises:
        AssertionError: ``size`` is not positive (detectron2's type).
    """

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise AssertionError(f"InferenceSampler: size must be positive, got {size}")
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        """Return the part of process ``rank``; the remainder goes to the first processes."""
        share, left = divmod(total_size, world_size)
        begin = share * rank + min(rank, left)
        length = share + 1 if rank < left else share
        return range(begin, begin + length)

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
