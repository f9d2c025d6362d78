"""The monitor's rows against the probe in a plain loop, and training with it against training without."""

import math

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from probed import DeepNet as Net
from probed import data, plain_loss, values
from probed import fit as fit_module
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from bn_lightning.callbacks.covariate_shift import CovariateShiftMonitor
from bn_lightning.callbacks.insertion import BatchNormInsertion
from bn_lightning.errors import NoEffectWarning, StatisticsWarning, UnknownNameError
from bn_lightning.probes.covariate_shift import gradient_covariate_shift


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class ReturnsNone(Net):
    def training_step(self, batch, batch_idx):
        return None


def fit(tmp_path, *callbacks, module=Net, **options):
    return fit_module(tmp_path, module, *callbacks, **options)


class Watcher(pl.Callback):
    """Keeps parameters and batches of every step, for a computation afterwards."""

    def __init__(self):
        self.parameters, self.batches, self.states = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.parameters.append({name: part.detach().clone() for name, part in pl_module.named_parameters()})
        self.batches.append(batch)

    def on_train_end(self, trainer, pl_module):
        self.parameters.append({name: part.detach().clone() for name, part in pl_module.named_parameters()})


def test_rows_are_what_the_probe_gives_in_a_plain_loop(tmp_path):
    monitor, watcher = CovariateShiftMonitor(every_n_steps=0, steps=(0, 3), activations=False), Watcher()
    fit(tmp_path, watcher, monitor, module=Net(dropout=0.0))
    assert sorted(set(monitor.table()["step"])) == [0, 3]
    for step in (0, 3):
        model = Net(dropout=0.0).net
        found = gradient_covariate_shift(
            model,
            [watcher.batches[step]],
            {name.removeprefix("net."): part for name, part in watcher.parameters[step].items()},
            {name.removeprefix("net."): part for name, part in watcher.parameters[step + 1].items()},
            loss_fn=plain_loss,
            reference=[watcher.batches[step - 1]] if step else None,
        )
        assert [entry.layer for entry in found] == ["4", "6"]
        for entry in found:
            assert values(monitor, step, f"net.{entry.layer}") == pytest.approx(entry.numbers())
            assert entry.shift.relative > 0


def test_an_accumulated_gradient_is_one_step_of_all_its_batches(tmp_path):
    monitor, watcher = CovariateShiftMonitor(every_n_steps=1, activations=False), Watcher()
    options = {"max_steps": 2, "accumulate_grad_batches": 3, "loader": data()}
    fit(tmp_path, watcher, monitor, module=Net(dropout=0.0), **options)
    assert len(watcher.batches) == 6
    found = gradient_covariate_shift(
        Net(dropout=0.0).net,
        watcher.batches[3:],
        {name.removeprefix("net."): part for name, part in watcher.parameters[3].items()},
        {name.removeprefix("net."): part for name, part in watcher.parameters[6].items()},
        loss_fn=plain_loss,
        reference=watcher.batches[:3],
    )
    for entry in found:
        assert values(monitor, 1, f"net.{entry.layer}") == pytest.approx(entry.numbers())


def test_activations_shift_between_the_ends_of_a_step_and_drift_from_the_start(tmp_path):
    probe = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    monitor, watcher = CovariateShiftMonitor(every_n_steps=4, gradients=False, probe=probe), Watcher()
    fit(tmp_path, watcher, monitor, module=Net(dropout=0.0))

    def preactivations(number):
        model = Net(dropout=0.0)
        model.load_state_dict({**model.state_dict(), **watcher.parameters[number]})
        return model.net[:5](probe).detach().double()

    for step in (0, 4, 8):
        before, after, start = (preactivations(number) for number in (step, step + 1, 0))
        found = values(monitor, step, "net.4")
        for prefix, earlier in (("activation_shift", before), ("activation_drift", start)):
            moved = (after.mean(0) - earlier.mean(0)).abs().mean().item()
            distance = (after.sort(0).values - earlier.sort(0).values).abs().mean().item()
            # Training computes in float32.
            assert found[f"{prefix}_mean_delta"] == pytest.approx(moved, rel=1e-4, abs=1e-6)
            assert found[f"{prefix}_wasserstein"] == pytest.approx(distance, rel=1e-4, abs=1e-6)
    assert list(dict.fromkeys(monitor.table()["layer"])) == ["net.0", "net.4"]


def test_scalars_and_the_file_hold_the_table(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    monitor = CovariateShiftMonitor(every_n_steps=4)
    fit(tmp_path, monitor, logger=logger)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    table = monitor.table()
    for tag, layer, quantity in (
        ("gradient_shift_relative/00.net.4", "net.4", "gradient_shift_relative"),
        ("gradient_shift_cosine/01.net.6", "net.6", "gradient_shift_cosine"),
        ("activation_drift_wasserstein_normalised/01.net.4", "net.4", "activation_drift_wasserstein_normalised"),
    ):
        rows = table[(table["layer"] == layer) & (table["quantity"] == quantity)]
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == rows["step"].tolist() == [0, 4, 8]
        assert [scalar.value for scalar in scalars] == pytest.approx(rows["value"].tolist())
    written = pd.read_csv(tmp_path / "run" / "covariate_shift.csv", keep_default_na=False, na_values={"value": [""]})
    pd.testing.assert_frame_equal(written, table)


def test_inserted_norms_are_seen_through(tmp_path):
    module = Net()
    module.example_input_array = torch.zeros(4, 6)
    monitor = CovariateShiftMonitor(every_n_steps=4)
    fit(tmp_path, BatchNormInsertion(), monitor, module=module)
    table = monitor.table()
    assert set(table.loc[table["quantity"] == "activation_shift_wasserstein", "layer"]) == {"net.0", "net.4"}
    assert set(table.loc[table["quantity"] == "gradient_shift", "layer"]) == {"net.4", "net.6"}
    assert table["value"].isna().sum() == 0


def test_few_layers_can_be_chosen(tmp_path):
    monitor = CovariateShiftMonitor(every_n_steps=4, layers="net.6", include="net.0")
    fit(tmp_path, monitor)
    assert set(monitor.table()["layer"]) == {"net.6", "net.0"}
    with pytest.raises(UnknownNameError, match=r"No layer with trainable parameters matches 'conv\*'"):
        fit(tmp_path, CovariateShiftMonitor(layers="conv*"))


def test_dead_layers_are_nan_and_warned_of_once(tmp_path):
    monitor = CovariateShiftMonitor(every_n_steps=1, activations=False)
    with pytest.warns(
        StatisticsWarning, match=r"Gradients at step 0 .*: net\.4 is dead\. Their shift is NaN, not 0"
    ) as caught:
        fit(tmp_path, monitor, module=Net(bias=-1e3), max_steps=3)
    assert len([warning for warning in caught if warning.category is StatisticsWarning]) == 1
    found = values(monitor, 2, "net.4")
    assert found["gradient_shift_dead"] == 1
    assert math.isnan(found["gradient_shift_relative"])
    assert math.isfinite(values(monitor, 2, "net.6")["gradient_shift_cosine"])


def test_without_warnings_dead_layers_are_nan_all_the_same(tmp_path):
    monitor = CovariateShiftMonitor(every_n_steps=1, activations=False, warn=False)
    fit(tmp_path, monitor, module=Net(bias=-1e3), max_steps=3)
    assert values(monitor, 2, "net.4")["gradient_shift_dead"] == 1


def test_manual_optimization_needs_a_loss(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"of Manual, which optimizes manually\. Pass loss_fn="):
        fit(tmp_path, CovariateShiftMonitor(), module=Manual())
    module = Manual()
    module.example_input_array = torch.zeros(4, 6)
    monitor = CovariateShiftMonitor(
        every_n_steps=4, loss_fn=lambda module, batch: F.cross_entropy(module(batch[0]), batch[1])
    )
    fit(tmp_path, monitor, module=module)
    assert values(monitor, 8, "net.6")["gradient_shift_relative"] > 0


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # Lightning's own remark on the same
def test_a_step_without_a_loss_is_named(tmp_path):
    monitor = CovariateShiftMonitor(activations=False)
    with pytest.warns(StatisticsWarning, match="not measured at step 0: training_step returned no loss for any batch"):
        fit(tmp_path, monitor, module=ReturnsNone())
    assert monitor.table().empty


class Linear(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))


def test_a_model_without_nonlinearity_has_gradients_only(tmp_path):
    monitor = CovariateShiftMonitor(every_n_steps=4)
    with pytest.warns(NoEffectWarning, match="CovariateShiftMonitor compares no activations"):
        fit(tmp_path, monitor, module=Linear())
    assert set(monitor.table()["layer"]) == {"net.1"}


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="There is nothing to measure"):
        CovariateShiftMonitor(gradients=False, activations=False)
