"""A training that a signal ended resumes exactly: the same weights, curves and samples.

The real scripts on tiny data; the moments of the signals are those of interrupted_run.py.
"""

import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovformer.engine.stages import CLIPS
from support.interrupted_run import Script
from support.small_training import read_curves
from support.tiny_runs import make_run

pytestmark = pytest.mark.slow
OPTS = ["SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]
OPTS += ["DATALOADER.NUM_WORKERS", "1", "SOLVER.DETERMINISTIC", "True", "SOLVER.IMS_PER_BATCH", "4"]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Script]:
    """The image stage and the clip stage."""
    image = make_run(tmp_path_factory.mktemp("image"))
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("clip")
        patch.setenv("DETECTRON2_DATASETS", str(folder / "data sets"))
        clip = make_run(folder, CLIPS)
    words = ["train_net.py", "--config-file", str(image.config)]
    return {
        "image": Script(words, image.root, OPTS),
        "image, no workers": Script(words, image.root, [*OPTS, "DATALOADER.NUM_WORKERS", "0"]),
        "clip": Script(
            ["train_net_lvvis.py", "--config-file", str(clip.config)], clip.data.root, OPTS
        ),
    }


def samples(output: Path) -> dict[tuple[str, int], list[str]]:
    """The augmented images of each process and iteration.

    An iteration that was started twice has to see the same images.
    """
    seen = defaultdict(list)
    for path in output.with_name(f"{output.name} samples").iterdir():
        for line in path.read_text().splitlines():
            iteration, sample = line.split(" ", 1)
            if sample not in seen[path.stem, int(iteration)]:
                seen[path.stem, int(iteration)].append(sample)
    return dict(seen)


@pytest.fixture(scope="module")
def uninterrupted(
    trainings: dict[str, Script], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """From a stage and a number of processes to the output folder of a training."""
    outputs: dict[tuple[str, int], Path] = {}

    def output_of(stage: str, processes: int) -> Path:
        if (stage, processes) not in outputs:
            output = tmp_path_factory.mktemp("uninterrupted") / "output"
            assert trainings[stage].here(output, processes=processes) == 0
            outputs[stage, processes] = output
        return outputs[stage, processes]

    return output_of


def read_final(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def check_same(output: Path, expected: Path) -> None:
    """Check that a resumed training ended as another one."""
    torch.testing.assert_close(read_final(output), read_final(expected), rtol=0, atol=0)
    assert read_curves(output) == read_curves(expected)
    assert [line["iteration"] for line in read_curves(output)] == [1, 3, 4]
    assert samples(output) == samples(expected)
    assert not list(output.glob("*.tmp"))


def check_whole(output: Path, name: str) -> None:
    """Check which checkpoint the training will resume from."""
    assert (output / "last_checkpoint").read_text() == name
    assert torch.load(output / name, weights_only=True)["iteration"] == int(name[6:13])


# Moment, iteration, signal and process; exit status; the checkpoint that is left.
CASES = {
    "Ctrl-C in a step": ("step:2:2:group", 130, "model_0000002.pth"),
    "SIGTERM in a step": ("step:2:15:0", 143, "model_0000002.pth"),
    "SIGTERM while saving": ("save:1:15:group", 143, "model_0000002.pth"),
    "kill in a step": ("step:3:9:0", -9, "model_0000001.pth"),
    "kill while saving": ("save:3:9:0", -9, "model_0000001.pth"),
}


@pytest.mark.parametrize("stage", ["image", "clip"])
@pytest.mark.parametrize("case", CASES)
def test_one_process(
    trainings: dict[str, Script],
    uninterrupted: Callable[[str, int], Path],
    tmp_path: Path,
    stage: str,
    case: str,
) -> None:
    interrupt, status, name = CASES[case]
    output = tmp_path / "output"
    assert trainings[stage].here(output, interrupt=interrupt) == status
    check_whole(output, name)
    assert bool(list(output.glob("*.tmp"))) == (case == "kill while saving")
    if status > 0:
        number = signal.Signals(status - 128).name
        log = (output / "log.txt").read_text()
        assert f"{number}: stopped after 3 of 5 iterations" in log and "with --resume" in log
    assert trainings[stage].here(output, "--resume") == 0
    check_same(output, uninterrupted(stage, 1))


SPAWN = ([], ["--num-gpus", "2"])
TORCHRUN = (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], [])


@pytest.mark.parametrize(
    ("stage", "launcher", "interrupt", "status", "name"),
    [
        ("image", SPAWN, "step:2:15:1", 143, "model_0000002.pth"),
        ("clip", SPAWN, "save:1:15:0", 143, "model_0000002.pth"),
        ("clip", SPAWN, "save:3:9:0", 1, "model_0000001.pth"),
        ("clip", TORCHRUN, "step:2:2:group", 1, "model_0000002.pth"),
        ("image", TORCHRUN, "step:3:9:1", 1, "model_0000001.pth"),
    ],
)
def test_two_processes(
    trainings: dict[str, Script],
    uninterrupted: Callable[[str, int], Path],
    tmp_path: Path,
    stage: str,
    launcher: tuple[list[str], list[str]],
    interrupt: str,
    status: int,
    name: str,
) -> None:
    """torchrun's own status is 1 in any case."""
    output = tmp_path / "output"
    words, options = launcher
    process = trainings[stage].launched(words, output, *options, interrupt=interrupt)
    assert process.returncode == status, process.stderr
    check_whole(output, name)
    assert trainings[stage].here(output, "--resume", processes=2) == 0
    check_same(output, uninterrupted(stage, 2))


def test_four_processes(
    trainings: dict[str, Script], uninterrupted: Callable[[str, int], Path], tmp_path: Path
) -> None:
    """Equal to rounding: in which order more than two gradients are added depends on their packets.

    DistributedDataParallel packs them again after the first iteration, also of a resumed training.
    """
    output = tmp_path / "output"
    interrupt, status, name = CASES["SIGTERM in a step"]
    stage, processes = "image, no workers", 4
    assert trainings[stage].here(output, interrupt=interrupt, processes=processes) == status
    check_whole(output, name)
    assert trainings[stage].here(output, "--resume", processes=processes) == 0
    unbroken = uninterrupted(stage, processes)
    states = [read_final(folder) for folder in (output, unbroken)]
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)
    assert samples(output) == samples(unbroken)


def test_torchrun_starts_a_killed_process_again(
    trainings: dict[str, Script], uninterrupted: Callable[[str, int], Path], tmp_path: Path
) -> None:
    """It resumes from the last checkpoint, and ends as if nothing had happened."""
    output = tmp_path / "output"
    words = [*TORCHRUN[0], "--max-restarts", "2"]
    process = trainings["image"].launched(words, output, "--resume", interrupt="step:3:9:1")
    assert process.returncode == 0, process.stderr
    assert "Resuming: 2 iterations are done" in (output / "log.txt").read_text()
    check_same(output, uninterrupted("image", 2))
