"""Writes the curves of a training: console, metrics.json and TensorBoard.

An interruption does not change the curves. A checkpoint holds the values that the next lines need
from the iterations before it, and resuming removes the lines written after the checkpoint.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from ovformer.d2 import CommonMetricPrinter, HookBase, JSONWriter, TensorboardXWriter, comm
from ovformer.files import write_atomically

logger = logging.getLogger(__name__)

# Scalars that a resumed process measures again.
_OF_THIS_PROCESS = ("time", "data_time", "eta_seconds")


class MetricsWriter(HookBase):
    """Writes every ``period`` iterations and at the end; losses as medians over the period.

    Register it in all processes, after all hooks that record something. The main process writes.

    Args:
        folder: of ``metrics.json`` and TensorBoard's files.
        period: iterations between two lines.
    """

    def __init__(self, folder: str, period: int) -> None:
        self._folder = folder
        self._period = period
        self._writers: list[CommonMetricPrinter | JSONWriter | TensorboardXWriter] = []
        self._last_write = -1
        self._saved: dict[str, dict] = {}

    def before_train(self) -> None:
        """Open the files, after removing the lines that a resumed training will write again.

        If the training is new, lines of another one stay, except a last line that a kill cut off:
        the first new line would be appended to it and lost.
        """
        if not comm.is_main_process():
            return
        path, start = Path(self._folder, "metrics.json"), self.trainer.start_iter
        if self.trainer.is_resumed:
            last_line = cut_metrics(path, start)
        else:
            cut_metrics(path, sys.maxsize)
            last_line = -1
        self._last_write = max(self._last_write, last_line)
        is_last = start == self.trainer.max_iter
        if not (is_last and last_line >= start - 1):  # else everything has been written
            self._restore_scalars()
        # TensorBoard hides older points of the iterations that are done again.
        to_file = [
            JSONWriter(str(path), self._period),
            TensorboardXWriter(self._folder, self._period, purge_step=start or None),
        ]
        self._writers = [CommonMetricPrinter(self.trainer.max_iter, self._period), *to_file]
        # A kill came between a checkpoint and the line of the same iteration: write that line now.
        is_due = start % self._period == 0 or is_last
        if self._saved and is_due and last_line < start - 1:
            for writer in to_file:
                writer.write()
            self._last_write = start - 1

    def after_step(self) -> None:
        """Write a line if one is due."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()
            self._last_write = self.trainer.iter

    def after_train(self) -> None:
        """Write what was recorded after the last iteration, and close the files.

        A training that did not end writes nothing here: when it is resumed, its next line covers
        the whole period.
        """
        for writer in self._writers:
            if self.trainer.iter == self.trainer.max_iter:
                writer.write()
            writer.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded values that the next lines need."""
        # Other processes than the main one have no lines to go on with.
        if not self._writers:
            return {}
        storage, scalars = self.trainer.storage, {}
        for name, (_, latest) in storage.latest().items():
            if name in _OF_THIS_PROCESS:
                continue
            # A smoothed value is a median over the period, so all its values since then are needed;
            # any other value is needed until it has been written.
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
        """Keep the values of :meth:`state_dict` until training starts."""
        self._last_write, self._saved = state_dict["last_write"], state_dict["scalars"]

    def _restore_scalars(self) -> None:
        """Record the saved values again, except unsmoothed ones that have been written."""
        for name, scalar in self._saved.items():
            for value, iteration in scalar["values"]:
                if scalar["is_smoothed"] or iteration > self._last_write:
                    self.trainer.storage.put_scalar(
                        name, value, smoothing_hint=scalar["is_smoothed"], cur_iter=iteration
                    )


def cut_metrics(path: Path, start: int) -> int:
    """Remove damaged lines from a file, and those of iteration ``start`` and later.

    Args:
        path: ``metrics.json``; it need not exist.
        start: first iteration to remove.

    Returns:
        The last iteration in the file afterwards, -1 for none.
    """
    if not path.is_file():
        return -1
    before = path.read_bytes()
    lines = [(_iteration(line), line) for line in before.splitlines()]
    if damaged := sum(i is None for i, _ in lines):
        logger.warning("%s: removed %d damaged line(s).", path, damaged)
    after = b"".join(line + b"\n" for i, line in lines if i is not None and i < start)
    # As a whole: a kill leaves the old file or the new one.
    if after != before:
        write_atomically(path, lambda file: file.write(after))
    return find_last_iteration(path, start)


def find_last_iteration(path: Path, start: int) -> int:
    """Return the last iteration before ``start`` with a line in the file, -1 for none."""
    iterations = map(_iteration, path.read_bytes().splitlines() if path.is_file() else [])
    return max((i for i in iterations if i is not None and i < start), default=-1)


def _iteration(line: bytes) -> int | None:
    """Return the iteration of a line, None if the line is damaged or cut off."""
    try:
        iteration = json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):  # JSON's and Unicode's errors are ValueErrors
        return None
    return iteration if isinstance(iteration, int) else None
