"""Evaluators and the loop that feeds them."""

import pytest
import torch
from torch import nn

from ovformer.d2 import DatasetEvaluator, inference_on_dataset, print_csv_format


class Model(nn.Module):
    """Doubles its input and checks the mode it is run in."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: list[float]) -> list[float]:
        assert not self.training
        assert not torch.is_grad_enabled()
        return [float(value * self.factor) for value in batch]


class Sum(DatasetEvaluator):
    """Adds up the outputs."""

    def reset(self) -> None:
        self.total = 0.0

    def process(self, inputs: list[float], outputs: list[float]) -> None:
        assert len(inputs) == len(outputs)
        self.total += sum(outputs)

    def evaluate(self) -> dict:
        return {"sum": {"value": self.total}}


@pytest.mark.parametrize("training", [True, False])
def test_all_batches_are_scored_and_the_mode_comes_back(training) -> None:
    model = Model().train(training)
    results = inference_on_dataset(model, [[1.0], [2.0, 3.0], [4.0]], Sum())
    assert results == {"sum": {"value": 20.0}}
    assert model.training is training


def test_no_evaluator_and_no_batches() -> None:
    assert inference_on_dataset(lambda batch: batch, [[1.0]], None) == {}
    assert inference_on_dataset(lambda batch: batch, [], Sum()) == {"sum": {"value": 0.0}}


def test_callbacks_and_summary(lines) -> None:
    calls = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: lambda name=name: calls.append(name) for name in names}
    inference_on_dataset(lambda batch: batch, [[1.0]] * 12, Sum(), callbacks)
    assert calls == ["on_start", *["before_inference", "after_inference"] * 12, "on_end"]
    # A progress line comes at most every few seconds, so there may be none.
    found = [line for line in lines() if not line.startswith("Inference done")]
    assert found[0] == "Start inference on 12 batches"
    assert found[1].startswith("Total inference time: 0:00:00")
    assert found[1].endswith(" s / iter per device, on 1 devices)")
    assert found[2].startswith("Total inference pure compute time: 0:00:00 (0.0")


def test_results_are_printed_for_a_spreadsheet(lines) -> None:
    print_csv_format({"segm": {"AP": 12.34567, "AP50": 20.0, "AP-red circle": 1.0}, "speed": 3})
    texts = ["Task: segm", "AP,AP50", "12.3457,20.0000", "speed=3"]
    assert lines() == [f"copypaste: {text}" for text in texts]
