"""Signals: a training finishes its iteration, saves and ends; everything else ends at once."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ovformer.d2 import hooks
from ovformer.data.loading.loaders import _init_worker
from ovformer.engine import interruption as module
from ovformer.engine.interruption import SIGNALS, Interrupted, Interruption, StopWhenInterrupted
from ovformer.engine.trainer import Trainer
from support.small_training import CallbackHook, noisy_trainer

FORK = multiprocessing.get_context("fork")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_at_once(number: int) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(Interrupted) as interrupted, Interruption():
        send(number)
    assert interrupted.value.code == 128 + number
    assert interrupted.value.message == f"{signal.Signals(number).name}: stopped."
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_delayed() -> None:
    steps = []
    with pytest.raises(Interrupted), Interruption() as interruption:
        with interruption.delayed():
            send(signal.SIGTERM)
            steps.append(interruption.signal)
            send(signal.SIGINT)  # a launcher's, of the same request
            steps.append(interruption.signal)
        steps.append("not reached")
    assert steps == [signal.SIGTERM] * 2


@pytest.mark.parametrize("when", ["before", "inside"])
def test_at_once_inside_of_delayed(when: str) -> None:
    steps = []
    with pytest.raises(Interrupted), Interruption() as interruption, interruption.delayed():
        if when == "before":
            send(signal.SIGINT)
        steps.append("delayed")
        with interruption.at_once():
            send(signal.SIGINT)
            steps.append("not reached")
    assert steps == ["delayed"]


def test_without_a_terminal(monkeypatch) -> None:
    def write(*arguments) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(Interrupted), Interruption() as interruption, interruption.delayed():
        send(signal.SIGTERM)


def test_an_error_is_not_hidden() -> None:
    with pytest.raises(KeyError), Interruption() as interruption, interruption.delayed():
        send(signal.SIGTERM)
        raise KeyError


def insist(pause: float) -> None:
    module._ONE_REQUEST = 0.2
    with Interruption() as interruption, interruption.delayed():
        send(signal.SIGTERM)
        time.sleep(pause)
        send(signal.SIGINT)
        os._exit(7)


@pytest.mark.parametrize(("pause", "status"), [(0.0, 7), (0.3, 128 + signal.SIGINT)])
def test_a_second_signal_ends_the_process(pause: float, status: int) -> None:
    process = FORK.Process(target=insist, args=(pause,))
    process.start()
    process.join()
    assert process.exitcode == status


def test_other_threads_have_no_handlers() -> None:
    entered = []

    def enter() -> None:
        with Interruption() as interruption:
            entered.append(interruption.signal)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [None]


def training(
    folder: Path,
    interruption: Interruption,
    stop: int | None = None,
    moment: str = "step",
    period: int = 2,
) -> Trainer:
    """Five iterations with an evaluation after each ``period``, and a signal in one of them."""
    trainer = noisy_trainer(folder, 5, interruption=interruption)

    def send_at(now: str) -> None:
        if (now, trainer.iter) == (moment, stop):
            send(signal.SIGTERM)

    def evaluate() -> None:
        send_at("evaluation")
        trainer.evaluated.append(trainer.iter)

    trainer.evaluated = []
    step = CallbackHook(before_step=lambda trainer: send_at("step"))
    trainer.register_hooks(
        [step, StopWhenInterrupted(), hooks.EvalHook(period, lambda: trainer.at_once(evaluate))]
    )
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    trainer = training(tmp_path_factory.mktemp("uninterrupted"), Interruption())
    trainer.train()
    assert trainer.evaluated == [1, 3, 5]
    return trainer.model.state_dict()


@pytest.mark.parametrize(
    ("moment", "stop", "period", "evaluated"),
    [
        ("step", 0, 2, []),
        ("step", 1, 2, []),
        ("step", 2, 2, [1]),
        ("step", 4, 2, [1, 3]),  # only the evaluation after the last iteration is missing
        ("evaluation", 2, 3, []),  # nothing else saves this iteration
        ("evaluation", 5, 3, [2]),
    ],
)
def test_a_training_is_saved_and_resumed(
    uninterrupted: dict, tmp_path: Path, moment: str, stop: int, period: int, evaluated: list[int]
) -> None:
    with Interruption() as interruption:
        trainer = training(tmp_path, interruption, stop, moment, period)
        with pytest.raises(Interrupted) as interrupted:
            trainer.train()
    assert trainer.evaluated == evaluated
    name = f"model_{stop:07d}.pth" if stop < 4 else "model_final.pth"
    assert (tmp_path / "last_checkpoint").read_text() == name
    progress = f"stopped after {stop + 1} of 5 iterations, which are saved in {tmp_path}"
    assert (progress in interrupted.value.message) == (moment == "step" and stop < 4)
    resumed = training(tmp_path, Interruption())
    resumed.resume_or_load("", resume=True)
    assert resumed.start_iter == min(stop + 1, 5)
    resumed.train()
    assert resumed.evaluated == [i for i in (1, 3, 5) if i > stop or i == 5]
    torch.testing.assert_close(resumed.model.state_dict(), uninterrupted, rtol=0, atol=0)


class Pids(Dataset):
    """The id of the process that loads."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.parametrize("number", SIGNALS)
def test_processes_that_load_data_continue(number: int) -> None:
    batches = iter(DataLoader(Pids(), num_workers=1, worker_init_fn=_init_worker))
    worker = next(batches).item()
    assert worker != os.getpid()
    os.kill(worker, number)
    time.sleep(0.1)
    assert {batch.item() for batch in itertools.islice(batches, 20)} == {worker}
    if number == signal.SIGTERM:  # multiprocessing sends a second one at a program's end
        (process,) = batches._workers
        with contextlib.suppress(RuntimeError):  # torch's: the worker was killed
            process.terminate()
            process.join(5)
        assert process.exitcode == -signal.SIGTERM
