"""Stopping by a signal: SIGINT (Ctrl-C), or SIGTERM, which clusters send to end a job.

A training finishes its iteration, or breaks off its evaluation, saves everything and ends; all else
ends at once. The exit status is 128 + the signal's number, as shells report it.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ovformer.d2 import HookBase, comm

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal and a launcher may send the same request: signals within this many seconds are one.
_ONE_REQUEST = 2.0


class Interrupted(SystemExit):
    """The program ends because of a signal.

    Args:
        number: of the signal.
        progress: how far the work got, as the end of a sentence.

    Attributes:
        message: a sentence for the log.
    """

    def __init__(self, number: int, progress: str = "") -> None:
        super().__init__(128 + number)
        self.message = f"{signal.Signals(number).name}: stopped{progress}."


class Interruption:
    """A context manager that handles signals in the main thread.

    A signal raises :class:`Interrupted` at once; in a :meth:`delayed` block it is only noted. A
    second signal ends the process immediately.

    Attributes:
        signal: number of the signal that was received, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = math.inf
        self._is_delayed = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # others can't have handlers
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Only note a signal during the block, and raise Interrupted at its end."""
        with self._set_delayed(True):
            yield
        self._raise_if_requested()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside a ``delayed`` block: let a signal end this part at once, also an earlier one."""
        with self._set_delayed(False):
            self._raise_if_requested()
            yield

    @contextmanager
    def _set_delayed(self, is_delayed: bool) -> Iterator[None]:
        before = self._is_delayed
        self._is_delayed = is_delayed
        try:
            yield
        finally:
            self._is_delayed = before

    def _raise_if_requested(self) -> None:
        if self.signal is not None:
            raise Interrupted(self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
            if not self._is_delayed:
                raise Interrupted(number)
            # No logger or stream: the signal may have come while one was writing.
            name = signal.Signals(number).name
            with suppress(OSError):  # the terminal may be gone
                os.write(2, f"{name}: stopping after this iteration; again: at once\n".encode())
        elif time.monotonic() - self._since > _ONE_REQUEST:
            # No exception: what handles it could take as long as what the user waits for.
            os._exit(128 + number)


class StopWhenInterrupted(HookBase):
    """Ends a training after an iteration in which any of its processes got a signal.

    Register it after the hook that saves, and before those that take long.
    """

    def after_step(self) -> None:
        """Raise Interrupted in all processes if any of them got a signal."""
        trainer = self.trainer
        if not trainer.is_interrupted:
            return
        # The exchange also waits for the process that saves.
        received = comm.all_gather(trainer.interruption.signal or 0)
        trainer.interruption.signal = trainer.interruption.signal or max(received)
        raise Interrupted(
            trainer.interruption.signal,
            f" after {trainer.iter + 1} of {trainer.max_iter} iterations, which are saved in "
            f"{trainer.checkpointer.save_dir}",
        )
