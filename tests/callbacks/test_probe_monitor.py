"""What both monitors that run probes share: they leave no trace, survive, resume, and stand beside each other."""

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from probed import DeepNet, Interrupt, SmoothNet, data, fit, values
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bn_lightning.callbacks._probe_monitor import ProbeMonitor
from bn_lightning.callbacks.covariate_shift import CovariateShiftMonitor
from bn_lightning.callbacks.loss_smoothness import LossSmoothnessMonitor
from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.errors import StatisticsWarning
from bn_lightning.functional.covariate_shift import activation_shift

MONITORS = [(CovariateShiftMonitor, DeepNet, "covariate_shift"), (LossSmoothnessMonitor, SmoothNet, "loss_smoothness")]


def read(path):
    return pd.read_csv(path, keep_default_na=False, na_values={"value": [""]})


@pytest.mark.parametrize(("kind", "net", "file"), MONITORS)
def test_training_is_the_same_to_the_bit_with_the_monitor(tmp_path, kind, net, file):
    ended = []
    for callbacks in ([], [kind(every_n_steps=2)]):
        module, _ = fit(tmp_path, net, *callbacks)
        ended.append((module.state_dict(), module.logged, torch.rand(3)))
    for name, value in ended[0][0].items():
        assert torch.equal(value, ended[1][0][name]), name
    assert ended[0][1] == ended[1][1]
    assert len(ended[0][1]) == 2
    assert torch.equal(ended[0][2], ended[1][2])
    assert set(callbacks[0].table()["step"]) == {0, 2, 4, 6, 8}


@pytest.mark.parametrize(("kind", "net", "file"), MONITORS)
def test_what_was_measured_survives_an_exception(tmp_path, kind, net, file):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="run")
    with pytest.raises(OSError, match="on fire"):
        fit(tmp_path, net, kind(every_n_steps=2), Interrupt(), logger=logger)
    assert set(read(tmp_path / "run" / f"{file}.csv")["step"]) == {0, 2, 4}


@pytest.mark.parametrize(("kind", "net", "file"), MONITORS)
def test_several_monitors_keep_their_own_files_and_tags(tmp_path, kind, net, file):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    monitors = [kind(every_n_steps=4), kind(every_n_steps=8), kind(every_n_steps=3, name="fine")]
    fit(tmp_path, net, *monitors, logger=logger)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    first = next(tag for tag in events.Tags()["scalars"] if tag.startswith(("gradient_shift/", "smoothness/")))
    for prefix, ending, monitor in zip(("", "2.", "fine."), ("", "-2", "-fine"), monitors, strict=True):
        steps = sorted(set(monitor.table()["step"]))
        pd.testing.assert_frame_equal(read(tmp_path / "run" / f"{file}{ending}.csv"), monitor.table())
        assert [scalar.step for scalar in events.Scalars(prefix + first)] == steps
        tags = [tag for tag in events.Tags()["images"] if tag.startswith(prefix) == bool(prefix) or "." not in tag]
        assert tags
    assert [sorted(set(monitor.table()["step"])) for monitor in monitors] == [[0, 4, 8], [0, 8], [0, 3, 6]]


@pytest.mark.parametrize(("kind", "net", "file"), MONITORS)
def test_two_monitors_of_one_name_are_refused(tmp_path, kind, net, file):
    monitors = [kind(every_n_steps=4, name="a"), kind(every_n_steps=8, name="a")]
    with pytest.raises(MisconfigurationException, match=rf"2 {kind.__name__}s .* share the name 'a'.*\(name=…\)"):
        fit(tmp_path, net, *monitors)


@pytest.mark.parametrize(("kind", "net", "file"), MONITORS)
def test_figures_are_drawn_for_tensorboard_unless_told_not_to(tmp_path, kind, net, file):
    wanted = {"covariate_shift": {"gradient_shift", "activation_shift"}, "loss_smoothness": {"smoothness"}}[file]
    for drawn in (True, False):
        logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version=f"run{drawn}")
        fit(tmp_path, net, kind(every_n_steps=2, figures=drawn), logger=logger)
        events = EventAccumulator(str(tmp_path / f"run{drawn}")).Reload()
        assert set(events.Tags()["images"]) == (wanted if drawn else set())


@pytest.mark.parametrize(("kind", "net", "file"), MONITORS)
def test_the_probe_set_is_the_same_whatever_the_seed_of_the_run(tmp_path, kind, net, file):
    probes = []

    class Keeping(kind):
        def _probe_batches(self, trainer, pl_module):
            probes.append(super()._probe_batches(trainer, pl_module))
            return probes[-1]

    for seed in (1, 2):
        fit(tmp_path, net, Keeping(probe_size=20), seed=seed, max_steps=1)
    assert len(probes[0]) == 2
    for one, other in zip(*probes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "net", "file"), MONITORS)
def test_bad_arguments_are_refused(kind, net, file):
    with pytest.raises(ValueError, match="needs two samples or more, got probe_size=1"):
        kind(probe_size=1)
    with pytest.raises(ValueError, match=r"A monitor's name goes into tags and file names: .* not 'a/b'"):
        kind(name="a/b")


def test_a_monitor_says_what_it_draws():
    class Bare(ProbeMonitor):
        pass

    monitor = Bare(
        "bare",
        CovariateShiftMonitor().schedule,
        loss_fn=None,
        probe=None,
        probe_size=2,
        warn=True,
        figures=True,
        name="",
    )
    with pytest.raises(NotImplementedError):
        monitor._figures(monitor.table())


def drift(monitor, step):
    return {name: v for name, v in values(monitor, step, "net.4").items() if name.startswith("activation_drift")}


def shift_monitor():
    return CovariateShiftMonitor(every_n_steps=1, gradients=False)


def test_drift_goes_on_in_a_run_that_is_resumed(tmp_path):
    begun = DeepNet(dropout=0.0)
    _, trainer = fit(tmp_path, begun, shift_monitor(), loader=data(), max_steps=6)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    # Other weights and another seed at first, so that a start of its own would show.
    again, resumed = shift_monitor(), DeepNet(dropout=0.0)
    fit(tmp_path, resumed, again, loader=data(), max_steps=12, ckpt_path=tmp_path / "half.ckpt", seed=11)
    assert sorted(set(again.table()["step"])) == [*range(6, 12)]

    def preactivations(weights):
        model = DeepNet(dropout=0.0).net
        model.load_state_dict(weights)
        # The probe set of 60 samples comes in batches of 10, each normalised by itself.
        return torch.cat([model[:5](batch[0]).detach() for batch in data()])

    start = preactivations(begun.weights[0])
    for step in range(6, 11):
        expected = activation_shift(start, preactivations(resumed.weights[step + 1])).numbers()
        found = drift(again, step)
        assert {f"activation_drift_{name}": value for name, value in expected.items()} == pytest.approx(found)
    assert drift(again, 10)["activation_drift_wasserstein"] > 0.1


def test_drift_begins_anew_with_a_warning_where_the_probe_set_is_another(tmp_path):
    _, trainer = fit(tmp_path, DeepNet, shift_monitor(), loader=data(), max_steps=6)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = shift_monitor()
    x, y = data().dataset.tensors
    other = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x + 1, y), batch_size=10)
    with pytest.warns(StatisticsWarning, match="from the step of resuming on"):
        fit(tmp_path, DeepNet, again, loader=other, max_steps=12, ckpt_path=tmp_path / "half.ckpt")
    # One step after its start, drift is the step's shift.
    found = values(again, 6, "net.4")
    assert drift(again, 6) == pytest.approx(
        {name.replace("shift", "drift"): value for name, value in found.items() if "shift" in name}
    )


@pytest.mark.parametrize(("kind", "net", "file"), MONITORS)
def test_it_can_measure_at_the_first_step_of_epochs(tmp_path, kind, net, file):
    monitor = kind(every_n_steps=0, every_n_epochs=2)
    fit(tmp_path, net, monitor, max_steps=30)  # six steps an epoch
    assert sorted(set(monitor.table()["step"])) == [0, 12, 24]


class Handled(DeepNet):
    """Its hook around batches draws, counts and keeps statistics."""

    def __init__(self):
        super().__init__()
        self.seen = 0
        self.standardise = torch.nn.BatchNorm1d(6, affine=False)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        self.seen += len(x)
        return self.standardise(x + 0.1 * torch.randn_like(x)), y


@pytest.mark.parametrize("kind", [CovariateShiftMonitor, LossSmoothnessMonitor])
def test_batches_that_are_fetched_leave_no_trace_in_the_users_hooks(tmp_path, kind):
    ended = []
    for callbacks in ([], [kind(every_n_steps=2)]):
        module, _ = fit(tmp_path, Handled, *callbacks)
        ended.append(({**module.state_dict()}, module.seen))
    assert ended[0][1] == ended[1][1]
    for name, value in ended[0][0].items():
        assert torch.equal(value, ended[1][0][name]), name


class FrozenLater(SmoothNet):
    def on_train_epoch_start(self):
        self.net[0].requires_grad_(self.current_epoch == 0)


def test_a_layer_may_be_frozen_in_the_middle(tmp_path):
    monitor = LossSmoothnessMonitor(every_n_steps=2)
    fit(tmp_path, FrozenLater, monitor)
    table = monitor.table()
    betas = table.loc[table["quantity"] == "effective_beta_normalised", "value"]
    assert set(table["step"]) == {0, 2, 4, 6, 8}
    assert betas.notna().all()


class Skipping(DeepNet):
    """Skips the rest of the first epoch at its fourth batch."""

    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        return -1 if (self.current_epoch, batch_idx) == (0, 3) else None


@pytest.mark.parametrize("options", [{"every_n_steps": 0, "every_n_epochs": 1}, {"steps": [3], "every_n_steps": 9}])
@pytest.mark.parametrize("kind", [CovariateShiftMonitor, LossSmoothnessMonitor, ActivationMonitor])
def test_an_epoch_after_one_that_a_hook_cut_short_has_a_first_step(tmp_path, kind, options):
    monitor = kind(**options)
    fit(tmp_path, Skipping, monitor, max_steps=12)
    table = monitor.table()
    assert sorted(set(table["step"])) == [0, 3, 9]
    assert not table.duplicated(["step", "layer", "quantity"]).any()
