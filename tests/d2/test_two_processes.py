"""Communication between two processes on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The findings of each process."""
    folder = tmp_path_factory.mktemp("two_processes")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.two_processes", folder],
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
