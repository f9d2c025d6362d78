"""Models that are not whole when a fit begins, and copies of a monitor at work."""

import copy
import math
import pickle
import warnings

import pytest
import pytorch_lightning as pl
import torch
from monitored import SmallNet, quiet_trainer, small_data
from rich.console import Console
from torch import nn

from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.errors import NoEffectWarning

EVERYTHING = ("preactivations", "activations", "gradients")


class Lazy(SmallNet):
    def __init__(self, **options):
        super().__init__(**options)
        self.net[0], self.net[3] = nn.LazyLinear(8), nn.LazyLinear(5)


def fit(tmp_path, *callbacks, module=None, **options):
    torch.manual_seed(0)
    module = module or SmallNet()
    quiet_trainer(tmp_path, callbacks=list(callbacks), **{"max_steps": 5, **options}).fit(module, small_data())
    return module


@pytest.mark.parametrize("example", [True, False])
def test_lazy_layers_are_recorded_once_training_has_built_them(tmp_path, example):
    torch.manual_seed(0)
    expected = fit(tmp_path, module=Lazy(example=example))
    monitor = ActivationMonitor(
        every_n_steps=1, record=EVERYTHING, layers="*", units={"net.3": "typical"}, probe_size=20
    )
    torch.manual_seed(0)
    with pytest.warns(NoEffectWarning, match=r"has built the lazy layers net\.0, net\.3 of Lazy"):
        module = fit(tmp_path, monitor, module=Lazy(example=example))
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    table = monitor.table().set_index(["step", "layer", "quantity"])["value"]
    assert sorted(set(table.index.get_level_values("step"))) == [1, 2, 3, 4, 5]
    got = table[2, "net.0", "preactivation_mean"]
    assert got == pytest.approx(module.first_preactivations(2).mean().item(), rel=1e-5, abs=1e-6)
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_monitor_can_be_copied_and_pickled_before_during_and_after_a_fit(tmp_path, duplicate):
    monitor = ActivationMonitor(every_n_steps=2, units={"last": "typical"}, probe=torch.randn(20, 6))
    copies = [duplicate(monitor)]

    class Copy(pl.Callback):
        def on_train_batch_end(self, *args):
            copies.append(duplicate(monitor))

    fit(tmp_path, monitor, Copy())
    assert len(copies) == 6
    last = duplicate(monitor)
    assert last.state_key == monitor.state_key
    assert last.table().equals(monitor.table())
    assert copies[-1].table()["step"].max() == 4
    # A copy made during a fit follows the same unit in its own.
    fit(tmp_path, copies[3])
    followed = {one for one in monitor.table()["quantity"] if "unit" in one}
    assert followed == {one for one in copies[3].table()["quantity"] if "unit" in one}
    assert len(followed) == 3


def test_a_copy_writes_to_a_console_of_its_own():
    given = Console(quiet=True)
    assert pickle.loads(pickle.dumps(ActivationMonitor(console=given))).console is True
    assert pickle.loads(pickle.dumps(ActivationMonitor())).console is False


def test_layers_that_change_within_an_epoch_are_left_out_until_the_next(tmp_path):
    class Swapping(SmallNet):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                self.net[0] = nn.Linear(6, 12)
                self.net[3] = nn.Linear(12, 5)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    monitor = ActivationMonitor(every_n_steps=1, record=EVERYTHING, layers=nn.Sigmoid, warn=False, mode="exact")
    module = Swapping(dropout=0)
    fit(tmp_path, monitor, module=module)
    table = monitor.table().set_index(["step", "layer", "quantity"])["value"]
    assert table[1, "net.0", "preactivation_mean"] == pytest.approx(module.first_preactivations(1).mean().item())
    for kind in ("preactivation", "activation", "preactivation_gradient"):
        assert all(math.isnan(table[step, "net.0", f"{kind}_mean"]) for step in (2, 3, 4))


def test_what_was_told_of_a_layer_is_not_told_again_after_a_change(tmp_path):
    class Growing(SmallNet):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.net.append(nn.Tanh()).append(nn.Linear(3, 3))

    module = Growing(learning_rate=0.0, dropout=0)
    with torch.no_grad():
        module.net[0].bias.fill_(100.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, ActivationMonitor(every_n_steps=1), module=module, max_steps=-1, max_epochs=2)
    messages = [str(one.message) for one in caught]
    assert sum("channels of net.0 were never active" in one for one in messages) == 1
    assert sum("of net.0 saturate sigmoid" in one for one in messages) == 1
    assert any("new: net.5" in one for one in messages)
