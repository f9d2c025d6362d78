import math
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import scipy.stats
import torch
from monitored import SmallNet, quiet_trainer, small_data
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint
from torchmetrics.classification import MulticlassAccuracy

from bn_lightning.callbacks._activation_monitor.run import ActivationRun
from bn_lightning.callbacks.insertion import BatchNormInsertion
from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.errors import NoEffectWarning, StatisticsWarning, UnknownNameError

TESTS = Path(__file__).parents[1]


def values(table, step, layer="net.0", prefix="preactivation_"):
    rows = table[(table["step"] == step) & (table["layer"] == layer)]
    return {name.removeprefix(prefix): value for name, value in zip(rows["quantity"], rows["value"], strict=True)}


def expected(x, flat=lambda x: np.abs(x) > 4.3567):  # sigmoid' < 1/80 there
    x = x.numpy()
    names = {"mean": x.mean(), "var": x.var(), "min": x.min(), "max": x.max(), "nonfinite": 0.0}
    names |= {"skewness": scipy.stats.skew(x, axis=None), "kurtosis": scipy.stats.kurtosis(x, axis=None)}
    names |= {"saturated": flat(x).mean(), "dead": flat(x).all(0).mean()}
    return names | {f"p{p}": np.percentile(x, p) for p in (15, 50, 85)}


def approximately(numbers):
    # Training computes in float32.
    return pytest.approx(numbers, rel=1e-5, abs=1e-6)


def hooks(module):
    return [
        hook for part in module.modules() for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    ] + [part for part in module.modules() if "forward" in vars(part)]


def fit(tmp_path, monitor, module=None, data=None, **options):
    torch.manual_seed(0)
    module = module or SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], **{"max_steps": 12, **options})
    trainer.fit(module, data or small_data())
    return module, trainer


def test_due_steps_carry_the_statistics_of_their_own_forward(tmp_path):
    monitor = ActivationMonitor(every_n_steps=5, dense_until=2, steps=(7,))
    module, _ = fit(tmp_path, monitor)
    table = monitor.table()
    assert list(table.columns) == ["step", "layer", "quantity", "value"]
    assert sorted(set(table["step"])) == [0, 1, 5, 7, 10]
    assert list(dict.fromkeys(table["layer"])) == ["net.0", "net.3"]
    for step in (0, 1, 5, 7, 10):
        assert values(table, step) == approximately(expected(module.first_preactivations(step)))


def test_micro_batches_of_an_accumulated_gradient_are_one_step(tmp_path):
    monitor = ActivationMonitor(every_n_steps=1)
    options = {"accumulate_grad_batches": 4, "max_epochs": 1, "max_steps": -1}
    module, trainer = fit(tmp_path, monitor, data=small_data(samples=56), **options)
    assert trainer.global_step == 2
    assert [step for step, _ in module.inputs] == [0, 0, 0, 0, 1, 1]
    for step in (0, 1):  # the second step has an uneven micro-batch of 6
        assert values(monitor.table(), step) == approximately(expected(module.first_preactivations(step)))


def test_the_first_step_of_every_so_many_epochs_is_recorded(tmp_path):
    monitor = ActivationMonitor(every_n_steps=0, every_n_epochs=2, steps=(7,))
    fit(tmp_path, monitor, max_epochs=5, max_steps=-1)  # 6 steps an epoch
    assert sorted(set(monitor.table()["step"])) == [0, 7, 12, 24]


def test_epochs_are_counted_where_gradients_are_accumulated_and_a_run_resumed(tmp_path):
    first, second = (ActivationMonitor(every_n_steps=0, every_n_epochs=1) for _ in range(2))
    _, trainer = fit(tmp_path, first, max_epochs=2, max_steps=-1, accumulate_grad_batches=4)
    assert sorted(set(first.table()["step"])) == [0, 2]
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    trainer = quiet_trainer(tmp_path, callbacks=[second], max_epochs=4, accumulate_grad_batches=4)
    trainer.fit(SmallNet(), small_data(), ckpt_path=tmp_path / "last.ckpt")
    assert sorted(set(second.table()["step"])) == [4, 6]


@pytest.mark.parametrize(("options", "last"), [({"max_epochs": 3}, 18), ({"max_steps": 15, "max_epochs": 3}, 12)])
def test_single_units_are_probed_at_the_end_of_a_whole_epoch(tmp_path, options, last):
    monitor = ActivationMonitor(every_n_steps=0, every_n_epochs=1, units="typical", probe=torch.randn(20, 6))
    fit(tmp_path, monitor, **{"max_steps": -1, **options})
    table = monitor.table()
    probed = table[table["quantity"].str.contains("unit")]["step"]
    assert probed.max() == last


def test_an_epoch_whose_first_batch_goes_on_with_a_step_begins_with_the_next(tmp_path):
    class Manual(SmallNet):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            if len(self.inputs) % 4 == 0:  # an epoch has six batches
                self.optimizers().step()
                self.optimizers().zero_grad()

    monitor = ActivationMonitor(every_n_steps=0, every_n_epochs=1)
    fit(tmp_path, monitor, Manual(), max_epochs=3, max_steps=-1)
    assert sorted(set(monitor.table()["step"])) == [0, 2, 3]


def test_a_sampled_layer_is_within_its_error(tmp_path):
    monitor = ActivationMonitor(every_n_steps=1, max_elements=200)
    module, _ = fit(tmp_path, monitor, data=small_data(samples=500, batch_size=250), max_steps=2)
    truth = module.first_preactivations(1)
    error = truth.std().item() / math.sqrt(200)
    assert values(monitor.table(), 1)["mean"] == pytest.approx(truth.mean().item(), abs=4 * error)
    assert values(monitor.table(), 1)["mean"] != pytest.approx(truth.mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"units": {"net.1": [0, 2], "last": "typical"}}, {"mode": "exact", "layers": "*"}]
)
def test_training_is_the_same_to_the_bit_with_the_monitor(tmp_path, options):
    ended = []
    for callbacks in ([], [ActivationMonitor(every_n_steps=2, probe=torch.randn(20, 6), **options)]):
        torch.manual_seed(3)
        module = SmallNet()
        module.norm = nn.BatchNorm1d(6)
        module.net.insert(0, module.norm)
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=2)
        trainer.fit(module, small_data(shuffle=True))
        gradients = [parameter.grad for parameter in module.parameters()]
        ended.append((module.state_dict(), torch.get_rng_state(), gradients))
    for name, value in ended[0][0].items():
        assert torch.equal(value, ended[1][0][name]), name
    assert torch.equal(ended[0][1], ended[1][1])
    for before, after in zip(ended[0][2], ended[1][2], strict=True):
        assert torch.equal(before, after)


def test_validation_and_the_sanity_check_are_never_recorded(tmp_path):
    monitor = ActivationMonitor(every_n_steps=1)
    torch.manual_seed(0)
    module = SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], max_steps=4, num_sanity_val_steps=2, val_check_interval=1)
    large = small_data().dataset
    shifted = torch.utils.data.TensorDataset(large.tensors[0] + 1000, large.tensors[1])
    trainer.fit(module, small_data(), torch.utils.data.DataLoader(shifted, batch_size=10))
    for step in range(4):
        assert values(monitor.table(), step) == approximately(expected(module.first_preactivations(step)))


def test_hooks_are_gone_after_fit(tmp_path):
    module, _ = fit(tmp_path, ActivationMonitor(every_n_steps=2))
    assert hooks(module) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_exception_and_rows_are_kept(tmp_path, error):
    class Fails(SmallNet):
        def on_after_backward(self):
            if self.trainer.global_step == 3:
                raise error("stop")

    monitor, module = ActivationMonitor(every_n_steps=1), Fails()
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=9)
    with pytest.raises((error, SystemExit)):
        trainer.fit(module, small_data())
    assert hooks(module) == []
    assert sorted(set(monitor.table()["step"])) == [0, 1, 2]
    assert len(pd.read_csv(Path(logger.log_dir) / "activations.csv")) == len(monitor.table())


def test_recomputed_activations_of_gradient_checkpointing_are_not_recorded_again(tmp_path, monkeypatch):
    class Checkpointed(SmallNet):
        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=False)

    data = small_data(samples=10)
    data.dataset.tensors[0][0, 0] = torch.inf
    monitor, seen, original = ActivationMonitor(every_n_steps=1), [], ActivationRun.receive
    monkeypatch.setattr(ActivationRun, "receive", lambda run, *args: (seen.append(args[0]), original(run, *args)))
    with pytest.warns(StatisticsWarning, match="Non-finite"):
        fit(tmp_path, monitor, Checkpointed(), data=data, max_steps=1)
    assert seen.count("net.0") == 2  # forward and recomputation both pass the hook
    assert values(monitor.table(), 0)["nonfinite"] == 8


def test_steps_skipped_by_a_batch_with_several_optimizers_are_caught_up(tmp_path):
    class TwoSteps(SmallNet):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

    monitor = ActivationMonitor(every_n_steps=0, steps=(3,))
    fit(tmp_path, monitor, TwoSteps(), max_steps=8)
    assert set(monitor.table()["step"]) == {4}


def test_units_are_followed_on_the_probe_set_in_training_mode(tmp_path):
    probe = torch.randn(50, 6, generator=torch.Generator().manual_seed(5))
    monitor = ActivationMonitor(every_n_steps=4, units={"net.0": [3, 1], "net.*": [2]}, probe=probe)
    module, trainer = fit(tmp_path, monitor)
    weights = {**module.weights, trainer.global_step: module.state_dict()}
    for step in (0, 4, 8, 12):
        rows = values(monitor.table(), step)
        truth = probe.double() @ weights[step]["net.0.weight"].double().T + weights[step]["net.0.bias"].double()
        for unit in (3, 1, 2):
            for p in (15, 50, 85):
                assert rows[f"unit{unit}_p{p}"] == approximately(np.percentile(truth[:, unit].numpy(), p))
    assert "unit2_p50" in values(monitor.table(), 4, "net.3")


def test_the_typical_unit_has_the_median_nearest_all_medians(tmp_path):
    probe = torch.randn(50, 6, generator=torch.Generator().manual_seed(5))
    monitor = ActivationMonitor(every_n_steps=4, units={"net.0": "typical"}, probe=probe)
    module, _ = fit(tmp_path, monitor)
    start = module.weights[0]
    medians = np.median((probe @ start["net.0.weight"].T + start["net.0.bias"]).numpy(), axis=0)
    typical = int(np.abs(medians - np.median(medians)).argmin())
    followed = {name for name in monitor.table()["quantity"] if "unit" in name}
    assert followed == {f"preactivation_unit{typical}_p{p}" for p in (15, 50, 85)}


def test_a_resumed_run_follows_the_same_typical_unit(tmp_path):
    probe = torch.randn(50, 6, generator=torch.Generator().manual_seed(5))
    first = ActivationMonitor(every_n_steps=2, units="typical", probe=probe)
    _, trainer = fit(tmp_path, first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    probe = torch.full((20, 6), 3.0) + torch.randn(20, 6)
    second, fresh = (ActivationMonitor(every_n_steps=n, units="typical", probe=probe) for n in (2, 3))
    quiet_trainer(tmp_path, callbacks=[second, fresh], max_epochs=2).fit(
        SmallNet(), small_data(), ckpt_path=tmp_path / "last.ckpt"
    )
    quantities = [set(monitor.table()["quantity"]) for monitor in (first, second, fresh)]
    assert quantities[0] == quantities[1]
    assert quantities[0] != quantities[2]  # which has no state in the checkpoint and picks anew
    assert sorted(set(second.table()["step"])) == [6, 8, 10, 12]


def test_without_a_probe_the_first_training_samples_are_used_and_training_loses_none(tmp_path):
    monitor = ActivationMonitor(every_n_steps=3, units={"net.0": [0]}, probe_size=25)
    module, _ = fit(tmp_path, monitor, max_epochs=1, max_steps=-1)
    data = small_data()
    assert len(module.inputs) == len(data)
    for (_, x), (wanted, _) in zip(module.inputs, data, strict=True):
        assert torch.equal(x, wanted)
    probe = data.dataset.tensors[0][:30].double()  # whole batches of 10
    start = module.weights[0]
    truth = (probe @ start["net.0.weight"].double().T + start["net.0.bias"].double())[:, 0]
    assert values(monitor.table(), 0)["unit0_p50"] == approximately(truth.quantile(0.5).item())


class Counting(SmallNet):
    """Without an example, so that its training_step is run to find sites and to probe; it keeps a metric."""

    def __init__(self):
        super().__init__(example=False)
        self.accuracy = MulticlassAccuracy(3)
        self.final = None

    def training_step(self, batch, batch_idx):
        self.accuracy(self(batch[0]), batch[1])
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self.final = self.accuracy.compute()
        self.log("accuracy", self.accuracy)


def test_a_module_without_an_example_is_probed_by_its_training_step_and_its_metrics_come_back(tmp_path):
    ended = []
    for callbacks in ([], [ActivationMonitor(every_n_steps=2, units={"net.0": [0]}, probe_size=20)]):
        torch.manual_seed(0)
        module = Counting()
        quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(module, small_data())
        ended.append(module.final)
    assert torch.equal(*ended)
    assert "preactivation_unit0_p50" in set(callbacks[0].table()["quantity"])


@pytest.mark.parametrize("placement", ["before", "after"])
def test_layers_keep_their_names_and_norms_show_when_they_are_inserted(tmp_path, placement):
    monitor = ActivationMonitor(every_n_steps=1, exclude="net.3")
    torch.manual_seed(0)
    module = SmallNet()
    quiet_trainer(tmp_path, callbacks=[BatchNormInsertion(placement=placement), monitor], max_steps=2).fit(
        module, small_data()
    )
    assert set(monitor.table()["layer"]) == {"net.0"}
    first = values(monitor.table(), 0)
    normalised = placement == "before"
    assert (abs(first["mean"]) < 1e-6) == normalised
    assert (abs(first["var"] - 1) < 1e-3) == normalised


def test_a_shared_layer_has_a_row_for_each_call(tmp_path):
    class Shared(SmallNet):
        def __init__(self):
            super().__init__(dropout=0)
            self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(torch.relu(self.fc(torch.relu(self.fc(x)))))

    module, monitor = Shared(), ActivationMonitor(every_n_steps=1)
    fit(tmp_path, monitor, module, max_steps=1, data=small_data(samples=10))
    weights, x = module.weights[0], module.inputs[0][1].double()
    first = x @ weights["fc.weight"].double().T + weights["fc.bias"].double()
    second = first.relu() @ weights["fc.weight"].double().T + weights["fc.bias"].double()
    assert values(monitor.table(), 0, "fc") == approximately(expected(first, lambda x: x <= 0))
    assert values(monitor.table(), 0, "fc-2") == approximately(expected(second, lambda x: x <= 0))


def test_nonfinite_values_are_counted_and_told(tmp_path):
    data = small_data(samples=10)
    data.dataset.tensors[0][0, 0] = torch.inf
    monitor = ActivationMonitor(every_n_steps=1)
    with pytest.warns(StatisticsWarning, match=r"step 0: 8 in net\.0"):
        fit(tmp_path, monitor, data=data, max_steps=1)
    assert values(monitor.table(), 0)["nonfinite"] == 8
    assert math.isfinite(values(monitor.table(), 0)["mean"])


def test_bfloat16_training_is_recorded(tmp_path):
    monitor = ActivationMonitor(every_n_steps=1)
    module, _ = fit(tmp_path, monitor, precision="bf16-mixed", max_steps=1)
    truth = module.first_preactivations(0)
    assert values(monitor.table(), 0)["mean"] == pytest.approx(truth.mean().item(), abs=0.01)


# torch.compile hides this warning of its own by a filter that does not stand up to errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_forward_is_recorded(tmp_path):
    class Compiled(SmallNet):
        def __init__(self):
            super().__init__(dropout=0)
            self.net.compile(backend="eager")

    torch._dynamo.reset()
    counters.clear()
    module, monitor = Compiled(), ActivationMonitor(every_n_steps=2)
    fit(tmp_path, monitor, module, max_steps=5)
    for step in (0, 2, 4):
        assert values(monitor.table(), step) == approximately(expected(module.first_preactivations(step)))
    assert not counters["graph_break"]


def test_exact_mode_knows_extremes_and_the_dead_where_a_sample_does_not(tmp_path):
    class Wide(SmallNet):
        def __init__(self):
            super().__init__(dropout=0)
            self.net[0], self.net[3] = nn.Linear(6, 300), nn.Linear(300, 5)

    both = [ActivationMonitor(every_n_steps=1, mode=mode) for mode in ("exact", "sampled")]
    torch.manual_seed(0)
    module = Wide()
    quiet_trainer(tmp_path, callbacks=both, max_steps=2).fit(module, small_data())
    exact, sampled = (values(monitor.table(), 1) for monitor in both)
    assert exact == approximately(expected(module.first_preactivations(1)))
    assert exact.keys() - sampled.keys() == {"min", "max", "dead"}
    assert sampled["mean"] != exact["mean"]


def test_outputs_are_recorded_beside_pre_activations(tmp_path):
    monitor = ActivationMonitor(every_n_steps=1, layers=[nn.Sigmoid, "net.5"], include="net.0")
    module, _ = fit(tmp_path, monitor, SmallNet(dropout=0), max_steps=2)
    table = monitor.table()
    assert list(dict.fromkeys(zip(table["layer"], table["quantity"].str.partition("_")[0], strict=True))) == [
        ("net.0", "preactivation"),
        ("net.1", "output"),
        ("net.4", "output"),
        ("net.5", "output"),
    ]
    truth = module.first_preactivations(1).sigmoid().numpy()
    found = values(table, 1, "net.1", prefix="output_")
    assert found["mean"] == approximately(truth.mean())
    assert found["max"] == approximately(truth.max())
    assert "saturated" not in found


def test_outputs_alone_can_be_recorded(tmp_path):
    module = SmallNet()
    module.net = nn.Linear(6, 3)
    monitor = ActivationMonitor(layers="net")
    fit(tmp_path, monitor, module, max_steps=1)
    assert set(monitor.table()["layer"]) == {"net"}


def test_a_dying_network_is_told_and_silence_can_be_had(tmp_path):
    class Dead(SmallNet):
        def __init__(self):
            super().__init__()
            self.net[1] = nn.ReLU()
            nn.init.constant_(self.net[0].bias, -100.0)

    with pytest.warns(StatisticsWarning, match=r"8 of 8 channels of net\.0 were never active.*step 2 the latest"):
        fit(tmp_path, ActivationMonitor(every_n_steps=1), Dead(), max_steps=5)
    fit(tmp_path, ActivationMonitor(every_n_steps=1, warn=False), Dead(), max_steps=5)


@pytest.mark.parametrize(
    ("names", "expected"), [(("", "", "deep"), ["", "2", "deep"]), (("a", "", ""), ["a", "", "2"])]
)
def test_several_monitors_write_files_and_tags_of_their_own(tmp_path, names, expected):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="run")
    layers = ("net.0", "net.3", "net.*")
    monitors = [
        ActivationMonitor(every_n_steps=2, include=layer, name=name) for layer, name in zip(layers, names, strict=True)
    ]
    quiet_trainer(tmp_path, callbacks=monitors, logger=logger, max_steps=4).fit(SmallNet(), small_data())
    header = set(pd.read_csv(tmp_path / "run" / "metrics.csv").columns)
    for monitor, layer, name in zip(monitors, layers, expected, strict=True):
        table = pd.read_csv(tmp_path / "run" / (f"activations-{name}.csv" if name else "activations.csv"))
        pd.testing.assert_frame_equal(table, monitor.table(), check_dtype=False)
        start = f"{name}.preactivation_mean/00." if name else "preactivation_mean/00."
        assert start + layer.replace("*", "0") in header


@pytest.mark.parametrize("names", [("a", "a"), ("2", "", "")])
def test_two_monitors_of_one_name_are_refused(tmp_path, names):
    monitors = [ActivationMonitor(steps=(number,), name=name) for number, name in enumerate(names)]
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match=f"share the name '{names[0]}'"):
        quiet_trainer(tmp_path, callbacks=monitors, max_steps=1).fit(SmallNet(), small_data())


def test_a_manual_training_step_is_looked_at_without_a_step_of_its_optimizers(tmp_path):
    class Manual(SmallNet):
        def __init__(self):
            super().__init__(example=False)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    torch.manual_seed(0)
    plain, watched = Manual(), Manual()
    watched.load_state_dict(plain.state_dict())
    monitor = ActivationMonitor(every_n_steps=1, layers="net.5")
    for module, callbacks in ((plain, []), (watched, [monitor])):
        torch.manual_seed(1)
        quiet_trainer(tmp_path, callbacks=callbacks, max_steps=3).fit(module, small_data())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert sorted(set(monitor.table()["step"])) == [0, 1, 2]


def test_a_model_without_nonlinearities_is_told_so(tmp_path):
    module = SmallNet()
    module.net = nn.Linear(6, 3)
    monitor = ActivationMonitor()
    with pytest.warns(NoEffectWarning, match=r"records nothing.*SmallNet\.forward"):
        fit(tmp_path, monitor, module)
    assert monitor.table().empty
    assert list(monitor.table().columns) == ["step", "layer", "quantity", "value"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": "nett.0"}, UnknownNameError, r"'nett.0'.*net\.0"),
        ({"exclude": ["head"]}, UnknownNameError, "No monitored layer matches 'head'"),
        ({"units": {"net.9": [0]}}, UnknownNameError, r"'net\.9'"),
        ({"layers": nn.Conv2d}, UnknownNameError, "is a Conv2d; there are Dropout, Linear, "),
        ({"units": {"net.0": [8]}}, ValueError, r"units 0 to 7.*cannot follow 8"),
    ],
)
def test_names_and_units_that_do_not_exist_are_refused(tmp_path, options, error, message):
    module = SmallNet()
    with pytest.raises(error, match=message):
        fit(tmp_path, ActivationMonitor(**options), module)
    assert hooks(module) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "never acts"),
        ({"dense_until": -1}, "may be negative"),
        ({"every_n_epochs": -1}, "may be negative"),
        ({"percentiles": ()}, "between 0 and 100"),
        ({"percentiles": (150,)}, "between 0 and 100"),
        ({"percentiles": (0, 50)}, "extremes, which a sample cannot say: mode='exact' gives them as min and max"),
        ({"percentiles": (50, 100)}, "extremes"),
        ({"record": "gradients"}, "leaves nothing to record"),
        ({"record": "activation"}, "Did you mean 'activations'"),
        ({"record": "activations", "units": "typical"}, "follows pre-activations, which record='activations' leaves"),
        ({"table_format": "xls"}, "no table_format 'xls'"),
        ({"probe_size": 1}, "two samples or more"),
        ({"max_elements": 0}, "max_elements must be at least 1"),
        ({"name": "a/b"}, "letters, digits, _ and -, not 'a/b'"),
        ({"mode": "all"}, "mode 'sampled' or 'exact', not 'all'"),
    ],
)
def test_impossible_arguments_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ActivationMonitor(**options)


def test_units_of_outputs_alone_are_refused(tmp_path):
    module = SmallNet()
    module.net = nn.Linear(6, 3)
    with pytest.raises(UnknownNameError, match=r"none was found in SmallNet\.forward whose pre-activation"):
        fit(tmp_path, ActivationMonitor(layers="net", units="typical"), module)


def test_activations_and_gradients_are_recorded_on_demand(tmp_path):
    class Kept(SmallNet):
        gradients: ClassVar = {}

        def forward(self, x):
            hidden = self.net[0](x)
            step = self.trainer.global_step
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient: self.gradients.update({step: gradient.clone()}))
            return self.net[1:](hidden)

    monitor = ActivationMonitor(every_n_steps=2, record=("gradients", "activations", "preactivations"), layers="net.5")
    module, _ = fit(tmp_path, monitor, Kept(dropout=0), max_steps=3)
    table = monitor.table()
    truth = module.first_preactivations(2)
    found = values(table, 2, prefix="")
    assert found["preactivation_mean"] == approximately(truth.mean().item())
    assert found["activation_mean"] == approximately(truth.sigmoid().mean().item())
    gradient = module.gradients[2].double()
    assert found["preactivation_gradient_norm"] == approximately(gradient.norm().item())
    assert found["preactivation_gradient_mean"] == approximately(gradient.mean().item())
    assert "activation_gradient_norm" in found
    assert "output_gradient_norm" in values(table, 2, "net.5", prefix="")


def test_a_nonlinearity_that_hides_what_it_returns_is_named(tmp_path):
    class Spelled(SmallNet):
        def forward(self, x):
            hidden = self.net[0](x)
            return self.net[3:](torch.where(hidden > 0, hidden, 0.0))

    monitor = ActivationMonitor(every_n_steps=2, record=("preactivations", "activations"))
    with pytest.warns(NoEffectWarning, match=r"cannot see what the nonlinearities behind net\.0 return") as told:
        fit(tmp_path, monitor, Spelled(), max_steps=3)
    assert not [one for one in told if one.category is StatisticsWarning]
    finite = monitor.table().dropna()
    assert "activation_mean" in set(finite[finite["layer"] == "net.3"]["quantity"])
    assert "activation_mean" not in set(finite[finite["layer"] == "net.0"]["quantity"])


def test_what_is_not_asked_for_is_not_recorded(tmp_path):
    monitor = ActivationMonitor(every_n_steps=2, record="activations")
    fit(tmp_path, monitor, max_steps=3)
    assert set(monitor.table()["quantity"].str.partition("_")[0]) == {"activation"}
    monitor = ActivationMonitor(every_n_steps=2, record="gradients", layers="net.3")
    fit(tmp_path, monitor, max_steps=3)
    assert set(monitor.table()["layer"]) == {"net.3"}
    assert {"output_mean", "output_gradient_norm"} < set(monitor.table()["quantity"])


def test_keys_of_older_checkpoints_are_kept_and_new_settings_have_their_own():
    key = ActivationMonitor(every_n_steps=5, include="net.*").state_key
    schedule = "Schedule(every_n_steps=5, dense_until=0, steps=())"
    assert key == f"ActivationMonitor({schedule}, (15, 50, 85), {{}}, 'net.*', None, 1024)"
    options = [
        {},
        {"every_n_epochs": 1},
        {"record": "activations"},
        {"mode": "exact"},
        {"layers": "net"},
        {"name": "a"},
    ]
    assert len({ActivationMonitor(every_n_steps=5, **more).state_key for more in options}) == len(options)
    assert ActivationMonitor(console=True, figures=False).state_key == ActivationMonitor().state_key


@pytest.mark.parametrize("options", [{"fast_dev_run": 3}, {"limit_train_batches": 0.5, "max_epochs": 2}])
def test_short_runs_are_recorded(tmp_path, options):
    monitor = ActivationMonitor(every_n_steps=0, every_n_epochs=1, console=True)
    fit(tmp_path, monitor, **{"max_steps": -1, **options})
    assert sorted(set(monitor.table()["step"])) == ([0] if "fast_dev_run" in options else [0, 3])


def test_manual_optimization_is_not_run_as_a_probe(tmp_path):
    module = SmallNet(example=False)
    module.automatic_optimization = False
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="steps its optimizers itself"):
        fit(tmp_path, ActivationMonitor(units="typical"), module)


def test_two_processes_write_their_merged_statistics_once(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch, pytorch_lightning as pl, warnings\n"
        "from monitored import SmallNet, quiet_trainer, small_data\n"
        "from bn_lightning.callbacks.monitor import ActivationMonitor\n"
        "if __name__ == '__main__':\n"
        "    torch.manual_seed(0)\n"
        "    module = SmallNet(dropout=0.0)\n"
        "    monitor = ActivationMonitor(every_n_steps=2, units='typical', probe_size=10)\n"
        "    logger = pl.loggers.CSVLogger(sys.argv[1], name='', version='run')\n"
        "    trainer = quiet_trainer(sys.argv[1], callbacks=[monitor], max_steps=4, logger=logger,\n"
        "                            strategy='ddp', devices=2)\n"
        "    trainer.fit(module, small_data(samples=40, batch_size=5))\n"
        "    torch.save({'inputs': module.inputs, 'weights': module.weights, 'rows': len(monitor.table())},\n"
        "               f'{sys.argv[1]}/rank{trainer.global_rank}.pt')\n"
    )
    subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=True,
        timeout=120,
        capture_output=True,
        env={"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    table = pd.read_csv(tmp_path / "run" / "activations.csv")
    assert len(table) == ranks[0]["rows"]
    assert not table.duplicated(["step", "layer", "quantity"]).any()
    for step in (0, 2):
        x = torch.cat([inputs for rank in ranks for at, inputs in rank["inputs"] if at == step]).double()
        weights = ranks[0]["weights"][step]
        truth = x @ weights["net.0.weight"].double().T + weights["net.0.bias"].double()
        rows = {name: value for name, value in values(table, step).items() if "unit" not in name}
        assert rows == approximately(expected(truth))
    assert not torch.equal(ranks[0]["inputs"][0][1], ranks[1]["inputs"][0][1])
