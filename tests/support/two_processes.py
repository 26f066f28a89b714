"""Joins two processes by gloo, calls what processes do together, and writes what each one got.

Run by test_two_processes.py: ``python two_processes.py FOLDER``.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch

from ovformer.d2 import (
    DatasetEvaluator,
    DetectionCheckpointer,
    InferenceSampler,
    TrainingSampler,
    comm,
    create_ddp_model,
    inference_on_dataset,
)
from ovformer.engine.launch import launch


class Collected(DatasetEvaluator):
    """Gathers the outputs of all processes on the main one."""

    def reset(self) -> None:
        self.outputs = []

    def process(self, inputs: list, outputs: list) -> None:
        self.outputs += outputs

    def evaluate(self) -> dict | None:
        gathered = comm.gather(self.outputs)
        if comm.is_main_process():
            return {"all": sorted(sum(gathered, []))}
        return None


def gradient_of_both() -> list[float]:
    """The gradient of a mean over processes; each has another half of the batch."""
    torch.manual_seed(0)
    model = create_ddp_model(torch.nn.Linear(2, 1), device_ids=None)
    batch = torch.arange(8.0).view(4, 2)[comm.get_rank() * 2 :][:2]
    model(batch).pow(2).mean().backward()
    return model.module.weight.grad.flatten().tolist()


def work(folder: str, word: str) -> None:
    """Runs in each process."""
    rank = comm.get_rank()
    np.random.seed(100 + rank)
    random.seed(100 + rank)
    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), folder)
    checkpointer.save(f"rank{rank}")
    comm.synchronize()
    sampler = iter(TrainingSampler(6))
    found = {
        "word": word,
        "world_size": comm.get_world_size(),
        "local_rank": comm.get_local_rank(),
        "is_main_process": comm.is_main_process(),
        "all_gather": comm.all_gather({"rank": rank}),
        "gather": comm.gather(rank),
        "gather_on_1": comm.gather(rank, dst=1),
        "seed": comm.shared_random_seed(),
        "gradient": gradient_of_both(),
        "training_sample": [next(sampler) for _ in range(3)],
        "inference_sample": list(InferenceSampler(5)),
        "results": inference_on_dataset(
            lambda batch: batch, [[index] for index in InferenceSampler(5)], Collected()
        ),
        "checkpoints": sorted(path.name for path in Path(folder).glob("*.pth")),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    launch(work, (sys.argv[1], "passed on"), device="cpu", num_gpus=2)
