"""Communication between two processes on the CPU: each runs ``work`` and writes what it got."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The findings of each process."""
    folder = tmp_path_factory.mktemp("two_processes")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, folder],
        # Without this, a machine with a GPU would want one for each process.
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("word", ["passed on"] * 2),
        ("world_size", [2, 2]),
        ("local_rank", [0, 1]),
        ("is_main_process", [True, False]),
        ("all_gather", [[{"rank": 0}, {"rank": 1}]] * 2),
        ("gather", [[0, 1], []]),
        ("gather_on_1", [[], [0, 1]]),
        ("inference_sample", [[0, 1, 2], [3, 4]]),
        ("results", [{"all": [0, 1, 2, 3, 4]}, {}]),
        ("checkpoints", [["rank0.pth"]] * 2),  # only the main process saves
    ],
)
def test_each_process_gets(ranks, what, expected) -> None:
    assert [found[what] for found in ranks] == expected


def test_seed_and_training_set_are_shared(ranks) -> None:
    assert ranks[0]["seed"] == ranks[1]["seed"]
    assert {index for found in ranks for index in found["training_sample"]} == set(range(6))


def test_gradient_is_that_of_the_whole_batch(ranks) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    model(torch.arange(8.0).view(4, 2)).pow(2).mean().backward()
    expected = model.weight.grad.flatten().tolist()
    for found in ranks:
        assert found["gradient"] == pytest.approx(expected, rel=1e-6)


if __name__ == "__main__":
    launch(work, (sys.argv[1], "passed on"), device="cpu", num_gpus=2)
