"""Starting processes, as far as one process can tell; test_whole_batch.py starts two."""

import contextlib
import os

import pytest
import torch.distributed as dist

from ovformer.d2 import comm
from ovformer.engine import launch

TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def test_one_process_needs_no_group() -> None:
    seen = []
    launch.launch(lambda *args: seen.append((args, dist.is_initialized())), (1, 2), device="cpu")
    assert seen == [((1, 2), False)]
    assert launch.count_processes(num_gpus=4, num_machines=2) == 8


@pytest.mark.parametrize("fails", [False, True])
def test_torchrun_on_the_cpu(monkeypatch, fails: bool) -> None:
    """A group of one process, which is also left after an exception."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(comm, "create_local_process_group", lambda size: seen.append(size))
    monkeypatch.setattr(launch, "_HEAD_START_SECONDS", 0)
    seen = []

    def work() -> None:
        seen.append((dist.get_backend(), os.getpid()))
        if fails:
            raise KeyError("work")

    with pytest.raises(KeyError, match="work") if fails else contextlib.nullcontext():
        launch.launch(work, (), device="cpu")
    assert seen == [1, ("gloo", os.getpid())]
    assert not dist.is_initialized()
