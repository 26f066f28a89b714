"""Evaluation that skips images and videos that can't be loaded (``DATALOADER.SKIP_BROKEN``).

Broken samples have no predictions, and the scores count their objects as missed. So the scores are
always those of the whole data set, never of the readable part alone.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ovformer.d2 import DatasetEvaluator, comm, inference_on_dataset
from ovformer.data.files.json_file import write_json
from ovformer.data.samples.broken_samples import SampleError

# File beside the results: the error message of each broken sample.
BROKEN = "broken.json"

logger = logging.getLogger(__name__)


def evaluate_without_broken(
    model: nn.Module, loader: Iterable[list[dict]], evaluator: DatasetEvaluator, folder: Path
) -> dict:
    """Evaluate as ``inference_on_dataset``, but skip the samples that can't be loaded.

    Args:
        model: not wrapped in DistributedDataParallel.
        loader: batches of one sample; a sample that could not be loaded has the key "broken".
        evaluator: scores the predictions.
        folder: gets the file :data:`BROKEN` with the list of skipped samples, if there are any.

    Returns:
        The scores, and the number of skipped samples: ``{"broken": {"samples": number}}``.
    """
    skipping_model = _SkippingModel(model)
    scores = inference_on_dataset(skipping_model, loader, _SkippingEvaluator(evaluator))
    # An exchange of all processes: it comes before the others return.
    broken = [message for part in comm.gather(skipping_model.broken) for message in part]
    if not comm.is_main_process():
        return scores
    if broken:
        path = folder / BROKEN
        write_json(path, broken)
        logger.warning(
            "%d image(s) or video(s) could not be loaded and have no predictions; the scores count "
            "their objects as missed. %s names them.",
            len(broken),
            path,
        )
    return {**scores, "broken": {"samples": float(len(broken))}}


class _SkippingModel(nn.Module):
    """Returns None for a sample that can't be loaded, and keeps the message."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # inference_on_dataset restores the mode that it found: it has to be that of the real model.
        self.train(model.training)
        self.broken: list[str] = []

    def forward(self, inputs: Sequence[Mapping[str, Any]]) -> list:
        (sample,) = inputs
        try:
            # The loader marks images that it can't read. Frames of a video are read while the model
            # runs.
            if "broken" in sample:
                raise SampleError(sample["broken"])
            return self.model(inputs)
        except SampleError as error:
            logger.warning("Left out: %s", error)
            self.broken.append(str(error))
            return [None]


class _SkippingEvaluator(DatasetEvaluator):
    """Passes everything to an evaluator except samples without predictions."""

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self._evaluator = evaluator

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Sequence[Mapping], outputs: Sequence) -> None:
        if outputs != [None]:
            self._evaluator.process(inputs, outputs)

    def evaluate(self) -> dict | None:
        return self._evaluator.evaluate()
