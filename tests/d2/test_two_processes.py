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


def test_ranks_and_sizes(ranks) -> None:
    assert [found["word"] for found in ranks] == ["passed on"] * 2
    assert [found["world_size"] for found in ranks] == [2, 2]
    assert [found["local_rank"] for found in ranks] == [0, 1]
    assert [found["is_main_process"] for found in ranks] == [True, False]


def test_gathering(ranks) -> None:
    assert [found["all_gather"] for found in ranks] == [[{"rank": 0}, {"rank": 1}]] * 2
    assert [found["gather"] for found in ranks] == [[0, 1], []]
    assert [found["gather_on_1"] for found in ranks] == [[], [0, 1]]


def test_seed_is_shared(ranks) -> None:
    assert ranks[0]["seed"] == ranks[1]["seed"]


def test_gradient_is_that_of_the_whole_batch(ranks) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    model(torch.arange(8.0).view(4, 2)).pow(2).mean().backward()
    expected = model.weight.grad.flatten().tolist()
    for found in ranks:
        assert found["gradient"] == pytest.approx(expected, rel=1e-6)


def test_samplers_share_the_data(ranks) -> None:
    training = [set(found["training_sample"]) for found in ranks]
    assert training[0] | training[1] == set(range(6))
    assert [found["inference_sample"] for found in ranks] == [[0, 1, 2], [3, 4]]


def test_results_are_on_the_main_process(ranks) -> None:
    assert [found["results"] for found in ranks] == [{"all": [0, 1, 2, 3, 4]}, {}]


def test_only_the_main_process_saves(ranks) -> None:
    assert [found["checkpoints"] for found in ranks] == [["rank0.pth"]] * 2
