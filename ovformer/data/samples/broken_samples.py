"""Samples that can't be loaded: their error, and the limit of how many a training may skip."""

import logging
from collections.abc import Sequence

# This many broken samples are always allowed: a share means little at the beginning.
ALWAYS_ALLOWED = 10
# This many other samples are tried in place of a broken one.
MOST_TRIES = 20

logger = logging.getLogger(__name__)


class SampleError(ValueError):
    """An image or video can't be loaded; the message names data set, file and id."""


class BrokenSampleCounter:
    """Counts the samples that a training skipped, and ends it if there are too many.

    Args:
        limit: the share of the drawn samples that may be broken (``DATALOADER.MAX_BROKEN``).

    Attributes:
        total: number of skipped samples, of all processes and since the start of the training.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.total = 0
        self._named: set[str] = set()

    def take(self, batch: Sequence[dict]) -> int:
        """Remove the messages from a batch, and log those that are new.

        Args:
            batch: samples. One that replaces broken samples has their messages in "broken".

        Returns:
            The number of samples that were skipped for this batch, in this process.
        """
        messages = [message for sample in batch for message in sample.pop("broken", ())]
        for message in messages:
            if message not in self._named:
                self._named.add(message)
                logger.warning("Skipped, and another sample taken: %s", message)
        return len(messages)

    def count(self, broken: int, loaded: int) -> None:
        """Add the samples that all processes skipped in an iteration.

        Args:
            broken: number of skipped samples.
            loaded: number of samples trained on since the start of the training.

        Raises:
            SampleError: more samples are broken than ``limit`` allows.
        """
        self.total += broken
        # Skipped samples were drawn as well: the share is of all draws, not of the trained ones.
        allowed = max(ALWAYS_ALLOWED, self.limit * (loaded + self.total))
        # Only a new broken sample ends a training, which may have been resumed near the limit.
        if broken and self.total > allowed:
            raise SampleError(
                f"{self.total} of {loaded + self.total} samples could not be loaded, more than "
                f"DATALOADER.MAX_BROKEN allows ({self.limit:g} of them, or {ALWAYS_ALLOWED}). "
                "log.txt, and log.txt.rank* of other processes, name each once. Repair them, then "
                "continue from the last checkpoint with --resume."
            )
