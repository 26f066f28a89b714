"""Runs a training script as a user does, records its samples, and sends a signal at one moment.

Tests use :class:`Script`. It runs this file, ``python interrupted_run.py train_net.py ...``, also
under torchrun, with two environment variables. SAMPLES is a folder for the samples of each process.
INTERRUPT is ``MOMENT:ITERATION:SIGNAL:RANK``: the moment is "step", in the middle of an iteration,
or "save", when half of the checkpoint of that iteration is written. With the rank "group" all
processes get the signal, as by Ctrl-C. Processes that torchrun restarted get none.
"""

import io
import multiprocessing
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from ovformer import run as training_script
from ovformer.d2 import comm
from ovformer.engine.stages import STAGES
from ovformer.engine.trainer import Trainer
from support.scripts import SERVER, redirect_output

TIMEOUT = 400  # seconds, on a machine that is busy


@dataclass
class Script:
    """A training script and its command line.

    Attributes:
        words: the command line without OUTPUT_DIR.
        root: the dataset root.
        opts: words that follow OUTPUT_DIR.
    """

    words: list[str]
    root: Path
    opts: list[str]

    def command(self, output: Path, *options: str) -> list[str]:
        return [*self.words, *options, "OUTPUT_DIR", str(output), *self.opts]

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
            arguments = (self.command(output, *options), environment | ranks, output.parent / "log")
            started.append(SERVER.Process(target=run_in_group, args=arguments))
            started[-1].start()
        for process in started:
            process.join(TIMEOUT)
            process.kill()  # where it hangs; else pytest would wait for it at its end
        return started[0].exitcode

    def launched(
        self, launcher: list[str], output: Path, *options: str, interrupt: str
    ) -> subprocess.CompletedProcess:
        """Run the script as a user does."""
        return subprocess.run(
            [sys.executable, *launcher, __file__, *self.command(output, *options)],
            env={**os.environ, **self.environment(output, interrupt)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def interrupt(moment: str, iteration: int) -> None:
    """Send the signal if this is the moment."""
    wanted = os.environ.get("INTERRUPT", "")
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if not (is_first and wanted.startswith(f"{moment}:{iteration}:")):
        return
    number, rank = wanted.split(":")[2:]
    if rank == "group":
        os.killpg(0, int(number))
    elif int(rank) == comm.get_rank():
        os.kill(os.getpid(), int(number))


def record_samples(forward: Callable) -> Callable:
    """Record the images of a step before it sees them."""

    def forward_with_samples(self: Trainer, records: list[dict], *others: dict) -> dict:
        path = Path(os.environ["SAMPLES"], f"{comm.get_rank()}.txt")
        with path.open("a") as file:
            for record in records:
                name = record.get("image_id", record.get("video_id"))
                images = torch.stack(list(record["image"]))
                file.write(f"{self.iter} {name} {zlib.crc32(images.numpy().tobytes())}\n")
        interrupt("step", self.iter)
        return forward(self, records, *others)

    return forward_with_samples


def write_in_halves(save: Callable) -> Callable:
    """Write a checkpoint in two halves, with the moment between them."""

    def save_in_halves(content: object, file: BinaryIO, **options) -> object:
        if not isinstance(content, dict):  # processes send tensors to each other by it, too
            return save(content, file, **options)
        buffer = io.BytesIO()
        save(content, buffer)
        data = buffer.getvalue()
        file.write(data[: len(data) // 2])
        file.flush()
        interrupt("save", content["iteration"])
        return file.write(data[len(data) // 2 :])

    return save_in_halves


def install() -> None:
    """Install both, and write curves often, also in processes that the script starts."""
    Trainer._forward = record_samples(Trainer._forward)
    torch.save = write_in_halves(torch.save)
    training_script.WRITE_PERIOD = 2
    os.environ.setdefault("INTERRUPT", "")


def run(argv: list[str]) -> None:
    """Run the script that is named first."""
    (stage,) = (stage for stage in STAGES if stage.script == argv[0])
    training_script.main(stage, argv[1:])


def run_in_group(argv: list[str], environment: dict[str, str], log: Path) -> None:
    """Run the script in a process group of its own, with output to a file."""
    os.setpgid(0, 0)
    os.environ.update(environment)
    redirect_output(log)
    # As where no server starts processes: workers that load data are forked.
    multiprocessing.set_start_method("fork", force=True)
    install()
    run(argv)


if __name__ in ("__main__", "__mp_main__"):
    install()
if __name__ == "__main__":
    run(sys.argv[1:])
