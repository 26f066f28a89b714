"""``python -m ovformer.ops`` lists the kernels and fails if one is wrong."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from ovformer.ops import __main__ as report
from ovformer.ops import ms_deform_attn_torch, self_test
from ovformer.ops.ms_deform_attn import KERNELS


def test_the_command_lists_all_kernels_and_tests_the_usable_ones() -> None:
    environment = {**os.environ, "OVFORMER_MSDA": "torch"}
    line = [sys.executable, "-m", "ovformer.ops"]
    run = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    cpu = run.stdout.split("\ncpu:\n")[1].split("\ncuda:\n")[0]
    state, results = cpu.split("Self-test")
    assert "OVFORMER_MSDA=torch" in run.stdout and "on cpu: torch kernel (OVFORMER_MSDA)" in state
    states = [text.split() for text in state.splitlines() if text.startswith("  ")]
    assert [words[0] for words in states] == list(KERNELS)
    usable = [words[0] for words in states if words[1] == "usable"]
    assert [text.split()[0] for text in results.splitlines()[2:]] == usable
    assert "torch" in usable and "WRONG" not in results


@pytest.fixture
def run_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """A function that runs the command for some kernels, where it fails; returns its output."""

    def run(*kernels: str) -> str:
        monkeypatch.setattr(report, "KERNELS", dict.fromkeys(kernels))
        with pytest.raises(SystemExit) as end:
            report.main()
        assert end.value.code == 1
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("wrong", ["forward", "backward"])
def test_a_wrong_kernel_fails_the_self_test(wrong, monkeypatch, run_report) -> None:
    right = getattr(ms_deform_attn_torch, wrong)

    def slightly_off(*inputs):
        result = right(*inputs)
        if inputs[-1].dtype == torch.float64:  # what others are compared with stays right
            return result
        return result * 1.0001 if wrong == "forward" else (*result[:2], result[2] * float("nan"))

    monkeypatch.setattr(ms_deform_attn_torch, wrong, slightly_off)
    monkeypatch.setattr(self_test, "time_call", lambda function, device: 0.0)
    assert "WRONG" in run_report("torch")


def test_a_kernel_that_does_not_exist_fails_the_command(monkeypatch, run_report) -> None:
    monkeypatch.setenv("OVFORMER_MSDA", "fast")
    assert "'fast'" in run_report()
