"""Runs a training script in a process that is killed, or whose reads fail, at a given moment.

A file outside of the run's folder lists what the run has finished, so that losses are found
afterwards. Moments are counted in two ways: by processor time, and by events of the folder's files:
opened for writing, synced, renamed, removed.
"""

import errno
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovformer import run as training_script
from ovformer.engine.checkpoint import Checkpointer
from ovformer.engine.metrics import MetricsWriter
from ovformer.engine.stages import STAGES
from ovformer.evaluation.results_writer import ResultsWriter
from support.scripts import redirect_output

_PICTURES = (".png", ".jpg")


class Witness:
    """Writes finished work to a file, in a way that a kill can't undo."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def watch(self) -> None:
        """Note checkpoints, lines of metrics.json and videos."""

        def save(checkpointer: Checkpointer, name: str, **extra: Any) -> None:
            original_save(checkpointer, name, **extra)
            self.note("checkpoint", name, extra["iteration"])

        def after_step(writer: MetricsWriter) -> None:
            original_step(writer)
            if writer._last_write == writer.trainer.iter:
                self.note("line", writer.trainer.iter)

        def add(writer: ResultsWriter, video_id: int, results: list[dict]) -> None:
            original_add(writer, video_id, results)
            self.note("video", video_id)

        original_save, Checkpointer.save = Checkpointer.save, save
        original_step, MetricsWriter.after_step = MetricsWriter.after_step, after_step
        original_add, ResultsWriter.add = ResultsWriter.add, add


class FileEvents:
    """Counts events of the files of a folder, and kills the process at one of them.

    A kill in the middle of writing happens at a sync: the file is cut at a random place after the
    bytes that had been synced before.

    Args:
        folder: the folder.
        kill_at: number of the event, from 1, or None.
        seed: for the places where files are cut.
    """

    def __init__(self, folder: Path, kill_at: int | None, seed: int) -> None:
        self.count = 0
        self._folder = str(folder)
        self._kill_at = kill_at
        self._random = random.Random(seed)
        self._synced: dict[int, int] = {}  # inode: bytes
        self._sync, os.fsync = os.fsync, self._fsync
        sys.addaudithook(self._audit)

    def _event(self, before_kill: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        if self.count == self._kill_at:
            before_kill()
            os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event: str, args: tuple) -> None:
        is_write = event == "open" and isinstance(args[1], str) and args[1][:1] in "wax"
        if is_write or event in ("os.rename", "os.remove", "os.mkdir"):
            if str(args[0]).startswith(self._folder):
                self._event()

    def _fsync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if os.readlink(f"/proc/self/fd/{number}").startswith(self._folder):
            found = os.fstat(number)
            before = self._synced.get(found.st_ino, 0)

            def cut() -> None:
                size = self._random.randint(min(before, found.st_size), found.st_size)
                path = os.readlink(f"/proc/self/fd/{number}")
                if os.path.isfile(path):
                    os.truncate(path, size)

            self._event(cut)
            self._sync(descriptor)
            self._synced[found.st_ino] = found.st_size
            self._event()
        else:
            self._sync(descriptor)


def kill_after(processor_seconds: float) -> None:
    """Kill this process after that much more processor time."""
    end = time.process_time() + processor_seconds

    def watch() -> None:
        while time.process_time() < end:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def fail_reading(suffixes: tuple[str, ...], number: int, witness: Witness) -> None:
    """Make the ``number``-th file that is opened for reading unreadable from then on."""
    left, broken = [number], []

    def audit(event: str, args: tuple) -> None:
        if event != "open" or not str(args[0]).endswith(suffixes):
            return
        if isinstance(args[1], str) and args[1][:1] in "wax":
            return
        left[0] -= 1
        if left[0] == 0:
            broken.append(args[0])
            witness.note("unreadable", args[0])
        if args[0] in broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), args[0])

    sys.addaudithook(audit)


def run(argv: list[str], output: Path, root: Path, log: Path, fault: dict[str, Any]) -> None:
    """Run a training script with a fault, in a process of its own.

    Args:
        argv: the script's name and its command line.
        output: its OUTPUT_DIR.
        root: the dataset root.
        log: file for what the script prints.
        fault: "seconds" (of processor time) or "event" to be killed at; "read", the number of the
            picture, or "checkpoint", that of the checkpoint, that can't be read; "seed".
    """
    log.unlink(missing_ok=True)
    redirect_output(log)
    os.environ["DETECTRON2_DATASETS"] = str(root)
    training_script.WRITE_PERIOD = 2
    witness = Witness(output.with_name(f"{output.name} witness"))
    witness.watch()
    events = FileEvents(output, fault.get("event"), fault.get("seed", 0))
    if "read" in fault:
        fail_reading(_PICTURES, fault["read"], witness)
    if "checkpoint" in fault:
        fail_reading((".pth",), fault["checkpoint"], witness)
    begin = time.process_time()
    if "seconds" in fault:
        kill_after(fault["seconds"])
    (stage,) = (stage for stage in STAGES if stage.script == argv[0])
    training_script.main(stage, argv[1:])
    witness.note("events", events.count)
    witness.note("seconds", time.process_time() - begin)
