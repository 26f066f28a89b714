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

    def evaluate() -> None:
        if trainer.iter == stop and moment == "evaluation":
            send(signal.SIGTERM)
        done.append(trainer.iter)

    def start_step(trainer: Trainer) -> None:
        if trainer.iter == stop and moment == "step":
            send(signal.SIGTERM)

    done: list[int] = []
    trainer.evaluated = done
    step = CallbackHook(before_step=start_step)
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


@pytest.mark.parametrize("stop", range(5))
def test_a_training_is_saved_and_resumed(uninterrupted: dict, tmp_path: Path, stop: int) -> None:
    with Interruption() as interruption:
        trainer = training(tmp_path, interruption, stop)
        with pytest.raises(Interrupted) as interrupted:
            trainer.train()
    name = "model_final.pth" if stop == 4 else f"model_{stop:07d}.pth"
    assert (tmp_path / "last_checkpoint").read_text() == name
    assert trainer.evaluated == [i for i in (1, 3) if i < stop]
    message = f"SIGTERM: stopped after {stop + 1} of 5 iterations, which are saved in {tmp_path}"
    if stop == 4:  # the evaluation after the training was interrupted
        message = "SIGTERM: stopped"
    assert interrupted.value.message == f"{message}."
    resumed = training(tmp_path, Interruption())
    resumed.resume_or_load("", resume=True)
    assert resumed.start_iter == stop + 1
    resumed.train()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, uninterrupted[name]), name
    # Also where only the evaluation after the last iteration was missing.
    assert resumed.evaluated == [i for i in (1, 3, 5) if i > stop]


@pytest.mark.parametrize("stop", [2, 5])  # nothing else saves iteration 2
def test_an_evaluation_ends_at_once_and_all_is_saved(
    uninterrupted: dict, tmp_path: Path, stop: int
) -> None:
    with Interruption() as interruption:
        trainer = training(tmp_path, interruption, stop, "evaluation", period=3)
        with pytest.raises(Interrupted):
            trainer.train()
    assert trainer.evaluated == [i for i in (2,) if i < stop]
    name = "model_final.pth" if stop == 5 else f"model_{stop:07d}.pth"
    assert (tmp_path / "last_checkpoint").read_text() == name
    resumed = training(tmp_path, Interruption())
    resumed.resume_or_load("", resume=True)
    resumed.train()
    assert resumed.evaluated[-1] == 5
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, uninterrupted[name]), name


def test_the_signal_of_another_process_is_agreed_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module.comm, "all_gather", lambda signal: [signal, 15])
    trainer = training(tmp_path, Interruption())

    def another_process(values: dict) -> dict[str, float]:
        means = {name: float(value) for name, value in values.items()}
        return means | {"is_interrupted": 0.5 if trainer.iter == 2 else 0.0}

    trainer._mean_over_processes = another_process
    with pytest.raises(Interrupted) as interrupted:
        trainer.train()
    assert interrupted.value.code == 143
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


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
    begin = time.monotonic()
    del batches
    assert time.monotonic() - begin < 3
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_processes_that_load_data_end_by_a_second_signal() -> None:
    """As multiprocessing does at the end of a program with processes that did not end."""
    batches = iter(DataLoader(Pids(), num_workers=1, worker_init_fn=_init_worker))
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(0.3)
    assert worker.is_alive()
    with contextlib.suppress(RuntimeError):  # torch's: the worker was killed
        worker.terminate()
        worker.join(5)
    assert worker.exitcode == -signal.SIGTERM
