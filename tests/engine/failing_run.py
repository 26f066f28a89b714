"""Runs a training script as a user does, and fails in one of its processes.

``python failing_run.py train_net.py ...``, also started by torchrun. From the environment: FAIL,
``HOW:WHERE:CALL:RANK``, of which HOW is a name in ``WAYS``, WHERE "training" or "evaluation", and
CALL tells after how many batches. With the rank "all" each process fails.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from ovformer.d2 import comm
from ovformer.engine import cli
from ovformer.engine.stages import STAGES
from ovformer.evaluation.lvis_evaluator import LvisEvaluator
from ovformer.evaluation.vis_evaluator import VisEvaluator
from ovformer.modeling.criterion import SetCriterion


def raise_error(result: Any) -> None:
    raise RuntimeError(f"the failure of process {comm.get_rank()}")


def raise_not_finite(result: Any) -> None:
    raise FloatingPointError("the cost is NaN")


def be_killed(result: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def return_nan(losses: dict) -> dict:
    return {name: loss * (float("nan") if "dice" in name else 1) for name, loss in losses.items()}


class InfiniteSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


def return_infinite_slope(losses: dict) -> dict:
    return {name: InfiniteSlope.apply(loss) for name, loss in losses.items()}


WAYS = {
    "error": raise_error,
    "forward": raise_not_finite,
    "kill": be_killed,
    "loss": return_nan,
    "gradient": return_infinite_slope,
}


def failing(function: Callable, how: str, call: int, rank: str) -> Callable:
    calls = itertools.count()

    def fail(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        is_here = rank in ("all", str(comm.get_rank()))
        return WAYS[how](result) if next(calls) == call and is_here else result

    return fail


def install() -> None:
    """Also in processes that the script starts."""
    cli.WRITE_PERIOD = 2
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" or not os.environ.get("FAIL"):
        return
    how, where, call, rank = os.environ["FAIL"].split(":")
    places = {
        "training": [(SetCriterion, "forward")],
        "evaluation": [(LvisEvaluator, "process"), (VisEvaluator, "process")],
    }
    for owner, name in places[where]:
        setattr(owner, name, failing(getattr(owner, name), how, int(call), rank))


def run(argv: list[str]) -> None:
    """Run the script that is named first."""
    (stage,) = (stage for stage in STAGES if stage.script == argv[0])
    cli.main(stage, argv[1:])


if __name__ in ("__main__", "__mp_main__"):
    install()
if __name__ == "__main__":
    run(sys.argv[1:])
