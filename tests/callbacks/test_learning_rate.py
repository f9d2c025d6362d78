from types import SimpleNamespace

import pytest
import torch
from torch.optim import lr_scheduler as schedules

from bn_lightning.callbacks._learning_rate import scale_learning_rates

SCHEDULES = {
    "none": None,
    "step": lambda o: schedules.StepLR(o, 2, 0.5),
    "exponential": lambda o: schedules.ExponentialLR(o, 0.9),
    "lambda": lambda o: schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 6, eta_min=0.01),
    "cosine to a tensor": lambda o: schedules.CosineAnnealingLR(o, 6, eta_min=torch.tensor(0.01).double()),
    "restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3, eta_min=0.01),
    "cycle": lambda o: schedules.OneCycleLR(o, 0.3, total_steps=10, cycle_momentum=False),
    "triangles": lambda o: schedules.CyclicLR(o, 0.1, 0.4, step_size_up=2, cycle_momentum=False),
    "polynomial": lambda o: schedules.PolynomialLR(o, 6),
    "warmup": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, 1.0, 3), schedules.StepLR(o, 2, 0.5)], [3]
    ),
    "warmup to a tensor": lambda o: schedules.SequentialLR(
        o,
        [schedules.LinearLR(o, 0.1, 1.0, 3), schedules.CosineAnnealingLR(o, 4, eta_min=torch.tensor(0.01).double())],
        [3],
    ),
    "plateau": lambda o: schedules.ReduceLROnPlateau(o, patience=0, min_lr=0.02),
    "plateau at a tensor": lambda o: schedules.ReduceLROnPlateau(
        o, patience=0, min_lr=torch.tensor(0.02, dtype=torch.float64)
    ),
}


def rates(make, factor, *, steps=7):
    """Rates of both groups over some steps."""
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.3}], lr=0.1, momentum=0.9)
    scheduler = make(optimizer) if make else None
    trainer = SimpleNamespace(
        optimizers=[optimizer], lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)] if scheduler else []
    )
    if factor is not None:
        scale_learning_rates(trainer, factor)
    found = []
    for _ in range(steps):
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        if scheduler:
            scheduler.step(*([1.0] if isinstance(scheduler, schedules.ReduceLROnPlateau) else []))
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_whole_schedule_is_multiplied(name):
    torch.testing.assert_close(rates(SCHEDULES[name], 5.0), 5 * rates(SCHEDULES[name], None))


def test_a_tensor_rate_is_changed_in_place():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=rate, capturable=True, foreach=False)
    (found,) = scale_learning_rates(SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=[]), 2.0)
    held = optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(held, torch.tensor(0.2))
    torch.testing.assert_close(torch.tensor(found), torch.tensor((0.1, 0.2)))


@pytest.mark.parametrize("make", [None, SCHEDULES["step"], SCHEDULES["warmup"]])
def test_a_tensor_rate_of_several_groups_is_multiplied_once(make):
    rate = torch.tensor(0.1)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))]} for _ in range(3)]
    optimizer = torch.optim.AdamW(groups, lr=rate, foreach=False)
    configs = [SimpleNamespace(scheduler=make(optimizer))] if make else []
    before = float(rate)
    found = scale_learning_rates(SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=configs), 5.0)
    assert all(group["lr"] is rate for group in optimizer.param_groups)
    torch.testing.assert_close(float(rate), 5 * before)
    torch.testing.assert_close(found, ((before, 5 * before),))
    for config in configs:
        torch.testing.assert_close(config.scheduler.get_last_lr(), [rate] * 3)


def test_a_tensor_that_a_schedule_ends_at_is_left_to_the_next_fit():
    lowest = torch.tensor(0.01, dtype=torch.float64)
    found = [rates(lambda o: schedules.CosineAnnealingLR(o, 6, eta_min=lowest), 5.0) for _ in range(2)]
    assert float(lowest) == 0.01
    assert found[0][-1].tolist() == found[1][-1].tolist() == pytest.approx([0.05, 0.05])


@pytest.mark.parametrize("factor", [0, -1.0, float("nan")])
def test_refuses_a_factor_that_is_not_above_0(factor):
    with pytest.raises(ValueError, match="multiplied by a number above 0, not by"):
        scale_learning_rates(SimpleNamespace(optimizers=[], lr_scheduler_configs=[]), factor)
