"""Hooks of our trainer, besides those of detectron2."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path

from ovformer.d2 import HookBase, comm, hooks
from ovformer.engine.metrics import find_last_iteration


class PeriodicCheckpoint(HookBase):
    """Saves the whole state of a training periodically, at the end, and when it is interrupted.

    Unlike detectron2's hook it runs in all processes, because the random numbers of each are part
    of the state. Register it after the hook of the learning rate.

    Args:
        period: iterations between checkpoints.
    """

    def __init__(self, period: int) -> None:
        self._period = period

    def after_step(self) -> None:
        """Save if due, e.g. ``model_0000099.pth``, and at the end ``model_final.pth``."""
        done = self.trainer.iter + 1
        is_last = done == self.trainer.max_iter
        # An interruption after the last iteration needs no checkpoint but the final one.
        is_due = done % self._period == 0 or (self.trainer.is_interrupted and not is_last)
        if not is_due and not is_last:
            return
        # All processes send theirs, though only the main process saves.
        self.trainer.collect_random_states()
        if is_due:
            self.trainer.save()
        if is_last:
            self.trainer.checkpointer.save("model_final", iteration=done - 1)


class Evaluation(hooks.EvalHook):
    """Evaluates as detectron2's hook does, and catches up on an interrupted evaluation.

    A checkpoint is saved before the evaluation of its iteration. An evaluation that does not end is
    repeated when the training is resumed, so that the curves have no gap. Register it before the
    hook that writes the curves.

    Args:
        period: iterations between evaluations; 0 for the last one only.
        evaluate: returns a nested dict of scores.
        metrics_file: ``metrics.json``, which shows what has been evaluated.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict], metrics_file: Path) -> None:
        super().__init__(period, evaluate)
        self._iterations = period
        self._metrics_file = metrics_file

    def before_train(self) -> None:
        """Evaluate if that was due at the checkpoint and metrics.json lacks the scores."""
        trainer, done = self.trainer, self.trainer.start_iter
        was_due = self._iterations > 0 and done > 0 and done % self._iterations == 0
        if not (trainer.is_resumed and was_due and done < trainer.max_iter):
            return
        # The evaluation needs all processes, so all follow the main one, which wrote the file.
        if comm.all_gather(find_last_iteration(self._metrics_file, done))[0] == done - 1:
            return
        # The scores belong to the iteration of the checkpoint, not to the one that comes next.
        now = trainer.iter
        trainer.iter = trainer.storage.iter = done - 1
        self._do_eval()
        trainer.iter = trainer.storage.iter = now


class CpuMemory(HookBase):
    """Records the peak memory of this process; for GPUs detectron2 prints it already."""

    def after_step(self) -> None:
        """Record ``[metric]max_rss_mb``."""
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # macOS counts bytes, Linux counts KiB.
        in_bytes = usage if sys.platform == "darwin" else usage * 1024
        self.trainer.storage.put_scalar("[metric]max_rss_mb", in_bytes / 1e6, smoothing_hint=False)
