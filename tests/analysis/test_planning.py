import pytest
import torch
from tiny import TinyData, TinyNet

from bn_lightning.analysis.planning import plan_of_module
from bn_lightning.errors import NoSiteError


class WithExample(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(4, 3)


@pytest.mark.parametrize(("module", "data"), [(WithExample, None), (WithExample, TinyData), (TinyNet, TinyData)])
@pytest.mark.parametrize("placement", ["before", "after"])
def test_the_plan_is_that_of_a_fit_which_takes_no_step(module, data, placement):
    made = module()
    before = made.net[0].weight.detach().clone()
    plan = plan_of_module(made, data and data(), placement=placement)
    assert [site.layer for site in plan.inserted] == ["net.0"]
    assert plan.placement == placement
    assert torch.equal(made.net[0].weight, before)


def test_a_module_with_nothing_to_run_it_on_is_named():
    with pytest.raises(ValueError, match="TinyNet has no example_input_array"):
        plan_of_module(TinyNet())


def test_a_module_without_nonlinearity_is_refused():
    module = WithExample()
    module.net = torch.nn.Linear(3, 1)
    with pytest.raises(NoSiteError):
        plan_of_module(module)
