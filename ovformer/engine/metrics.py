"""What is written about a training: console, metrics.json and TensorBoard.

The curves of a training that was interrupted are those of one that was not: a checkpoint holds what
the next lines need of the iterations before it, and resuming takes away what a training had written
after the checkpoint that it goes on from.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from ovformer.d2 import CommonMetricPrinter, HookBase, JSONWriter, TensorboardXWriter, comm
from ovformer.files import write_atomically

logger = logging.getLogger(__name__)

# What a process that resumes measures anew.
_OF_THIS_PROCESS = ("time", "data_time", "eta_seconds")


class MetricsWriter(HookBase):
    """Writes every ``period`` iterations and at the end; of losses, the median over the period.

    To be registered in all processes, after all hooks that record something. The first one writes.
    """

    def __init__(self, folder: str, period: int) -> None:
        """Make the hook.

        Args:
            folder: where ``metrics.json`` and TensorBoard's files go.
            period: iterations between two writes.
        """
        self._folder = folder
        self._period = period
        self._writers: list[CommonMetricPrinter | JSONWriter | TensorboardXWriter] = []
        self._last_write = -1
        self._saved: dict[str, dict] = {}

    def before_train(self) -> None:
        """Open the files, after what a training that is resumed had written is put in order.

        Of another training's lines only those that a kill cut off are taken away, behind which the
        first new one would be lost.
        """
        if not comm.is_main_process():
            return
        path, start = Path(self._folder, "metrics.json"), self.trainer.start_iter
        last_line = cut_metrics(path, start if self.trainer.is_resumed else sys.maxsize)
        last_line = last_line if self.trainer.is_resumed else -1
        self._last_write = max(self._last_write, last_line)
        is_last = start == self.trainer.max_iter
        if not (is_last and last_line >= start - 1):  # else all is written
            self._put_back()
        to_file = [
            JSONWriter(str(path), self._period),
            TensorboardXWriter(self._folder, self._period, purge_step=start or None),
        ]
        self._writers = [CommonMetricPrinter(self.trainer.max_iter, self._period), *to_file]
        # The training ended between a checkpoint and the line of the same iteration.
        is_due = start % self._period == 0 or is_last
        if self._saved and is_due and last_line < start - 1:
            for writer in to_file:
                writer.write()
            self._last_write = start - 1

    def after_step(self) -> None:
        """Write if it is time."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()
            self._last_write = self.trainer.iter

    def after_train(self) -> None:
        """Write what was recorded after the last iteration, and close.

        Of a training that did not come to its end nothing is written: it will be resumed, and the
        lines then have all iterations of their period.
        """
        for writer in self._writers:
            if self.trainer.iter == self.trainer.max_iter:
                writer.write()
            writer.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what has been recorded and will be needed for what is not written yet."""
        if not self._writers:
            return {}
        storage, scalars = self.trainer.storage, {}
        for name, (_, latest) in storage.latest().items():
            if name in _OF_THIS_PROCESS:
                continue
            is_smoothed = storage.smoothing_hints()[name]
            values = storage.histories()[name].values()
            if is_smoothed:
                values = [entry for entry in values if entry[1] > latest - self._period]
            elif latest > self._last_write:
                values = values[-1:]
            else:
                continue
            scalars[name] = {"is_smoothed": is_smoothed, "values": [list(x) for x in values]}
        return {"last_write": self._last_write, "scalars": scalars}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._last_write, self._saved = state_dict["last_write"], state_dict["scalars"]

    def _put_back(self) -> None:
        """Record again what had been, but for single values that were written."""
        for name, scalar in self._saved.items():
            for value, iteration in scalar["values"]:
                if scalar["is_smoothed"] or iteration > self._last_write:
                    self.trainer.storage.put_scalar(
                        name, value, smoothing_hint=scalar["is_smoothed"], cur_iter=iteration
                    )


def cut_metrics(path: Path, start: int) -> int:
    """Take the lines of iterations from ``start`` on, and those that are no JSON, out of a file.

    Args:
        path: ``metrics.json``; it need not exist.
        start: the first iteration whose lines, and those after it, are taken out.

    Returns:
        The last iteration that the file has now, -1 for none.
    """
    if not path.is_file():
        return -1
    before = path.read_bytes()
    lines = [(_iteration(line), line) for line in before.splitlines()]
    if damaged := sum(i is None for i, _ in lines):
        logger.warning("%s: %d damaged line(s) are left out.", path, damaged)
    after = b"".join(line + b"\n" for i, line in lines if i is not None and i < start)
    if after != before:
        write_atomically(path, lambda file: file.write(after))
    return last_iteration(path, start)


def last_iteration(path: Path, start: int) -> int:
    """Return the last iteration before ``start`` that a file has a line of, -1 for none."""
    iterations = map(_iteration, path.read_bytes().splitlines() if path.is_file() else [])
    return max((i for i in iterations if i is not None and i < start), default=-1)


def _iteration(line: bytes) -> int | None:
    """Return the iteration of a line, or None if it is damaged or a kill left a part of it."""
    try:
        iteration = json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):  # JSON's and Unicode's errors are ValueErrors
        return None
    return iteration if isinstance(iteration, int) else None
