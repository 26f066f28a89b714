"""A process that loads data and is killed ends the run with its error, and not with a hang."""

import os
import signal
import time

import pytest
import torch

from ovformer.data.samples.image_mapper import ImageMapper
from support.tiny_runs import TinyRun


@pytest.mark.parametrize("option", [[], ["--eval-only"]], ids=["training", "evaluation"])
def test_a_killed_worker(tiny_run: TinyRun, monkeypatch, option: list[str]) -> None:
    """Killed at image 3, as by the system when memory runs out."""
    load = ImageMapper.__call__

    def load_or_die(self: ImageMapper, record: dict) -> dict:
        if record["image_id"] == 3 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, record)

    monkeypatch.setattr(ImageMapper, "__call__", load_or_die)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*(killed by signal|exited)"):
        tiny_run.here(*option, "DATALOADER.NUM_WORKERS", "2")
    assert time.monotonic() - begin < 60
