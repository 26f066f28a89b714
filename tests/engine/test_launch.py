"""Starting processes, as far as one process can tell; test_whole_batch.py starts two."""

import argparse
import os
import pickle

import pytest
import torch.distributed as dist

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import comm
from ovformer.engine import launch
from ovformer.engine.stages import STAGES

TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


def test_what_is_sent_to_other_processes_can_be_sent() -> None:
    cfg, args = get_ovformer_cfg(None, ["SEED", 5]), argparse.Namespace(resume=True)
    sent = pickle.loads(pickle.dumps((cfg, STAGES, args)))
    assert sent == (cfg, STAGES, args)
    assert sent[0].is_frozen()


def test_world_size(monkeypatch) -> None:
    assert not launch.is_torchrun()
    assert launch.world_size(4, 2) == 8
    for name, value in {**TORCHRUN, "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert launch.is_torchrun()
    assert launch.world_size(1, 1) == 3


def test_without_torchrun_one_process_needs_no_group() -> None:
    seen = []
    launch.launch(lambda *args: seen.append((args, dist.is_initialized())), (1, 2), device="cpu")
    assert seen == [((1, 2), False)]


@pytest.mark.parametrize("fails", [False, True])
def test_torchrun_on_the_cpu(monkeypatch, fails: bool) -> None:
    """A group of one process, which is also left after an exception."""
    for name, value in {**TORCHRUN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(comm, "create_local_process_group", lambda size: seen.append(size))
    monkeypatch.setattr(launch, "_HEAD_START_SECONDS", 0)
    seen = []

    def work() -> None:
        seen.append((dist.get_backend(), os.getpid()))
        if fails:
            raise KeyError("work")

    if fails:
        with pytest.raises(KeyError, match="work"):
            launch.launch(work, (), device="cpu")
    else:
        launch.launch(work, (), device="cpu")
    assert seen == [1, ("gloo", os.getpid())]
    assert not dist.is_initialized()
