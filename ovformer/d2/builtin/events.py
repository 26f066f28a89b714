"""The storage of a training run's scalars, and the writers that save or print them."""

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

from ovformer.d2.builtin.env import PathManager

_STORAGES: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """Return the storage of the innermost ``with EventStorage()`` block.

    Raises:
        AssertionError: there is no such block.
    """
    assert _STORAGES, "get_event_storage() was called outside of a 'with EventStorage():' block"
    return _STORAGES[-1]


class EventStorage:
    """The scalars, images and histograms of a run, by name and iteration."""

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._prefix = ""
        self._images: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_scalar(
        self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Record one number.

        Args:
            name: of the scalar; an open name scope is put in front.
            value: a number or a tensor with one element.
            smoothing_hint: whether it is noisy, so that writers show a median; always the same for
                one name.
            cur_iter: its iteration; by default the present one.
        """
        name = self._prefix + name
        value = float(value)
        iteration = self.iter if cur_iter is None else cur_iter
        known = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert known == smoothing_hint, f"{name} was recorded before with smoothing_hint={known}"
        self._history[name].update(value, iteration)
        self._latest[name] = (value, iteration)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float
    ) -> None:
        """Record several numbers, given as keyword arguments."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Record an RGB image (3, H, W), uint8 or float in [0, 1], for TensorBoard."""
        self._images.append((img_name, img_tensor, self.iter))

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Record the histogram of a tensor's elements for TensorBoard."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        counts = torch.histc(hist_tensor, bins=bins)
        edges = torch.linspace(low, high, steps=bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float((hist_tensor**2).sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self.iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """Return all values of a name. Raises KeyError for a name without any."""
        if name not in self._history:
            raise KeyError(f"nothing was recorded as {name!r}. Known: {sorted(self._history)}")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Return all values of all names."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return the last value of each name and its iteration."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return like :meth:`latest`, with a median for noisy scalars.

        Args:
            window_size: iterations of the median.
        """
        smoothed = {}
        for name, (value, iteration) in self._latest.items():
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            smoothed[name] = (value, iteration)
        return smoothed

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Return the number of values of a name in its last ``window_size`` iterations."""
        values = self._history[name].values()
        first = values[-1][1] - window_size + 1
        for count, (_, iteration) in enumerate(reversed(values)):
            if iteration < first:
                return count
        return len(values)

    def smoothing_hints(self) -> dict[str, bool]:
        """Return for each name whether it is noisy."""
        return self._smoothing_hints

    def step(self) -> None:
        """Continue with the next iteration, if no trainer sets ``iter``."""
        self.iter += 1

    @property
    def iter(self) -> int:
        """The present iteration."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """The present iteration, by its older name."""
        return self._iter

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put ``name/`` in front of the names that are recorded in a ``with`` block."""
        outer = self._prefix
        self._prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def pop_images(self) -> list[tuple[str, Any, int]]:
        """Return the recorded images as (name, image, iteration) and forget them."""
        images, self._images = self._images, []
        return images

    def pop_histograms(self) -> list[dict[str, Any]]:
        """Return the recorded histograms, as TensorBoard takes them, and forget them."""
        histograms, self._histograms = self._histograms, []
        return histograms

    def __enter__(self) -> "EventStorage":
        _STORAGES.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert _STORAGES[-1] is self
        _STORAGES.pop()


class EventWriter:
    """Base class of the writers, which read the current storage."""

    def write(self) -> None:
        """Write the events since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """Release files; nothing is written afterwards."""


class JSONWriter(EventWriter):
    """Appends one line of JSON per iteration with all its scalars.

    Args:
        json_file: path; lines are appended to an existing file.
        window_size: iterations of the median of noisy scalars.
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Append one line for each iteration since the last call."""
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        for iteration, scalars in lines.items():
            scalars["iteration"] = iteration
            self._file.write(json.dumps(scalars, sort_keys=True) + "\n")
        self._last_write = max(lines, default=self._last_write)
        self._file.flush()
        # On disk at once: a crash of the machine must not lose lines that were written.
        if hasattr(self._file, "fileno"):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms for TensorBoard.

    The first write creates the folder.

    Args:
        log_dir: folder of the event files.
        window_size: iterations of the median of noisy scalars.
        **kwargs: more arguments of ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        self._window_size = window_size
        self._arguments = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # slow, and only rank 0 needs it

        return SummaryWriter(**self._arguments)

    def write(self) -> None:
        """Write the events since the last call."""
        storage = get_event_storage()
        last_write = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(
            self._window_size
        ).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                last_write = max(last_write, iteration)
        self._last_write = last_write
        for name, image, iteration in storage.pop_images():
            self._writer.add_image(name, image, iteration)
        for histogram in storage.pop_histograms():
            self._writer.add_histogram_raw(**histogram)

    def close(self) -> None:
        """Flush and close the event file, if there is one."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line with time left, iteration, losses, times, learning rate and GPU memory.

    Args:
        max_iter: iterations of the whole training; without it the line has no time left.
        window_size: iterations of the median of losses.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # (iteration, time)

    def write(self) -> None:
        """Log the line, unless the training has ended."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return
        eta = self._eta(storage)
        parts = [f"eta: {eta}"] if eta else []
        parts.append(f"iter: {storage.iter}")
        parts += self._medians(storage, "loss") + self._medians(storage, "[metric]")
        recorded = storage.histories()
        if "time" in recorded:
            times = storage.history("time")
            parts += [f"time: {times.global_avg():.4f}", f"last_time: {times.latest():.4f}"]
        if "data_time" in recorded:
            times = storage.history("data_time")
            mean = times.avg(storage.count_samples("data_time", self._window_size))
            parts += [f"data_time: {mean:.4f}", f"last_data_time: {times.latest():.4f}"]
        parts.append(f"lr: {storage.history('lr').latest():.5g}" if "lr" in recorded else "lr: N/A")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        self.logger.info(" " + "  ".join(parts))

    def _medians(self, storage: EventStorage, marker: str) -> list[str]:
        return [
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in storage.histories().items()
            if marker in name
        ]

    def _eta(self, storage: EventStorage) -> str:
        """Return the time left, or an empty string while it is unknown."""
        if self._max_iter is None:
            return ""
        left = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * left
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        else:  # no IterationTimer: use the time between two lines
            last, self._last_write = self._last_write, (storage.iter, time.perf_counter())
            if last is None or last[0] == storage.iter:
                return ""
            seconds = (time.perf_counter() - last[1]) / (storage.iter - last[0]) * left
        return str(datetime.timedelta(seconds=int(seconds)))
