"""Hooks that most trainings need."""

import datetime
import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler as _TorchScheduler

from ovformer.d2.builtin import comm
from ovformer.d2.builtin.evaluation import flatten_results_dict
from ovformer.d2.builtin.events import EventWriter
from ovformer.d2.builtin.solver import LRMultiplier
from ovformer.d2.builtin.trainer import HookBase, TrainerBase

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "HookBase",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
]

_Callback = Callable[[TrainerBase], None]


def _is_eval_step(trainer: TrainerBase, period: int) -> bool:
    """Tell whether a periodic evaluation is due after this step; the last one is after training."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


class CallbackHook(HookBase):
    """Calls functions, each of which takes the trainer."""

    def __init__(
        self,
        *,
        before_train: _Callback | None = None,
        after_train: _Callback | None = None,
        before_step: _Callback | None = None,
        after_step: _Callback | None = None,
    ) -> None:
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, name: str) -> None:
        if callback := self._callbacks[name]:
            callback(self.trainer)

    def before_train(self) -> None:
        """Call the function for this moment."""
        self._call("before_train")

    def after_train(self) -> None:
        """Call the function for this moment, then drop all: they may refer to the trainer."""
        self._call("after_train")
        self._callbacks = {}

    def before_step(self) -> None:
        """Call the function for this moment."""
        self._call("before_step")

    def after_step(self) -> None:
        """Call the function for this moment."""
        self._call("after_step")


class IterationTimer(HookBase):
    """Records ``time``, the seconds of each step, and logs a summary. To be the first hook."""

    def __init__(self, warmup_iter: int = 3) -> None:
        """Make the hook.

        Args:
            warmup_iter: the first step that counts; those before it are slower than usual.
        """
        self._warmup_iter = warmup_iter
        self._begin = self._step_begin = time.perf_counter()
        self._num_steps = 0
        self._seconds = 0.0

    def before_train(self) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()
        self._num_steps = 0
        self._seconds = 0.0

    def before_step(self) -> None:
        """Start the clock of a step."""
        self._step_begin = time.perf_counter()

    def after_step(self) -> None:
        """Record the time of a step."""
        now = time.perf_counter()
        if self.trainer.storage.iter - self.trainer.start_iter + 1 < self._warmup_iter:
            self._begin = now
            return
        seconds = now - self._step_begin
        self._num_steps += 1
        self._seconds += seconds
        self.trainer.storage.put_scalars(time=seconds)

    def after_train(self) -> None:
        """Log the speed, and how long everything else took."""
        logger = logging.getLogger(__name__)
        total = time.perf_counter() - self._begin
        if self._num_steps:
            logger.info(
                f"Overall training speed: {self._num_steps} iterations in "
                f"{_duration(self._seconds)} ({self._seconds / self._num_steps:.4f} s / it)"
            )
        logger.info(
            f"Total training time: {_duration(total)} ({_duration(total - self._seconds)} on hooks)"
        )


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Lets writers write every ``period`` iterations and at the end, when it closes them."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            assert isinstance(writer, EventWriter), f"{writer!r} is not an EventWriter"
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        """Write if it is time."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        """Write what other hooks recorded after the last step, and close."""
        for writer in self._writers:
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's periodic checkpointer as a hook: every ``period`` iterations and at the end."""

    def before_train(self) -> None:
        """Learn which iteration is the last."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Save if it is time."""
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves the model whenever a metric is better than ever. To be placed after `EvalHook`."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """Make the hook.

        Args:
            eval_period: the period of the :class:`EvalHook`, in iterations.
            checkpointer: saves the model.
            val_metric: name of the metric, e.g. ``segm/AP``.
            mode: ``max`` or ``min``, whichever is better.
            file_prefix: name of the checkpoint, without ``.pth``.
        """
        assert mode in ("max", "min"), f"mode: expected 'max' or 'min', got {mode!r}"
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        """Compare, if there was an evaluation."""
        if _is_eval_step(self.trainer, self._period):
            self._compare()

    def after_train(self) -> None:
        """Compare, if training succeeded."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._compare()

    def _compare(self) -> None:
        logger = logging.getLogger(__name__)
        if self._metric not in self.trainer.storage.latest():
            logger.warning(f"No best model is kept: {self._metric!r} was not recorded.")
            return
        value, iteration = self.trainer.storage.latest()[self._metric]
        if not math.isfinite(value):
            return
        if self.best_metric is not None and not self._is_better(value, self.best_metric):
            logger.info(
                f"{self._metric} is {value:.5f}, not better than {self.best_metric:.5f} "
                f"@ iteration {self.best_iter}."
            )
            return
        self.best_metric, self.best_iter = value, iteration
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        logger.info(f"Saved the best model: {self._metric} {value:.5f} @ iteration {iteration}.")


class LRScheduler(HookBase):
    """Steps the learning-rate scheduler after each iteration and records ``lr``."""

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        scheduler: _TorchScheduler | ParamScheduler | None = None,
    ) -> None:
        """Make the hook; what is not given is taken from the trainer.

        Args:
            optimizer: has the learning rates.
            scheduler: torch's, or fvcore's, which multiplies the initial learning rates.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> _TorchScheduler | ParamScheduler:
        """The scheduler, of this hook or else of the trainer."""
        return self._scheduler or self.trainer.scheduler

    @staticmethod
    def get_best_param_group_id(optimizer: Optimizer) -> int:
        """Return the index of the parameter group whose learning rate stands for all.

        It is the one with most parameters; where each has one, the first with the commonest rate.
        """
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def before_train(self) -> None:
        """Find optimizer and scheduler."""
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer,
                self.scheduler,
                self.trainer.max_iter,
                last_iter=self.trainer.iter - 1,
            )
        self._group = self.get_best_param_group_id(self._optimizer)

    def after_step(self) -> None:
        """Record the learning rate of this iteration and set that of the next."""
        rate = self._optimizer.param_groups[self._group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch's scheduler."""
        if isinstance(self.scheduler, _TorchScheduler):
            return self.scheduler.state_dict()
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of torch's scheduler."""
        if isinstance(self.scheduler, _TorchScheduler):
            logging.getLogger(__name__).info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every ``eval_period`` iterations and after the last, and records the scores."""

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], dict | None],
        eval_after_train: bool = True,
    ) -> None:
        """Make the hook, in all processes or in none.

        Args:
            eval_period: iterations between evaluations; 0 for none but the last.
            eval_function: returns a nested dict of numbers, or nothing.
            eval_after_train: evaluate when training has succeeded.
        """
        self._period = eval_period
        self._function = eval_function
        self._eval_after_train = eval_after_train

    def after_step(self) -> None:
        """Evaluate if it is time."""
        if _is_eval_step(self.trainer, self._period):
            self._do_eval()

    def after_train(self) -> None:
        """Evaluate if training succeeded, then drop the function: it may refer to the trainer."""
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        del self._function

    def _do_eval(self) -> None:
        results = self._function()
        if results:
            assert isinstance(results, dict), f"eval_function returned {results!r}, not a dict"
            scores = flatten_results_dict(results)
            for name, value in scores.items():
                try:
                    float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        f"eval_function has to return a nested dict of numbers; {name!r} is "
                        f"{value!r}"
                    ) from error
            self.trainer.storage.put_scalars(**scores, smoothing_hint=False)
        # Processes may need different times; let them start the next iteration together.
        comm.synchronize()
