"""Room for checkpoints: how large they are, and how many there will be."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_model
from ovformer.engine.checkpoint import Checkpointer
from ovformer.engine.optimizer import build_optimizer
from ovformer.preflight.machine import (
    checkpoint_bytes,
    existing_folder,
    num_checkpoints,
    output_warnings,
    process_errors,
)
from ovformer.preflight.model import build_without_memory
from support.tiny_runs import TinyRun


@pytest.mark.parametrize("optimizer", ["ADAMW", "SGD"])
def test_the_size_is_that_of_a_checkpoint(tiny_run: TinyRun, optimizer: str) -> None:
    sizes = ["MODEL.SEM_SEG_HEAD.MASK_DIM", "256", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "2048"]
    cfg = get_ovformer_cfg(str(tiny_run.config), [*sizes, "SOLVER.OPTIMIZER", optimizer])
    model = build_model(cfg)
    steps = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    steps.step()
    Checkpointer(model, str(tiny_run.root), optimizer=steps).save("model")
    size = (tiny_run.root / "model.pth").stat().st_size
    # The rest is names, which do not grow with the model.
    assert checkpoint_bytes(build_without_memory(cfg), optimizer) == pytest.approx(size, rel=0.15)


@pytest.mark.parametrize(
    ("last", "resume", "count"),
    [
        (None, False, 4),  # after 30, 60 and 90 iterations, and at the end
        (None, True, 4),
        ("model_0000059.pth", True, 2),
        ("model_0000059.pth", False, 4),
        ("model_final.pth", True, 4),
        ("model_0000199.pth", True, 1),
    ],
)
def test_how_many_checkpoints(tmp_path: Path, last: str | None, resume: bool, count: int) -> None:
    if last:
        (tmp_path / "last_checkpoint").write_text(last)
    values = ["SOLVER.MAX_ITER", 100, "SOLVER.CHECKPOINT_PERIOD", 30, "OUTPUT_DIR", str(tmp_path)]
    assert num_checkpoints(get_ovformer_cfg(None, values), resume) == count


def test_a_damaged_name_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    """With --allow-older, a training continues from a whole checkpoint."""
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    cfg = get_ovformer_cfg(None, ["SOLVER.MAX_ITER", 100, "OUTPUT_DIR", str(tmp_path)])
    assert num_checkpoints(cfg, True) == 1
    assert "checkpoints of another training" in next(output_warnings(cfg, False))


def test_the_folder_whose_disk_is_meant(tmp_path: Path) -> None:
    assert existing_folder(tmp_path / "a" / "b") == tmp_path
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("device", "num_gpus", "words"),
    [
        ("cuda:1", 2, "MODEL.DEVICE: cuda:1 with --num-gpus 2: use cuda"),
        ("cuda:2", 1, "MODEL.DEVICE: cuda:2, but 2 found"),
        ("cuda:1", 1, None),
        ("cuda", 2, None),
        ("cpu", 8, None),
    ],
)
def test_devices(monkeypatch, device: str, num_gpus: int, words: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = get_ovformer_cfg(None, ["MODEL.DEVICE", device])
    errors = list(process_errors(cfg, Namespace(num_gpus=num_gpus, num_machines=1)))
    assert [error.startswith(words or "?") for error in errors] == [True] * bool(words)
