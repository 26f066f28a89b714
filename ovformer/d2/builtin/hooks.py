"""Hooks of every training: timing, learning rate, evaluation."""

import datetime
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler as _TorchScheduler

from ovformer.d2.builtin import comm
from ovformer.d2.builtin.evaluation import flatten_results_dict
from ovformer.d2.builtin.solver import LRMultiplier
from ovformer.d2.builtin.trainer import HookBase

__all__ = ["EvalHook", "HookBase", "IterationTimer", "LRScheduler"]


class IterationTimer(HookBase):
    """Records ``time``, the seconds of each step, and logs a summary. Register it first.

    Args:
        warmup_iter: the first step that counts; earlier ones are slower than usual.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
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
            # The warm-up does not count in the total either.
            self._begin = now
            return
        seconds = now - self._step_begin
        self._num_steps += 1
        self._seconds += seconds
        self.trainer.storage.put_scalars(time=seconds)

    def after_train(self) -> None:
        """Log the speed of the steps, and the total time with and without the hooks."""
        logger = logging.getLogger(__name__)
        total = time.perf_counter() - self._begin
        if self._num_steps:
            logger.info(
                f"Overall training speed: {self._num_steps} iterations in "
                f"{_format_duration(self._seconds)} ({self._seconds / self._num_steps:.4f} s / it)"
            )
        logger.info(
            f"Total training time: {_format_duration(total)} "
            f"({_format_duration(total - self._seconds)} on hooks)"
        )


def _format_duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class LRScheduler(HookBase):
    """Steps the learning-rate scheduler after each iteration and records ``lr``.

    Args:
        optimizer: has the learning rates; None is that of the trainer.
        scheduler: torch's, or fvcore's, which multiplies the initial learning rates; None is that
            of the trainer.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        scheduler: _TorchScheduler | ParamScheduler | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> _TorchScheduler | ParamScheduler:
        """The scheduler of this hook, or else of the trainer."""
        return self._scheduler or self.trainer.scheduler

    @staticmethod
    def get_best_param_group_id(optimizer: Optimizer) -> int:
        """Return the index of the parameter group whose learning rate is logged.

        It is the group with most parameters; if each has one, the first with the commonest rate.
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
        """Restore the state of torch's scheduler."""
        if isinstance(self.scheduler, _TorchScheduler):
            logging.getLogger(__name__).info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every ``eval_period`` iterations and after the last one, and records the scores.

    Either all processes have the hook or none, as it waits for all of them.

    Args:
        eval_period: iterations between evaluations; 0 for the last one only.
        eval_function: returns a nested dict of numbers, or nothing.
        eval_after_train: evaluate when training has succeeded.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], dict | None],
        eval_after_train: bool = True,
    ) -> None:
        self._period = eval_period
        self._function = eval_function
        self._eval_after_train = eval_after_train

    def after_step(self) -> None:
        """Evaluate if an evaluation is due."""
        done = self.trainer.iter + 1
        # After the last iteration, after_train evaluates.
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        """Evaluate if the training succeeded; drop the function, which may refer to the trainer."""
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        del self._function

    def _do_eval(self) -> None:
        """Evaluate, check that the scores are numbers, and record them."""
        results = self._function()
        if results:
            assert isinstance(results, dict), f"eval_function returned {results!r}, not a dict"
            scores = flatten_results_dict(results)
            for name, value in scores.items():
                try:
                    float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        f"eval_function: expected a nested dict of numbers, but {name!r} is "
                        f"{value!r}"
                    ) from error
            self.trainer.storage.put_scalars(**scores, smoothing_hint=False)
        # An evaluation takes each process another time; all start the next iteration together.
        comm.synchronize()
