"""The built-in subset where it is stricter than detectron2; runs on both back-ends."""

import io
import os
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from ovformer.d2 import get_cfg
from ovformer.d2.builtin import evaluation, events
from ovformer.d2.builtin.checkpoint import DetectionCheckpointer
from ovformer.d2.builtin.logger import setup_logger
from ovformer.d2.builtin.solver import LRMultiplier, build_lr_scheduler


class RunsCode:
    """A pickle of this runs a command when it is read."""

    def __reduce__(self) -> tuple:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RunsCode(), r"weights\.pkl.*system"),
        ({"model": RunsCode(), "__author__": "x"}, r"weights\.pkl.*system"),
        ({"blobs": {"conv1_w": np.ones(1)}}, r"weights\.pkl.*'model'"),
    ],
)
def test_pickle_with_code_or_of_another_layout_is_refused(tmp_path, content, message) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(path))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_weights_are_read_in_every_protocol(tmp_path, protocol) -> None:
    entries = {
        "weight": np.full((1, 2), 3.0, np.float32),
        "bias": torch.tensor([4.0]),
        "scale": nn.Parameter(torch.tensor([5.0])),
    }
    content = {"model": entries, "__author__": "x", "iteration": np.float64(7)}
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    model = nn.Linear(2, 1)
    model.scale = nn.Parameter(torch.zeros(1))
    rest = DetectionCheckpointer(model).load(str(path))
    assert model.weight.tolist() == [[3.0, 3.0]]
    assert (model.bias.item(), model.scale.item(), rest["iteration"]) == (4.0, 5.0, 7.0)


def test_wrong_schedules_are_errors() -> None:
    cfg = get_cfg()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(optimizer, lambda where: 1.0, 10)
    cfg.SOLVER.WARMUP_METHOD = "sudden"
    with pytest.raises(ValueError, match="SOLVER.WARMUP_METHOD.*'sudden'.*linear, constant"):
        build_lr_scheduler(cfg, optimizer)
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.BASE_LR_END = "WarmupCosineLR", 1.0
    with pytest.raises(ValueError, match="SOLVER.BASE_LR_END"):
        build_lr_scheduler(cfg, optimizer)


def test_progress_of_inference(lines) -> None:
    evaluation.inference_on_dataset(lambda batch: batch, [[1.0]] * 12, None)
    (progress,) = [line for line in lines() if "Inference done" in line]
    assert progress.startswith("Inference done 11/12. Dataloading: 0.0")
    assert " Eval: 0.0" in progress and progress.endswith(" s/iter. ETA=0:00:00")


def test_mode_and_name_scope_come_back_after_an_error() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(TypeError):
        evaluation.inference_on_dataset(model, ["no tensor"], None)
    assert model.training
    with events.EventStorage() as storage:
        with pytest.raises(KeyError), storage.name_scope("scope"):
            raise KeyError
        storage.put_scalar("a", 1.0)
    assert list(storage.latest()) == ["a"]


class Terminal(io.StringIO):
    """A console that can show colours."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("console", "has_color"), [(Terminal, True), (io.StringIO, False)])
def test_colour_only_on_a_terminal(monkeypatch, console, has_color) -> None:
    painted = "ovformer.d2.builtin.logger.colored"
    monkeypatch.setattr(painted, lambda text, color, attrs=None: f"<{color}>{text}")
    stream = console()
    monkeypatch.setattr("sys.stdout", stream)
    setup_logger(name="d2_test_colour").warning("line")
    assert re.sub(r"\[.*\]", "[]", stream.getvalue()) == (
        "<red>WARNING <green>[]: line\n" if has_color else "WARNING []: line\n"
    )


def test_second_setup_follows_a_replaced_console(monkeypatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", first)
    setup_logger(name="d2_test_console")
    first.close()
    monkeypatch.setattr("sys.stdout", second)
    setup_logger(name="d2_test_console").info("line")
    assert second.getvalue().count("line") == 1
