"""Learning-rate schedules."""

import logging

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ovformer.d2.builtin.config import CfgNode

SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule whose beginning is replaced by a warm-up.

    Args:
        scheduler: the schedule of the whole training.
        warmup_factor: multiplier of the first value at the start.
        warmup_length: share of the training, in [0, 1].
        warmup_method: ``linear``, or ``constant`` to jump at the end of the warm-up.
        rescale_interval: squeeze the whole schedule into the time after the warm-up; by default
            its beginning is cut off.

    Raises:
        ValueError: the method is unknown.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            # The warm-up ends where the schedule goes on: at its beginning if it is squeezed, else
            # at the point that it has reached by then.
            end = scheduler(0.0 if rescale_interval else warmup_length)
            warmup: ParamScheduler = LinearParamScheduler(start, end)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(
                f"SOLVER.WARMUP_METHOD: unknown method {warmup_method!r}. Known: linear, constant"
            )
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiplies the initial learning rate of each parameter group by one common schedule.

    Args:
        optimizer: has the initial learning rates.
        multiplier: maps the progress of the training, in [0, 1), to a factor.
        max_iter: iterations of the whole training.
        last_iter: the last completed iteration; -1 for a new training.

    Raises:
        ValueError: ``multiplier`` is not a :class:`ParamScheduler`.
    """

    def __init__(
        self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier: expected a ParamScheduler, got {multiplier!r}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict:
        """Return the state without the schedule, which comes from the config."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        """Return the learning rate of each parameter group at the present iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """Build the schedule that ``cfg.SOLVER`` describes; its unit is iterations.

    Raises:
        ValueError: ``SOLVER.LR_SCHEDULER_NAME`` or another value is unknown.
    """
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) < len(solver.STEPS):
            logging.getLogger(__name__).warning(
                "SOLVER.STEPS: values above SOLVER.MAX_ITER=%d are ignored: %s",
                solver.MAX_ITER,
                solver.STEPS,
            )
        schedule: ParamScheduler = MultiStepParamScheduler(
            values=[solver.GAMMA**power for power in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        )
    elif name == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        if not 0 <= end <= 1:
            raise ValueError(
                f"SOLVER.BASE_LR_END: expected 0 to SOLVER.BASE_LR={solver.BASE_LR}, "
                f"got {solver.BASE_LR_END}"
            )
        schedule = CosineParamScheduler(1, end)
    elif name == "WarmupStepWithFixedGammaLR":
        schedule = StepWithFixedGammaParamScheduler(
            base_value=1.0,
            gamma=solver.GAMMA,
            num_decays=solver.NUM_DECAYS,
            num_updates=solver.MAX_ITER,
        )
    else:
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME: unknown schedule {name!r}. Known: {', '.join(SCHEDULES)}"
        )
    schedule = WarmupParamScheduler(
        schedule,
        solver.WARMUP_FACTOR,
        # A training that is shorter than its warm-up is all warm-up.
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, schedule, solver.MAX_ITER)
