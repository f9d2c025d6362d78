"""Replicas, as `nn.DataParallel` makes them of a model, one for each device."""

import copy

import pytest
import torch
from cases import CASES
from torch import nn

from bn_lightning.surgery.attach import remove_batch_norm
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations


def replica_of(model: nn.Module) -> nn.Module:
    """What torch.nn.parallel.replicate does for one device, with doubled parameters so that they can be told apart."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            if child is not None:
                replica._modules[name] = copies[child]
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.detach() * 2)
        for name, buffer in module._buffers.items():
            replica._buffers[name] = None if buffer is None else buffer.clone()
    return copies[model]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_replica_runs_with_its_own_parameters_and_statistics(case, placement):
    model = case.make()
    insert_batch_norm(model, case.example(), placement=placement)
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    replica = replica_of(model)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    expected = doubled(*case.example())
    torch.manual_seed(0)
    torch.testing.assert_close(replica(*case.example()), expected)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for (name, found), buffer in zip(replica.named_buffers(), doubled.buffers(), strict=True):
        torch.testing.assert_close(found, buffer, msg=name)


def test_a_replica_of_a_tapped_model_runs_the_replica():
    case = next(case for case in CASES if case.name == "residual_functional")
    model = case.make()
    sites = plan_insertion(model, case.example()).sites
    insert_batch_norm(model, case.example())
    seen = []
    with tap_preactivations(model, sites, lambda layer, *rest: seen.append(layer)):
        replica_of(model)(*case.example())
    assert seen == ["first", "second"]
    remove_batch_norm(model)
    assert not any("_replicate_for_data_parallel" in vars(module) for module in model.modules())
