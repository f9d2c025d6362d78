import pytest
import pytorch_lightning as pl
import torch
from probed import DeepNet, fit
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from bn_lightning.callbacks._activation_shift import ActivationShift
from bn_lightning.errors import NoSiteError


class ByHand(pl.Callback):
    """Moves what the last nonlinearity receives by 1, twice, before training."""

    def __init__(self, include=None):
        self.include, self.found = include, []

    def on_fit_start(self, trainer, pl_module):
        self.shift = ActivationShift(trainer, pl_module)

    def on_train_start(self, trainer, pl_module):
        batches = [torch.randn(20, 6)]
        assert self.shift.end_step() == ()
        self.shift.attach(pl_module, batches, of_training=False, include=self.include)
        self.shift.start(batches, {})
        for _ in range(2):
            self.shift.begin_step()
            with torch.no_grad():
                pl_module.net[4].bias += 1
            step, drift = self.shift.end_step()
            name = "wasserstein"
            self.found.append([step["net.4"][f"activation_shift_{name}"], drift["net.4"][f"activation_drift_{name}"]])
        self.shift.release()


def net():
    module = DeepNet(dropout=0.0)
    module.example_input_array = torch.randn(4, 6)
    return module


def test_a_shift_is_of_the_step_and_the_drift_since_the_start(tmp_path):
    by_hand = ByHand()
    fit(tmp_path, net(), by_hand, max_steps=1)
    assert by_hand.found == [pytest.approx([1, 1], rel=1e-5), pytest.approx([1, 2], rel=1e-5)]  # sums in float32
    assert set(by_hand.shift.state_dict()["start"]) == {"net.0", "net.4"}
    assert by_hand.shift.end_step() == ()


def test_a_model_without_nonlinearities_has_nothing_to_compare(tmp_path):
    module = DeepNet()
    module.net = torch.nn.Sequential(torch.nn.Linear(6, 3))
    module.example_input_array = torch.randn(4, 6)
    with pytest.raises(NoSiteError):
        fit(tmp_path, module, ByHand(), max_steps=1)


def test_a_manual_step_is_not_run_to_find_nonlinearities(tmp_path):
    module = DeepNet()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="DeepNet by running it, and its training_step optimizes manu"):
        fit(tmp_path, module, ByHand(), max_steps=1)
