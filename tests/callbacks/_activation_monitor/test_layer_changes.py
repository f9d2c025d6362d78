"""A monitor whose model gains, loses and exchanges layers while it trains."""

import copy
import pickle
import warnings
from pathlib import Path

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from monitored import SmallNet, quiet_trainer, small_data
from torch import nn
from torch.nn.utils import parametrizations, prune

from bn_lightning.callbacks._activation_monitor.layer_changes import ModuleTree, what_changed
from bn_lightning.callbacks._activation_monitor.series import Series
from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.errors import NoEffectWarning, StatisticsWarning

STEPS = 6  # an epoch of small_data


class Changing(SmallNet):
    """Runs `change(self)` at the start of epoch 1, in the module's own hook, which comes after the callbacks'."""

    def __init__(self, change=None, **options):
        super().__init__(dropout=0, **options)
        self.change = change

    def on_train_epoch_start(self):
        if self.current_epoch == 1 and self.change is not None:
            self.change(self)


def fit(tmp_path, change, monitor=None, module=None, **options):
    torch.manual_seed(0)
    module = module or Changing(change)
    monitor = monitor or ActivationMonitor(every_n_steps=3)
    trainer = quiet_trainer(tmp_path, **{"callbacks": [monitor], "max_epochs": 3, **options})
    trainer.fit(module, small_data())
    assert not hooks(module)
    return module, monitor.table()


def hooks(module):
    found = [part for part in module.modules() if part._forward_hooks or "forward" in vars(part)]
    pre = [hook for part in module.modules() for hook in part._forward_pre_hooks.values()]
    return found + [hook for hook in pre if not isinstance(hook, prune.BasePruningMethod)]


def steps_of(table, layer, quantity="preactivation_mean"):
    return table[(table["layer"] == layer) & (table["quantity"] == quantity)]["step"].tolist()


def swap_first(module):
    module.net[0] = nn.Linear(6, 8)


def lengthen(module):
    module.net.append(nn.Tanh()).append(nn.Linear(3, 4)).append(nn.Sigmoid()).append(nn.Linear(4, 3))


def widen(module):
    module.net[0], module.net[3] = nn.Linear(6, 12), nn.Linear(12, 5)


def shorten(module):
    module.net = nn.Sequential(*list(module.net)[:2], nn.Linear(8, 3))


def test_a_replaced_layer_goes_on_without_a_word(tmp_path):
    module, table = fit(tmp_path, swap_first)
    assert steps_of(table, "net.0") == [0, 3, 6, 9, 12, 15]
    row = table[(table["layer"] == "net.0") & (table["step"] == 9) & (table["quantity"] == "preactivation_mean")]
    assert row["value"].item() == pytest.approx(module.first_preactivations(9).mean().item(), rel=1e-5, abs=1e-6)


def test_layers_that_come_are_recorded_and_named_and_tags_of_the_others_stay(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="run")
    with pytest.warns(
        StatisticsWarning, match=r"changed before step 6: new: net\.5, net\.7\. The others go on"
    ) as told:
        _, table = fit(tmp_path, lengthen, ActivationMonitor(every_n_steps=3, warn=False), logger=logger)
    assert len([one for one in told if one.category is StatisticsWarning]) == 1
    assert steps_of(table, "net.3") == [0, 3, 6, 9, 12, 15]
    assert steps_of(table, "net.5") == steps_of(table, "net.7") == [6, 9, 12, 15]
    columns = {name for name in pd.read_csv(tmp_path / "run" / "metrics.csv").columns if "preactivation_mean" in name}
    assert columns == {f"preactivation_mean/0{at}.net.{layer}" for at, layer in enumerate((0, 3, 5, 7))}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "activations.csv"), table, check_dtype=False)


def test_a_layer_with_another_number_of_channels_is_another_layer(tmp_path):
    with pytest.warns(StatisticsWarning, match=r"new: net\.0-12ch; gone: net\.0\."):
        _, table = fit(tmp_path, widen)
    assert steps_of(table, "net.0") == [0, 3]
    assert steps_of(table, "net.0-12ch") == [6, 9, 12, 15]
    assert steps_of(table, "net.3") == [0, 3, 6, 9, 12, 15]
    assert table["value"].notna().all()


def test_a_layer_that_goes_leaves_its_rows_and_patterns_on_it_do_no_harm(tmp_path):
    monitor = ActivationMonitor(
        every_n_steps=3,
        include=["net.0", "net.3"],
        layers=["net.4", "net.1"],
        units={"net.3": [1], "net.0": [2]},
        probe=torch.randn(20, 6),
    )
    with pytest.warns(StatisticsWarning, match=r"gone: net\.3, net\.4\."):
        _, table = fit(tmp_path, shorten, monitor)
    assert steps_of(table, "net.3") == steps_of(table, "net.4", "output_mean") == [0, 3]
    assert steps_of(table, "net.1", "output_mean") == [0, 3, 6, 9, 12, 15]
    assert steps_of(table, "net.0", "preactivation_unit2_p50") == [0, 3, 6, 9, 12, 15, 18]
    assert steps_of(table, "net.3", "preactivation_unit1_p50") == [0, 3]


def test_the_typical_unit_stays_the_same_over_a_change(tmp_path):
    monitor = ActivationMonitor(every_n_steps=3, units={"net.0": "typical"}, probe=torch.randn(20, 6), warn=False)
    with pytest.warns(StatisticsWarning, match="new: "):
        _, table = fit(tmp_path, lengthen, monitor)
    followed = table[table["quantity"].str.contains("unit")]
    assert followed["quantity"].nunique() == 3
    assert sorted(followed["step"].unique()) == [0, 3, 6, 9, 12, 15, 18]


def test_a_model_that_can_no_longer_be_looked_at_trains_on_and_what_was_recorded_stays(tmp_path):
    class Reshaped(Changing):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0][:, : self.net[0].in_features], batch[1]), batch_idx)

    def narrow(module):  # and example_input_array still has six features
        module.net[0] = nn.Linear(4, 8)

    logger = pl.loggers.CSVLogger(tmp_path, name="", version="run")
    with pytest.warns(
        NoEffectWarning, match=r"(?s)changed before step 6.*could not find them again: RuntimeError: .*4x6"
    ):
        module, table = fit(tmp_path, None, module=Reshaped(narrow), logger=logger)
    assert sorted(set(table["step"])) == [0, 3]
    assert len(pd.read_csv(tmp_path / "run" / "activations.csv")) == len(table)
    assert module.trainer.global_step == 3 * STEPS


def test_a_model_that_loses_its_nonlinearities_trains_on(tmp_path):
    def flatten(module):
        module.net = nn.Linear(6, 3)

    with pytest.warns(StatisticsWarning, match=r"gone: net\.0, net\.3"):
        _, table = fit(tmp_path, flatten)
    assert sorted(set(table["step"])) == [0, 3]


def test_modules_that_are_built_when_training_starts_are_found(tmp_path):
    class Late(SmallNet):
        def __init__(self):
            super().__init__(dropout=0)
            self.body = self.net
            self.net = nn.Linear(6, 3)

        def on_train_start(self):
            self.net = self.body

    with (
        pytest.warns(NoEffectWarning, match="records nothing: none of the nonlinearities"),
        pytest.warns(StatisticsWarning, match=r"before step 0: new: net\.0, net\.3"),
    ):
        _, table = fit(tmp_path, None, module=Late(), max_epochs=1)
    assert steps_of(table, "net.0") == [0, 3]


@pytest.mark.parametrize(
    "change",
    [
        lambda module: prune.l1_unstructured(module.net[0], "weight", amount=0.5),
        lambda module: parametrizations.weight_norm(module.net[3]),
        lambda module: module.net[0].requires_grad_(True),
        lambda module: module.net.insert(2, nn.Identity()) if len(module.net) == 6 else None,
    ],
    ids=["pruned", "parametrised", "unfrozen", "moved"],
)
def test_what_is_only_reparametrised_goes_on(tmp_path, change):
    with warnings.catch_warnings():
        # A layer behind an inserted module has a new path, so it comes and goes.
        warnings.filterwarnings("ignore", ".*ActivationMonitor records changed.*", StatisticsWarning)
        module = Changing(change)
        module.net[0].requires_grad_(False)
        _, table = fit(tmp_path, None, module=module)
    assert steps_of(table, "net.0") == [0, 3, 6, 9, 12, 15]
    second = "net.4" if len(module.net) == 7 else "net.3"
    assert steps_of(table, second)[-4:] == [6, 9, 12, 15]


@pytest.mark.parametrize("example", [True, False])
def test_training_over_a_change_is_the_same_to_the_bit(tmp_path, example):
    ended = []
    for callbacks in ([], [ActivationMonitor(every_n_steps=1, layers="*", units="typical", probe_size=20)]):
        torch.manual_seed(3)
        module = Changing(lambda module: module.net.insert(3, nn.Dropout(0.3)), example=example)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StatisticsWarning)
            quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(module, small_data(shuffle=True))
        ended.append((module.state_dict(), torch.get_rng_state()))
    for name, value in ended[0][0].items():
        assert torch.equal(value, ended[1][0][name]), name
    assert torch.equal(ended[0][1], ended[1][1])


# torch.compile hides this warning of its own by a filter that does not stand up to errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_model_is_compiled_anew(tmp_path):
    torch._dynamo.reset()
    module = Changing(swap_first)
    module.net.compile(backend="eager")
    module, table = fit(tmp_path, None, module=module)
    assert steps_of(table, "net.0") == steps_of(table, "net.3") == [0, 3, 6, 9, 12, 15]
    row = table[(table["layer"] == "net.0") & (table["step"] == 9) & (table["quantity"] == "preactivation_mean")]
    assert row["value"].item() == pytest.approx(module.first_preactivations(9).mean().item(), rel=1e-5, abs=1e-6)


def test_an_exception_after_a_change_leaves_no_hook_and_the_file(tmp_path):
    class Fails(Changing):
        def on_after_backward(self):
            if self.trainer.global_step == 8:
                raise KeyboardInterrupt

    module, monitor = Fails(lengthen), ActivationMonitor(every_n_steps=1)
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="run")
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_epochs=3)
    with pytest.warns(StatisticsWarning, match="new: "), pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(module, small_data())
    assert not hooks(module)
    assert pd.read_csv(Path(logger.log_dir) / "activations.csv")["step"].max() == 7


def test_a_layer_that_never_runs_in_training_is_named_at_the_end(tmp_path):
    class Aside(SmallNet):
        def __init__(self):
            super().__init__(dropout=0)
            self.aside, self.is_training = nn.Linear(6, 2), False

        def forward(self, x):
            if not self.is_training:
                torch.relu(self.aside(x))
            return self.net(x)

        def on_train_start(self):
            self.is_training = True

    monitor = ActivationMonitor(every_n_steps=2, layers="aside")
    with pytest.warns(
        StatisticsWarning, match="In none of the recorded steps .*the preactivation of aside; the output of aside"
    ):
        fit(tmp_path, None, monitor, module=Aside(), max_epochs=1)
    fit(tmp_path, None, ActivationMonitor(every_n_steps=2, warn=False), module=Aside(), max_epochs=1)


def test_a_tree_knows_every_change_of_structure_and_keeps_nothing_alive():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3), nn.ReLU())
    tree = ModuleTree(model)
    assert tree.is_that_of(model)
    model[0].weight.data.zero_()
    model[0].requires_grad_(False)
    model.eval()
    assert tree.is_that_of(model)
    for change in (
        lambda: model(torch.zeros(2, 4)),  # the lazy layer materialises
        lambda: model.append(nn.Identity()),
        lambda: model.__setitem__(0, nn.Linear(4, 4)),
        lambda: setattr(model[0], "weight", nn.Parameter(torch.zeros(5, 4))),
        lambda: setattr(model[0], "bias", None),
        lambda: model.pop(3),
    ):
        tree = ModuleTree(model)
        change()
        assert not tree.is_that_of(model)
    assert not ModuleTree(copy.deepcopy(model)).is_that_of(model)


def test_what_changed_names_ten_layers_and_counts_the_rest():
    old = [Series("output", f"a{number}", 1) for number in range(13)]
    new = [Series("output", "b", 1), Series("activation", "b", 1), old[0]]
    assert what_changed(old, new) == "new: b; gone: " + ", ".join(f"a{n}" for n in range(1, 11)) + " and 2 more"
    assert what_changed(old, old) == ""


def test_a_monitor_can_be_copied_and_pickled_after_fit(tmp_path):
    monitor = ActivationMonitor(every_n_steps=2)
    fit(tmp_path, None, monitor, max_epochs=1)
    fresh = ActivationMonitor(every_n_steps=2)
    assert pickle.loads(pickle.dumps(fresh)).state_key == copy.deepcopy(fresh).state_key == monitor.state_key
