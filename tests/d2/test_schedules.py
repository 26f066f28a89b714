"""Learning rates are those of real detectron2, at every iteration."""

import pytest
import torch

from ovformer.d2 import build_lr_scheduler, get_cfg, hooks


def schedule(name: str, warmup_factor: float) -> tuple[torch.optim.Optimizer, object]:
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.MAX_ITER = 100
    cfg.SOLVER.STEPS = (60, 80)
    cfg.SOLVER.WARMUP_ITERS = 10
    cfg.SOLVER.WARMUP_FACTOR = warmup_factor
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    return optimizer, build_lr_scheduler(cfg, optimizer)


def rates(optimizer: torch.optim.Optimizer, scheduler: object, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


CASES = [
    ("WarmupMultiStepLR", 1.0),
    ("WarmupMultiStepLR", 0.001),
    ("WarmupCosineLR", 0.001),
]


@pytest.mark.parametrize(("name", "factor"), CASES)
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


def test_each_group_keeps_its_own_base_rate() -> None:
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 10, (5,), 0
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.01)]
    optimizer = torch.optim.SGD(groups)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates(optimizer, scheduler, 6)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.001])


def test_steps_after_the_end_are_ignored_with_a_warning(lines) -> None:
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 10, (5, 20), 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    found = rates(optimizer, build_lr_scheduler(cfg, optimizer), 9)
    assert found == pytest.approx([1.0] * 5 + [0.1] * 4)
    assert any("SOLVER.STEPS" in line for line in lines())


def test_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="WarmupLinearLR"):
        schedule("WarmupLinearLR", 1.0)


def test_logged_rate_is_that_of_the_largest_group() -> None:
    def parameters(count: int) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]

    largest = hooks.LRScheduler.get_best_param_group_id
    groups = [{"params": parameters(n), "lr": lr} for n, lr in ((1, 0.1), (3, 0.2), (2, 0.3))]
    assert largest(torch.optim.SGD(groups)) == 1
    groups = [{"params": parameters(1), "lr": lr} for lr in (0.1, 0.2, 0.2)]
    assert largest(torch.optim.SGD(groups)) == 1
