"""The trainer calls hooks as detectron2's does, so that a detectron2 user's hook works in it."""

import contextlib
import functools

import pytest
import torch

from ovformer.d2 import HookBase, TrainerBase, get_event_storage, hooks


class Recorder(HookBase):
    """Notes each call, with the trainer's iteration."""

    def __init__(self, name: str, calls: list, state: dict | None = None) -> None:
        self.state = state or {}
        for event in ("before_train", "after_train", "before_step", "after_backward", "after_step"):
            setattr(self, event, functools.partial(self.note, calls, f"{name}.{event}"))

    def note(self, calls: list, event: str) -> None:
        assert self.trainer.storage.iter == self.trainer.iter
        calls.append(f"{event}@{self.trainer.iter}")

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state_dict: dict) -> None:
        self.state = state_dict


class OtherRecorder(Recorder):
    """Another class, as states are kept by class name."""


class Trainer(TrainerBase):
    """Notes its steps, and fails in one if asked to."""

    def __init__(self, calls: list | None = None, fail_at: int | None = None) -> None:
        super().__init__()
        self.calls = [] if calls is None else calls
        self.fail_at = fail_at

    def run_step(self) -> None:
        assert get_event_storage() is self.storage
        self.calls.append(f"step@{self.iter}")
        if self.iter == self.fail_at:
            raise FloatingPointError("not finite")
        self.after_backward()
        self.storage.put_scalar("total_loss", 10.0 - self.iter)


def test_order_of_calls() -> None:
    calls = []
    trainer = Trainer(calls)
    trainer.register_hooks([Recorder("a", calls), None, Recorder("b", calls)])
    trainer.train(5, 7)

    events = ("a.before_step", "b.before_step", "step", "a.after_backward", "b.after_backward")
    step = (*events, "a.after_step", "b.after_step")
    assert calls == [
        *("a.before_train@5", "b.before_train@5"),
        *(f"{event}@{iteration}" for iteration in (5, 6) for event in step),
        *("a.after_train@7", "b.after_train@7"),
    ]
    assert (trainer.start_iter, trainer.max_iter, trainer.iter) == (5, 7, 7)


def test_exception_ends_training_after_after_train(lines) -> None:
    calls = []
    trainer = Trainer(calls, fail_at=1)
    trainer.register_hooks([Recorder("a", calls)])
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.train(0, 10)
    # after_train sees an iteration below max_iter: training did not succeed.
    assert calls[-2:] == ["step@1", "a.after_train@1"]
    assert "Exception during training:" in lines()
    with pytest.raises(AssertionError):
        get_event_storage()


def test_only_hooks_can_be_registered_and_they_do_not_keep_the_trainer_alive() -> None:
    trainer, hook = Trainer(), HookBase()
    with pytest.raises(AssertionError):
        trainer.register_hooks([object()])
    trainer.register_hooks([hook])
    del trainer
    with pytest.raises(ReferenceError):
        _ = hook.trainer.iter


def test_state_dict_of_trainer_and_hooks(lines) -> None:
    trainer = Trainer()
    first, second = Recorder("a", [], {"x": 1}), Recorder("second of its class", [], {"x": 2})
    trainer.register_hooks([first, second, OtherRecorder("b", [], {"y": 3}), HookBase()])
    trainer.train(0, 4)
    state = trainer.state_dict()
    assert state == {"iteration": 4, "hooks": {"Recorder": {"x": 1}, "OtherRecorder": {"y": 3}}}

    resumed, hook = Trainer(), Recorder("a", [])
    resumed.register_hooks([hook])
    resumed.load_state_dict(state)
    assert resumed.iter == 4 and hook.state == {"x": 1}
    assert any("OtherRecorder" in line for line in lines())
    assert Trainer().state_dict() == {"iteration": 0}


def test_iteration_timer_counts_from_the_third_step(lines) -> None:
    trainer = Trainer()
    trainer.register_hooks([hooks.IterationTimer()])
    trainer.train(10, 16)
    times = trainer.storage.history("time").values()
    assert [iteration for _, iteration in times] == [12, 13, 14, 15]
    assert all(0 <= seconds < 1 for seconds, _ in times)
    for start in ("Overall training speed: 4 iterations in", "Total training time: 0:00:00 (0:00"):
        assert any(line.startswith(start) for line in lines())


@pytest.mark.parametrize(
    ("period", "after_train", "fail_at", "expected"),
    [
        (2, True, None, [1, 3, 6]),  # at 5, the last iteration, it waits for after_train
        (4, True, None, [3, 6]),
        (0, True, None, [6]),
        (2, False, None, [1, 3]),
        (2, True, 4, [1, 3]),
    ],
)
def test_eval_hook(period, after_train, fail_at, expected) -> None:
    trainer = Trainer(fail_at=fail_at)
    evaluated = []

    def evaluate() -> dict:
        evaluated.append(trainer.iter)
        return {"segm": {"AP": 1.0 + len(evaluated), "by_size": {"AP-large": 3.0}}, "speed": 2}

    trainer.register_hooks([hooks.EvalHook(period, evaluate, eval_after_train=after_train)])
    with pytest.raises(FloatingPointError) if fail_at else contextlib.nullcontext():
        trainer.train(0, 6)
    assert evaluated == expected
    latest = trainer.storage.latest()
    assert latest["segm/AP"] == (1.0 + len(expected), expected[-1])
    assert latest["segm/by_size/AP-large"] == (3.0, expected[-1])
    assert latest["speed"] == (2.0, expected[-1])
    assert trainer.storage.smoothing_hints()["segm/AP"] is False


def test_eval_hook_needs_numbers() -> None:
    trainer = Trainer()
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"segm": {"AP": "high"}})])
    with pytest.raises(ValueError, match="segm/AP"):
        trainer.train(0, 1)


def test_lr_scheduler_hook_records_the_rate_of_each_iteration() -> None:
    trainer = Trainer()
    trainer.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=2, gamma=0.5)
    hook = hooks.LRScheduler()
    trainer.register_hooks([hook])
    trainer.optimizer.step()
    trainer.train(0, 5)
    recorded = [value for value, _ in trainer.storage.history("lr").values()]
    assert recorded == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert hook.state_dict()["last_epoch"] == 5

    trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=2, gamma=0.5)
    hook.load_state_dict({"last_epoch": 4})
    assert trainer.scheduler.last_epoch == 4
