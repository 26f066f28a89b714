"""Starts the real training scripts on tiny data, in several processes, with interrupted_run.py."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support import interrupted_run
from support.script_server import SERVER

SCRIPT = interrupted_run.__file__
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
            process = SERVER.Process(
                target=interrupted_run.run_in_group,
                args=(self.command(output, *options), environment | ranks, output.parent / "log"),
            )
            process.start()
            started.append(process)
        for process in started:
            process.join(TIMEOUT)
            process.kill()  # where it hangs; else pytest would wait for it at its end
        return started[0].exitcode

    def launched(
        self, launcher: list[str], output: Path, *options: str, interrupt: str
    ) -> subprocess.CompletedProcess:
        """Run the script as a user does."""
        return subprocess.run(
            [sys.executable, *launcher, SCRIPT, *self.command(output, *options)],
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
