"""Samples that can't be loaded: what names them, and how many of them a training may leave out."""

import logging
from collections.abc import Sequence

# So many samples may always be left out: a share means little at the beginning.
ALWAYS_ALLOWED = 10
# So many others are tried in the place of one.
MOST_TRIES = 20

logger = logging.getLogger(__name__)


class SampleError(ValueError):
    """An image or video can't be loaded; the message names data set, file and id."""


class BrokenSampleCounter:
    """Counts the samples of a training that were left out, and ends it if they are too many.

    Attributes:
        total: how many were left out, in all processes and since the start of the training.
    """

    def __init__(self, limit: float):
        """Start to count.

        Args:
            limit: the share of the samples drawn that may be left out (``DATALOADER.MAX_BROKEN``).
        """
        self.limit = limit
        self.total = 0
        self._named: set[str] = set()

    def take(self, batch: Sequence[dict]) -> int:
        """Take the messages out of the samples that came in the place of others.

        Each message is logged once.

        Returns:
            How many were left out for this batch, in this process.
        """
        messages = [message for sample in batch for message in sample.pop("broken", ())]
        for message in messages:
            if message not in self._named:
                self._named.add(message)
                logger.warning("Left out, and another sample taken: %s", message)
        return len(messages)

    def count(self, broken: int, loaded: int) -> None:
        """Add the samples that all processes left out in an iteration.

        Args:
            broken: how many.
            loaded: samples that were trained on, since the start of the training.

        Raises:
            SampleError: they are too many.
        """
        self.total += broken
        allowed = max(ALWAYS_ALLOWED, self.limit * (loaded + self.total))
        if broken and self.total > allowed:
            raise SampleError(
                f"{self.total} of {loaded + self.total} samples could not be loaded, more than "
                f"DATALOADER.MAX_BROKEN allows ({self.limit:g} of them, or {ALWAYS_ALLOWED}). "
                "log.txt, and log.txt.rank* of other processes, name each once. After they are "
                "mended, --resume goes on from the last checkpoint."
            )
