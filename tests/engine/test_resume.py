"""A training that a signal ended goes on as if nothing had happened: weights, curves, samples.

The real scripts on tiny data; the moments of the signals are those of interrupted_run.py.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import interrupted_run
import pytest
import tiny_shapes
import tiny_videos
import torch

from ovformer.engine.stages import CLIP

pytestmark = pytest.mark.slow
SCRIPT = interrupted_run.__file__
OPTS = ["SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]
OPTS += ["DATALOADER.NUM_WORKERS", "1", "SOLVER.DETERMINISTIC", "True"]

TIMEOUT = 400  # seconds, on a machine that is busy

# Processes start fast from one that has imported everything and never runs a model.
SERVER = multiprocessing.get_context("forkserver")
# Not modules of the tests: until Python 3.14 it does not look for them where this process does.
SERVER.set_forkserver_preload(["ovformer.engine.cli", "ovformer.engine.stages"])


@dataclass
class Training:
    """The command line of a script without its OUTPUT_DIR."""

    words: list[str]
    root: Path

    def command(self, output: Path, *options: str) -> list[str]:
        return [*self.words, *options, "OUTPUT_DIR", str(output), *OPTS]

    def environment(self, output: Path, interrupt: str) -> dict[str, str]:
        samples = output.with_name(f"{output.name} samples")
        samples.mkdir(exist_ok=True)
        return {
            "DETECTRON2_DATASETS": str(self.root),
            "OMP_NUM_THREADS": "1",
            "SAMPLES": str(samples),
            "INTERRUPT": interrupt,
        }

    def here(self, output: Path, *options: str, interrupt: str = "", processes: int = 1) -> int:
        """Run the script in processes of the server and return the status of the first one."""
        environment = self.environment(output, interrupt)
        if processes > 1:  # what torchrun does
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        started = []
        for rank in range(processes):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            process = SERVER.Process(
                target=interrupted_run.run_in_group,
                args=(self.command(output, *options), environment | ranks, output.parent / "log"),
            )
            process.start()
            started.append(process)
        for process in started:
            process.join(TIMEOUT)
        return started[0].exitcode

    def launched(
        self, launcher: list[str], output: Path, *options: str, interrupt: str
    ) -> subprocess.CompletedProcess:
        """Run the script as a user does."""
        path = [str(tiny_shapes.ROOT), str(Path(SCRIPT).parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, **self.environment(output, interrupt)}
        return subprocess.run(
            [sys.executable, *launcher, SCRIPT, *self.command(output, *options)],
            env={**environment, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Training]:
    """The image stage and the clip stage."""
    image = tiny_shapes.make_run(tmp_path_factory.mktemp("image"))
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("clip")
        patch.setenv("DETECTRON2_DATASETS", str(folder / "data sets"))
        clip = tiny_videos.make_run(folder, CLIP)
    return {
        "image": Training(["train_net.py", "--config-file", str(image.config)], image.root),
        "clip": Training(["train_net_lvvis.py", "--config-file", str(clip.config)], clip.data.root),
    }


def curves(output: Path) -> list[dict]:
    """The lines of metrics.json without what differs from run to run."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    differ = ("time", "data_time", "eta_seconds", "[metric]max_rss_mb")
    return [{k: v for k, v in line.items() if k not in differ} for line in lines]


def samples(output: Path) -> dict[tuple[str, int], list[str]]:
    """Of each process and iteration the images, with their augmentation.

    An iteration that was begun twice has to have seen the same ones.
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
    trainings: dict[str, Training], tmp_path_factory: pytest.TempPathFactory
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


def check_same(output: Path, expected: Path) -> None:
    """Check that a training that was resumed ended as another one."""
    weights = [torch.load(x / "model_final.pth", weights_only=True) for x in (output, expected)]
    for name, value in weights[1]["model"].items():
        assert torch.equal(weights[0]["model"][name], value), name
    assert curves(output) == curves(expected)
    assert [line["iteration"] for line in curves(output)] == [1, 3, 4]
    assert samples(output) == samples(expected)
    assert not list(output.glob("*.tmp"))


def check_whole(output: Path, name: str) -> None:
    """Check which checkpoint the training will go on from."""
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
    trainings: dict[str, Training],
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
        line = f"{number}: stopped after 3 of 5 iterations, which are saved in {output}. To go on: "
        assert f"{line}the same command with --resume." in (output / "log.txt").read_text()
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
    ids=[
        "SIGTERM for one",
        "SIGTERM for one while saving",
        "kill while saving",
        "Ctrl-C under torchrun",
        "kill under torchrun",
    ],
)
def test_two_processes(
    trainings: dict[str, Training],
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
