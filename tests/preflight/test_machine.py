"""Room for checkpoints, processes and their devices."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_model
from ovformer.engine.checkpoint import Checkpointer
from ovformer.engine.optimizer import build_optimizer
from ovformer.preflight.machine import (
    count_checkpoints,
    estimate_checkpoint_bytes,
    find_output_warnings,
    find_process_errors,
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
    assert estimate_checkpoint_bytes(build_without_memory(cfg), optimizer) == pytest.approx(
        size, rel=0.15
    )


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
    assert count_checkpoints(get_ovformer_cfg(None, values), resume) == count


def test_a_damaged_name_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    """With --allow-older, a training continues from a whole checkpoint."""
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    cfg = get_ovformer_cfg(None, ["SOLVER.MAX_ITER", 100, "OUTPUT_DIR", str(tmp_path)])
    assert count_checkpoints(cfg, True) == 1
    assert "checkpoints of another training" in next(find_output_warnings(cfg, False))


@pytest.mark.parametrize(
    ("device", "num_gpus", "found", "start", "words"),
    [
        ("cuda", 1, 0, "MODEL.DEVICE: cuda, ", ["but no GPU found", "MODEL.DEVICE cpu"]),
        ("cuda", 4, 0, "--num-gpus 4, ", ["but 0 found", "MODEL.DEVICE cpu"]),
        ("cuda", 4, 2, "--num-gpus 4, ", ["but 2 found", "MODEL.DEVICE cpu"]),
        ("cuda:1", 2, 2, "MODEL.DEVICE: cuda:1 with --num-gpus 2: ", ["use cuda"]),
        ("cuda:2", 1, 2, "MODEL.DEVICE: cuda:2, ", ["but 2 found"]),
    ],
)
def test_missing_devices(
    monkeypatch, device: str, num_gpus: int, found: int, start: str, words: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    cfg = get_ovformer_cfg(None, ["MODEL.DEVICE", device])
    (error,) = find_process_errors(cfg, Namespace(num_gpus=num_gpus, num_machines=1))
    assert error.startswith(start) and all(word in error for word in words)


@pytest.mark.parametrize(("device", "num_gpus"), [("cuda:1", 1), ("cuda", 2), ("cpu", 8)])
def test_devices_that_exist(monkeypatch, device: str, num_gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = get_ovformer_cfg(None, ["MODEL.DEVICE", device])
    args = Namespace(num_gpus=num_gpus, num_machines=1, dist_url="auto")
    assert not list(find_process_errors(cfg, args))


def test_several_machines_and_torchrun(monkeypatch) -> None:
    cfg = get_ovformer_cfg(None, ["MODEL.DEVICE", "cpu"])
    machines = Namespace(num_gpus=1, num_machines=2, machine_rank=2, dist_url="auto")
    rank, url = find_process_errors(cfg, machines)
    assert rank.startswith("--machine-rank: expected 0 to 1 ") and "got 2" in rank
    assert url.startswith("--dist-url auto: ") and "tcp://HOST:PORT" in url
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    (error,) = find_process_errors(cfg, Namespace(num_gpus=4, num_machines=1))
    assert error.startswith("--num-gpus 4: ") and "--nproc-per-node 4" in error
