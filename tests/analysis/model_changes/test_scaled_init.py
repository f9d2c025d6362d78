import pytest
import torch
from peek import peek
from tiny import TinyNet, tiny_problem
from torch import nn

from bn_lightning.analysis.model_changes.scaled_init import ScaledInit
from bn_lightning.analysis.study import Arm
from bn_lightning.callbacks import BatchNormInsertion


def started(tmp_path, *make, module=TinyNet):
    arm = Arm(name="arm", callbacks=lambda: [one() for one in make])
    return peek(tiny_problem(module=module), arm, tmp_path)[0].starting


def test_matrices_are_multiplied_and_the_rest_is_not(tmp_path):
    plain = started(tmp_path / "plain", BatchNormInsertion)
    scaled = started(tmp_path / "scaled", lambda: ScaledInit(3.0), BatchNormInsertion)
    assert plain.keys() == scaled.keys()
    for name, value in plain.items():
        factor = 3.0 if value.dim() > 1 else 1.0
        torch.testing.assert_close(scaled[name], value * factor if factor > 1 else value)
    assert sum(value.dim() > 1 for value in plain.values()) == 2


def test_a_shared_weight_is_multiplied_once_and_a_frozen_one_never(tmp_path):
    class Tied(TinyNet):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
            self.net[2].weight = self.net[0].weight
            self.net[3].weight.requires_grad_(False)

    plain, scaled = (
        started(tmp_path / "plain", module=Tied),
        started(tmp_path / "x", lambda: ScaledInit(2), module=Tied),
    )
    torch.testing.assert_close(scaled["net.0.weight"], plain["net.0.weight"] * 2)
    torch.testing.assert_close(scaled["net.2.weight"], plain["net.2.weight"] * 2)
    torch.testing.assert_close(scaled["net.3.weight"], plain["net.3.weight"])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_factor_of_no_use_is_refused(factor):
    with pytest.raises(ValueError, match="multiplied by a number above 0, not by"):
        ScaledInit(factor)


def test_a_lazy_layer_is_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"1.weight of Sequential is lazy and has no weights to multiply by 2 yet"):
        ScaledInit(2.0).change(None, model)
