"""Learning rates are those of real detectron2, at every iteration."""

import pytest
import torch

from ovformer.d2 import build_lr_scheduler, get_cfg, hooks


def make_optimizer(*rates: float) -> torch.optim.Optimizer:
    """Return an optimizer with a group of parameters for each learning rate."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups)


def schedule(name: str, warmup_factor: float) -> tuple[torch.optim.Optimizer, object]:
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 100, (60, 80)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 10, warmup_factor
    optimizer = make_optimizer(cfg.SOLVER.BASE_LR)
    return optimizer, build_lr_scheduler(cfg, optimizer)


def rates(optimizer: torch.optim.Optimizer, scheduler: object, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("name", "factor"),
    [("WarmupMultiStepLR", 1.0), ("WarmupMultiStepLR", 0.001), ("WarmupCosineLR", 0.001)],
)
def test_learning_rates_equal_the_recorded_ones(recorded, name, factor) -> None:
    optimizer, scheduler = schedule(name, factor)
    expected = recorded[f"lr.{name}.warmup_factor={factor}"]
    # The multiplier is not defined at the end of training, so the last step is not taken.
    found = rates(optimizer, scheduler, len(expected) - 1)
    assert [*found, optimizer.param_groups[0]["lr"]] == pytest.approx(expected, rel=1e-12)


def test_fixed_gamma_decays_in_equal_parts() -> None:
    optimizer, scheduler = schedule("WarmupStepWithFixedGammaLR", 1.0)
    found = rates(optimizer, scheduler, 99)
    # NUM_DECAYS is 3: four parts of 25 iterations.
    assert found[10::25] == pytest.approx([1e-4, 1e-5, 1e-6, 1e-7])
    assert found[24] == pytest.approx(1e-4)
    assert found[26] == pytest.approx(1e-5)


def test_a_resumed_schedule_continues() -> None:
    whole = rates(*schedule("WarmupCosineLR", 0.001), 99)
    optimizer, scheduler = schedule("WarmupCosineLR", 0.001)
    rates(optimizer, scheduler, 40)
    assert set(scheduler.state_dict()) == {"base_lrs", "last_epoch"}
    resumed_optimizer, resumed = schedule("WarmupCosineLR", 0.001)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert rates(resumed_optimizer, resumed, 59) == pytest.approx(whole[40:], rel=1e-12)


def test_each_group_keeps_its_base_rate_and_steps_after_the_end_are_ignored(lines) -> None:
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 10, (5, 20), 0
    optimizer = make_optimizer(0.1, 0.02)
    found = rates(optimizer, build_lr_scheduler(cfg, optimizer), 9)
    assert found == pytest.approx([0.1] * 5 + [0.01] * 4)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.002)
    assert any("SOLVER.STEPS" in line for line in lines())


def test_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="WarmupLinearLR"):
        schedule("WarmupLinearLR", 1.0)


def test_logged_rate_is_that_of_the_largest_group() -> None:
    largest = hooks.LRScheduler.get_best_param_group_id
    assert largest(make_optimizer(0.1, 0.2, 0.2)) == 1  # the most frequent rate
    optimizer = make_optimizer(0.1, 0.2, 0.3)
    optimizer.param_groups[2]["params"] *= 2
    assert largest(optimizer) == 2
