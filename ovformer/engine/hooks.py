"""Hooks of our trainer, besides those of detectron2."""

import resource
import sys

from ovformer.d2 import HookBase


class PeriodicCheckpoint(HookBase):
    """Saves the whole state of a training periodically, at the end, and when it is interrupted.

    Unlike detectron2's hook it runs in all processes, because each one's random numbers are part of
    the state. To be placed after the hook of the learning rate.
    """

    def __init__(self, period: int) -> None:
        """Make the hook.

        Args:
            period: iterations between checkpoints.
        """
        self._period = period

    def after_step(self) -> None:
        """Save if it is time: ``model_0000099.pth`` after 100 iterations, ``model_final.pth``."""
        done = self.trainer.iter + 1
        is_last = done == self.trainer.max_iter
        is_due = done % self._period == 0 or (self.trainer.is_interrupted and not is_last)
        if not is_due and not is_last:
            return
        self.trainer.collect_random_states()
        if is_due:
            self.trainer.save()
        if is_last:
            self.trainer.checkpointer.save("model_final", iteration=done - 1)


class CpuMemory(HookBase):
    """Records the most memory that this process has used; on a GPU detectron2 prints that."""

    def after_step(self) -> None:
        """Record ``[metric]max_rss_mb``."""
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        in_bytes = usage if sys.platform == "darwin" else usage * 1024
        self.trainer.storage.put_scalar("[metric]max_rss_mb", in_bytes / 1e6, smoothing_hint=False)
