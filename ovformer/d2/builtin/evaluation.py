"""The loop that runs a model over a data set, and the interface of evaluators."""

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ovformer.d2.builtin import comm

# The first batches are slow and not timed.
_WARMUP_BATCHES = 5
# Between two progress lines.
_LOG_SECONDS = 5.0


class DatasetEvaluator:
    """Collects predictions by ``process`` and scores them in ``evaluate``."""

    def reset(self) -> None:
        """Forget all predictions before a new evaluation."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Add the predictions of one batch.

        Args:
            inputs: the input of the model.
            outputs: the output of the model.
        """

    def evaluate(self) -> dict | None:
        """Return scores as ``{task: {metric: value}}``; None on other than the main process."""


class _Stopwatch:
    """Measures the seconds of each part of the loop, without the warm-up batches."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.begin = self._last = time.perf_counter()
        self.parts = {"Dataloading": 0.0, "Inference": 0.0, "Eval": 0.0}

    def lap(self, part: str) -> None:
        """Add the time since the last lap to ``part``."""
        now = time.perf_counter()
        self.parts[part] += now - self._last
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self.begin


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | None,
    callbacks: dict[str, Callable[[], None]] | None = None,
) -> dict:
    """Run a model over all batches, score the predictions and log the speed.

    Args:
        model: called with each batch, without gradients; an ``nn.Module`` in eval mode.
        data_loader: the batches; it must have a length.
        evaluator: scores the predictions; None measures the speed only.
        callbacks: functions by name: on_start, before_inference, after_inference, on_end.

    Returns:
        The evaluator's scores, or an empty dict if it returns None.
    """
    logger = logging.getLogger(__name__)
    callbacks = callbacks or {}
    total = len(data_loader)
    logger.info("Start inference on %d batches", total)
    if evaluator is None:
        evaluator = DatasetEvaluator()
    evaluator.reset()

    def run_callback(name: str) -> None:
        if name in callbacks:
            callbacks[name]()

    # At least one batch is timed, however few there are.
    num_warmup = max(min(_WARMUP_BATCHES, total - 1), 0)
    last_log = 0.0
    with inference_context(model) if isinstance(model, nn.Module) else nullcontext():
        with torch.no_grad():
            run_callback("on_start")
            watch = _Stopwatch()
            for index, inputs in enumerate(data_loader):
                watch.lap("Dataloading")
                if index == num_warmup:
                    watch.restart()
                run_callback("before_inference")
                outputs = model(inputs)
                run_callback("after_inference")
                # Kernels run asynchronously: without waiting, "Eval" would be charged for them.
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                watch.lap("Inference")
                evaluator.process(inputs, outputs)
                watch.lap("Eval")

                timed = index + 1 - (num_warmup if index >= num_warmup else 0)
                is_slow = watch.parts["Inference"] / timed > _LOG_SECONDS
                is_due = time.perf_counter() - last_log >= _LOG_SECONDS
                if is_due and (index >= 2 * num_warmup or is_slow):
                    last_log = time.perf_counter()
                    logger.info(_describe_progress(index + 1, total, watch, timed))
            run_callback("on_end")

    timed = max(total - num_warmup, 1)
    devices = f"{comm.get_world_size()} devices"
    for what, seconds in (
        ("inference time", watch.total()),
        ("inference pure compute time", watch.parts["Inference"]),
    ):
        logger.info(
            f"Total {what}: {datetime.timedelta(seconds=int(seconds))} "
            f"({seconds / timed:.6f} s / iter per device, on {devices})"
        )
    results = evaluator.evaluate()
    return {} if results is None else results


def _describe_progress(done: int, total: int, watch: _Stopwatch, timed: int) -> str:
    per_batch = watch.total() / timed
    parts = "".join(f"{name}: {sec / timed:.4f} s/iter. " for name, sec in watch.parts.items())
    eta = datetime.timedelta(seconds=int(per_batch * (total - done)))
    return f"Inference done {done}/{total}. {parts}Total: {per_batch:.4f} s/iter. ETA={eta}"


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode for a ``with`` block, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log scores as lines of comma-separated values, for a spreadsheet.

    Args:
        results: ``{task: {metric: value}}``; metrics with a "-" (those of one category) are
            skipped. A task may also be a single value.
    """
    logger = logging.getLogger(__name__)
    for task, scores in results.items():
        if not isinstance(scores, Mapping):
            logger.info(f"copypaste: {task}={scores}")
            continue
        overall = {metric: value for metric, value in scores.items() if "-" not in metric}
        logger.info(f"copypaste: Task: {task}")
        logger.info("copypaste: " + ",".join(overall))
        logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in overall.values()))


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{a: {b: value}}`` of any depth into ``{"a/b": value}``."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            for inner, number in flatten_results_dict(value).items():
                flat[f"{key}/{inner}"] = number
        else:
            flat[key] = value
    return flat
