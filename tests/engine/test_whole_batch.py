"""Several processes and micro-batches have the gradient of one process with the whole batch.

With the real model, loader and losses; images have different numbers of instances.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_shapes import make_run

SCRIPT = str(Path(__file__).with_name("one_step.py"))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Case "processes:steps:norm" -> losses and gradients."""
    run = make_run(tmp_path_factory.mktemp("whole batch"))
    run.output.mkdir()
    for launcher, cases in (
        ([], ["1:queries", "1:instances", "2:queries", "4:instances"]),
        (TORCHRUN, ["1:queries", "1:instances", "2:queries"]),
    ):
        command = [sys.executable, *launcher, SCRIPT, str(run.config), str(run.output), *cases]
        subprocess.run(command, env=run.environment(), check=True, timeout=120)
    return {path.stem: torch.load(path) for path in run.output.glob("*.pth")}


@pytest.mark.parametrize(
    "case", ["2:1:queries", "2:1:instances", "1:2:queries", "1:4:instances", "2:2:queries"]
)
def test_same_gradient(results: dict[str, dict], case: str) -> None:
    parts, whole = results[case], results[f"1:1:{case.split(':')[2]}"]
    assert parts["counts"] == whole["counts"] == [0, 1, 2, 3]
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    for name, expected in whole["gradients"].items():
        difference = (parts["gradients"][name] - expected).norm() / expected.norm().clamp(min=1e-3)
        assert difference < 1e-5, name


def test_every_parameter_has_a_gradient(results: dict[str, dict]) -> None:
    gradients = results["1:1:queries"]["gradients"]
    zero = [name for name, gradient in gradients.items() if not gradient.any()]
    # Deformable attention starts with the same offsets and weights everywhere.
    assert zero == ["sem_seg_head.pixel_decoder.transformer.level_embed"]
