import copy
import pickle

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from bn_lightning.callbacks._dry_run import IdleOptimizer, IdleScheduler, idle_optimizers


class Step(pl.LightningModule):
    def __init__(self, configured) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Linear(2, 1)
        self.configured = configured

    def training_step(self, batch, batch_idx):
        return torch.is_grad_enabled()

    def configure_optimizers(self):
        return self.configured(torch.optim.SGD(self.parameters(), lr=0.1))


def decay(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.parametrize(
    ("configured", "optimizers", "schedulers"),
    [
        (lambda one: one, 1, 0),
        (lambda one: [one], 1, 0),
        (lambda one: [one, one], 2, 0),
        (lambda one: ([one, one], [decay(one)]), 2, 1),
        (lambda one: ([one], [{"scheduler": decay(one), "interval": "step"}, decay(one)]), 1, 2),
        (lambda one: {"optimizer": one, "lr_scheduler": decay(one)}, 1, 1),
        (lambda one: ({"optimizer": one, "lr_scheduler": {"scheduler": decay(one)}}, {"optimizer": one}), 2, 1),
        (lambda one: None, 0, 0),
    ],
)
def test_every_form_that_configure_optimizers_may_return(configured, optimizers, schedulers):
    module = Step(configured)
    with idle_optimizers(module):
        given, decays = module.optimizers(), module.lr_schedulers()
    # A single one comes alone, none as Lightning gives none: an empty list and None.
    assert (len(given) if isinstance(given, list) else 1) == optimizers
    assert (0 if decays is None else len(decays) if isinstance(decays, list) else 1) == schedulers


def test_nothing_that_a_manual_step_does_changes_a_parameter():
    module = Step(lambda one: ([one], [decay(one)]))
    before = module.net.weight.detach().clone()
    with idle_optimizers(module), torch.no_grad():
        optimizer, scheduler = module.optimizers(), module.lr_schedulers()
        assert module.training_step(None, 0), "penalties need gradients"
        module.toggle_optimizer(optimizer)
        with module.toggled_optimizer(optimizer), optimizer.toggle_model():
            optimizer.zero_grad()
            module.manual_backward(torch.zeros(()))
            module.clip_gradients(optimizer, gradient_clip_val=0.1)
            assert optimizer.step(closure=lambda: "loss") == "loss"
            assert optimizer.step() is None
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.1 == scheduler.get_last_lr()[0]
        module.net.weight.add_(1)
    assert torch.equal(module.net.weight, before)
    assert not {"optimizers", "training_step", "manual_backward"} & set(vars(module))


def test_what_the_instance_had_comes_back_also_after_an_error():
    module = Step(lambda one: one)
    mine = module.training_step = lambda batch, index: "mine"
    with pytest.raises(ZeroDivisionError), idle_optimizers(module):
        1 / 0  # noqa: B018 - to raise
    assert vars(module)["training_step"] is mine


def test_a_module_with_automatic_optimization_is_left_alone():
    module = Step(lambda one: 1 / 0)
    module.automatic_optimization = True
    with idle_optimizers(module):
        assert "optimizers" not in vars(module)


@pytest.mark.parametrize("kind", [IdleOptimizer, IdleScheduler])
def test_idle_parts_copy_and_pickle(kind):
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.3)
    part = kind(optimizer if kind is IdleOptimizer else decay(optimizer))
    for twin in (copy.copy(part), pickle.loads(pickle.dumps(part))):
        assert twin.state_dict().keys() == part.state_dict().keys()
