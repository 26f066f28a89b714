"""Work of several processes of which one fails: ``torchrun failing_work.py HOW RANK OTHERS``.

The others wait for it, in all_reduce, or are busy for minutes. Without torchrun the number of
processes comes last.
"""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from ovformer.d2 import comm
from ovformer.engine.launch import launch


def work(how: str, rank: int, others: str) -> None:
    """Fail, or do what the others do.

    Args:
        how: "error" or "kill".
        rank: of the process that fails.
        others: "wait" for it, or be "busy".
    """
    for step in range(1000):
        if step == 3 and comm.get_rank() == rank:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(f"the failure of process {rank}")
        if step == 3 and others == "busy":
            time.sleep(300)
        dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    how, rank, others, *launched = sys.argv[1:]
    launch(work, (how, int(rank), others), device="cpu", num_gpus=int((launched or [1])[0]))
