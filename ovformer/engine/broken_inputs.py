"""Evaluation that goes on where an image or video can't be loaded (``DATALOADER.SKIP_BROKEN``).

What can't be loaded has no predictions. The scores count its objects as missed: they are those of
the whole data set, never of the part that is whole.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ovformer.d2 import DatasetEvaluator, comm, inference_on_dataset
from ovformer.data.files.json_file import write_json
from ovformer.data.samples.broken_samples import SampleError

# Beside the results, the messages of what has no predictions.
BROKEN = "broken.json"

logger = logging.getLogger(__name__)


def evaluate_what_loads(
    model: nn.Module, loader: Iterable[list[dict]], evaluator: DatasetEvaluator, folder: Path
) -> dict:
    """Do what ``inference_on_dataset`` does, without the samples that can't be loaded.

    Args:
        model: not wrapped.
        loader: batches of one sample, in which "broken" says that it could not be loaded.
        evaluator: scores the predictions.
        folder: where :data:`BROKEN` goes, the list of what was left out; if that is nothing, none.

    Returns:
        The scores, and how many samples were left out: ``{"broken": {"samples": number}}``.
    """
    careful = _CarefulModel(model)
    scores = inference_on_dataset(careful, loader, _OfWhatLoads(evaluator))
    broken = [message for part in comm.gather(careful.broken) for message in part]
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


class _CarefulModel(nn.Module):
    """Returns None for a sample that can't be loaded, and keeps the message."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self.broken: list[str] = []

    def forward(self, inputs: Sequence[Mapping[str, Any]]) -> list:
        """Return the predictions for a batch of one sample."""
        (sample,) = inputs
        try:
            if "broken" in sample:
                raise SampleError(sample["broken"])
            return self.model(inputs)
        except SampleError as error:
            logger.warning("Left out: %s", error)
            self.broken.append(str(error))
            return [None]


class _OfWhatLoads(DatasetEvaluator):
    """Keeps from an evaluator what has no predictions."""

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self._evaluator = evaluator

    def reset(self) -> None:
        """Reset the evaluator."""
        self._evaluator.reset()

    def process(self, inputs: Sequence[Mapping], outputs: Sequence) -> None:
        """Give it a batch, but for what could not be loaded."""
        if outputs != [None]:
            self._evaluator.process(inputs, outputs)

    def evaluate(self) -> dict | None:
        """Return its scores."""
        return self._evaluator.evaluate()
