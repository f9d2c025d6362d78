"""BatchNormRecalibration in real fits: what validation and checkpoints carry, and what training notices."""

import logging
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import torchmetrics
from oracles import norm_inputs, paper_statistics, pooled_statistics
from pytorch_lightning.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import bn_lightning
from bn_lightning.callbacks.insertion import BatchNormInsertion
from bn_lightning.callbacks.recalibration import BatchNormRecalibration
from bn_lightning.errors import NoEffectWarning, StatisticsWarning, UnknownNameError
from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm

pytestmark = [
    # Lightning's advice on loaders is not what is tested.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:.*`dataloader_iter` step flavor"),
]
MARK = "bn_lightning_statistics"


def make_data(seed=0, size=40):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 4, generator=generator) * 2 + 1
    return TensorDataset(x, (x.sum(1) > 4).float())


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(8, 6),
        nn.BatchNorm1d(6),
        nn.Sigmoid(),
        nn.Linear(6, 1),
    )


def make_module(namespace=pytorch_lightning):
    class Module(namespace.LightningModule):
        def __init__(self, net=None):
            super().__init__()
            self.net = network() if net is None else net
            self.accuracy = torchmetrics.MeanMetric(nan_strategy="ignore")
            self.batches_seen = 0
            self.first_steps = []

        def forward(self, x):
            return self.net(x).squeeze(1)

        def loss(self, batch):
            x, y = batch
            return nn.functional.binary_cross_entropy_with_logits(self(x), y)

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.accuracy(loss.detach())
            self.log("train_loss", loss)
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.batches_seen += 1

        def on_train_epoch_end(self):
            if self.accuracy.update_called:
                self.log("train_metric", self.accuracy.compute())
                self.accuracy.reset()

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

    return Module


Module = make_module()


class Plain(Module):
    """No validation loop."""

    validation_step = None


class Recorder(pytorch_lightning.Callback):
    """Every norm statistic and weight at the start of every training batch, and every logged value."""

    def __init__(self):
        self.states = []
        self.logged = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.states.append({name: value.clone() for name, value in module.net.state_dict().items()})
        self.states.append({"x": batch[0].clone()})

    def on_train_epoch_start(self, trainer, module):
        metrics = trainer.callback_metrics
        self.logged.append({name: float(value) for name, value in metrics.items() if name.startswith("train")})

    on_train_end = on_train_epoch_start


def loaders(batch_size=8, **options):
    return DataLoader(make_data(), batch_size=batch_size, shuffle=True, **options), DataLoader(make_data(1, 16), 8)


def fit(
    tmp_path, *callbacks, module=None, train=None, val="default", namespace=pytorch_lightning, ckpt=None, **options
):
    default_train, default_val = loaders()
    module = module or Module()
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False} | options
    trainer = namespace.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    torch.manual_seed(3)
    trainer.fit(
        module, default_train if train is None else train, default_val if val == "default" else val, ckpt_path=ckpt
    )
    return trainer, module


def recomputed(state_dict, estimator="pooled", batch_size=40):
    """Statistics of the whole training data in one order, from the weights of a checkpoint."""
    net = network()
    net.load_state_dict({name.removeprefix("net."): value for name, value in state_dict.items() if "net." in name})
    batches = make_data().tensors[0].split(batch_size)
    oracle = {"pooled": pooled_statistics, "paper": paper_statistics}[estimator]
    return {name: oracle(inputs) for name, inputs in norm_inputs(net, batches).items()}


def assert_population(state_dict, estimator="pooled", batch_size=40):
    for name, (mean, variance) in recomputed(state_dict, estimator, batch_size).items():
        assert_close(state_dict[f"net.{name}.running_mean"], mean.float())
        assert_close(state_dict[f"net.{name}.running_var"], variance.float())


def in_order(batch_size=40, **options):
    return DataLoader(make_data(), batch_size=batch_size, **options)


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("estimator", ["pooled", "paper"])
def test_best_and_last_checkpoint_carry_population_statistics(tmp_path, estimator):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True, save_top_k=3)
    fit(
        tmp_path,
        BatchNormRecalibration(estimator=estimator),
        checkpoint,
        train=in_order(8),
        max_epochs=3,
        enable_checkpointing=True,
    )
    paths = {*checkpoint.best_k_models, checkpoint.last_model_path, checkpoint.best_model_path}
    assert len(paths) == 4
    for path in paths:
        saved = load(path)
        assert_population(saved["state_dict"], estimator, batch_size=8)
        assert saved[MARK] == {"kind": "population", "estimator": estimator, "global_step": saved["global_step"]}


def test_the_validation_metric_is_that_of_the_saved_statistics(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    fit(tmp_path, BatchNormRecalibration(), checkpoint, enable_checkpointing=True)
    module = Module()
    module.load_state_dict(load(checkpoint.best_model_path)["state_dict"])
    module.eval()
    losses = [module.loss(batch).item() for batch in loaders()[1]]
    assert_close(checkpoint.best_model_score.item(), sum(losses) / 2)


def test_without_a_validation_loop_it_acts_at_the_end_of_the_epoch(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1)
    fit(
        tmp_path,
        BatchNormRecalibration(),
        checkpoint,
        module=Plain(),
        train=in_order(),
        val=None,
        enable_checkpointing=True,
    )
    paths = sorted(Path(tmp_path).glob("*.ckpt"))
    assert len(paths) == 2
    for path in paths:
        assert_population(load(path)["state_dict"])


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"val_check_interval": 0.4},
        {"accumulate_grad_batches": 3},
        {"num_sanity_val_steps": 0},
        {"inference_mode": False},
    ],
    ids=str,
)
def test_training_is_the_same_to_the_bit(tmp_path, options):
    plain, ours = Recorder(), Recorder()
    _, reference = fit(tmp_path, plain, **options)
    _, module = fit(tmp_path, BatchNormRecalibration(), ours, **options)
    assert_same(ours.states, plain.states)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, reference.get_parameter(name))
    assert module.batches_seen == reference.batches_seen == 10
    assert int(module.net[1].num_batches_tracked) == 10
    assert not torch.equal(module.net[1].running_mean, reference.net[1].running_mean)
    assert len(ours.logged[2]) == 2
    assert ours.logged == plain.logged


def test_persistent_workers_and_validation_in_mid_epoch_lose_no_batch(tmp_path):
    train = DataLoader(make_data(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
    _, module = fit(tmp_path, BatchNormRecalibration(), train=train, val_check_interval=0.5, max_epochs=2)
    assert module.batches_seen == 20


@pytest.mark.parametrize("weights_only", [True, False])
def test_checkpoints_in_between_carry_and_say_running(tmp_path, weights_only):
    every_step = ModelCheckpoint(
        tmp_path, every_n_train_steps=2, save_top_k=-1, save_weights_only=weights_only, filename="{step}"
    )
    plain = Recorder()
    fit(tmp_path, plain)
    fit(tmp_path, BatchNormRecalibration(), every_step, enable_checkpointing=True)
    saved = load(tmp_path / "step=2.ckpt")
    assert saved[MARK] == {"kind": "running", "estimator": "pooled", "global_step": 2}
    before_batch_two = plain.states[4]
    for name in ("1.running_mean", "5.running_var"):
        assert torch.equal(saved["state_dict"]["net." + name], before_batch_two[name])


@pytest.mark.parametrize("weights_only", [True, False])
def test_every_checkpoint_is_marked(tmp_path, weights_only):
    checkpoint = ModelCheckpoint(tmp_path, save_weights_only=weights_only)
    trainer, module = fit(tmp_path, BatchNormRecalibration(), checkpoint, enable_checkpointing=True)
    assert load(checkpoint.best_model_path)[MARK]["kind"] == "population"
    assert "on_save_checkpoint" not in vars(module)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert load(tmp_path / "after.ckpt")[MARK] == {"kind": "population", "estimator": "pooled", "global_step": 10}


def test_a_resumed_run_goes_on_from_the_running_average(tmp_path):
    """Without dropout and shuffling, plain Lightning resumes to the bit, and so do we."""

    def module():
        net = network()
        net[3].p = 0.0
        return Module(net)

    whole, resumed, plain = Recorder(), Recorder(), Recorder()
    train = in_order(8)
    fit(tmp_path / "plain", plain, module=module(), train=train, max_epochs=3)
    fit(tmp_path / "whole", BatchNormRecalibration(), whole, module=module(), train=train, max_epochs=3)
    checkpoint = ModelCheckpoint(tmp_path / "first", save_last=True)
    fit(
        tmp_path, BatchNormRecalibration(), checkpoint, module=module(), train=train, max_epochs=2,
        enable_checkpointing=True,
    )  # fmt: skip
    _, end = fit(
        tmp_path, BatchNormRecalibration(), resumed, module=module(), train=train, max_epochs=3,
        ckpt=checkpoint.last_model_path,
    )  # fmt: skip
    assert_same(whole.states, plain.states)
    assert_same(resumed.states, plain.states[-10:])
    assert_close(end.net[1].running_mean, recomputed(end.state_dict(), batch_size=8)["1"][0].float())


def test_a_second_fit_goes_on_from_the_running_average_and_another_module_from_its_own(tmp_path):
    callback, recorder = BatchNormRecalibration(), Recorder()
    plain = Recorder()
    _, reference = fit(tmp_path, plain)
    fit(tmp_path, plain, module=reference)
    _, module = fit(tmp_path, callback, recorder)
    fit(tmp_path, callback, recorder, module=module)
    assert_same(recorder.states, plain.states)
    other = Recorder()
    fit(tmp_path, callback, other)
    assert_same(other.states, plain.states[: len(plain.states) // 2])


def test_weights_that_moved_after_the_last_validation_are_recalibrated_at_the_end(tmp_path):
    callback = BatchNormRecalibration()
    _, module = fit(tmp_path, callback, train=in_order(), max_epochs=3, check_val_every_n_epoch=2)
    assert_population(module.state_dict())
    assert callback.last_report.batches == 1


def test_every_n_validations(tmp_path):
    steps = []

    class Watch(pytorch_lightning.Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                mean = recomputed(module.state_dict())["1"][0].float()
                steps.append(torch.allclose(module.net[1].running_mean, mean, atol=1e-5))

    fit(tmp_path, BatchNormRecalibration(every_n_validations=2), Watch(), train=in_order(), max_epochs=4)
    assert steps == [False, True, False, True]


def test_num_batches_and_report(tmp_path):
    callback = BatchNormRecalibration(num_batches=3)
    fit(tmp_path, callback)
    assert callback.last_report.batches == 3
    assert [layer.count for layer in callback.last_report.layers] == [24, 24]
    assert [layer.layer for layer in callback.last_report.layers] == ["net.1", "net.5"]


def test_limit_train_batches_limits_the_pass(tmp_path):
    callback = BatchNormRecalibration()
    fit(tmp_path, callback, limit_train_batches=2)
    assert callback.last_report.batches == 2


@pytest.mark.parametrize("as_function", [True, False])
def test_batches_of_ones_own(tmp_path, as_function):
    batches = [make_data(7).tensors]
    callback = BatchNormRecalibration(batches=(lambda: batches) if as_function else batches)
    _, module = fit(tmp_path, callback)
    net = network()
    net.load_state_dict(module.net.state_dict())
    mean, _ = pooled_statistics(norm_inputs(net, [batches[0][0]])["1"])
    assert_close(module.net[1].running_mean, mean.float())


def test_frozen_norms_are_left_alone(tmp_path):
    class Freeze(pytorch_lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            module.net[1].eval()

    callback = BatchNormRecalibration()
    with pytest.warns(StatisticsWarning, match=r"'net\.1' were skipped: frozen"):
        _, module = fit(tmp_path, Freeze(), callback)
    assert torch.equal(module.net[1].running_mean, torch.zeros(8))
    assert torch.equal(module.net[1].running_var, torch.ones(8))
    assert [norm.layer for norm in callback.last_report.skipped] == ["net.1"]
    inputs = module.net[:5].eval()(make_data().tensors[0])
    # The order of summation differs, as the pass was shuffled.
    assert_close(module.net[5].running_mean, pooled_statistics([inputs])[0].float(), rtol=1e-5, atol=1e-5)


def test_an_exception_half_way_restores_everything(tmp_path):
    class Fails(RuntimeError):
        pass

    seen: dict = {}

    def forward(module, batch):
        seen["calls"] = seen.get("calls", 0) + 1
        if seen["calls"] == 3:
            raise Fails("half way")
        return module.loss(batch)

    class Watch(pytorch_lightning.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen["state"] = {name: value.clone() for name, value in module.state_dict().items()}

    module = Module()
    with pytest.raises(Fails, match="half way"):
        fit(tmp_path, BatchNormRecalibration(forward=forward), Watch(), module=module)
    assert_same([module.state_dict()], [seen["state"]])
    assert not any(part.training for part in module.modules())  # as validation had put them
    assert all("forward" not in vars(part) for part in module.modules())
    assert not {"log", "log_dict", "on_save_checkpoint"} & vars(module).keys()


def test_a_diverged_run_keeps_its_running_statistics_and_says_so(tmp_path):
    class Diverge(pytorch_lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            with torch.no_grad():
                module.net[0].weight.fill_(torch.nan)

    with pytest.warns(StatisticsWarning, match=r"'net\.1', 'net\.5' are NaN.*running statistics are used"):
        _, module = fit(tmp_path, BatchNormRecalibration(), Diverge())
    assert module.net[1].running_mean.isnan().all()


def test_batches_too_small_for_some_norm_do_not_end_the_training(tmp_path):
    """Inserted norms go by their running statistics where an expert is given one sample."""

    class Routed(Module):
        def __init__(self):
            super().__init__()
            self.expert = nn.BatchNorm1d(8)

        def training_step(self, batch, batch_idx):
            if not torch.is_grad_enabled():
                self.expert(torch.ones(1, 8))
            return super().training_step(batch, batch_idx)

    with pytest.warns(StatisticsWarning, match=r"norm 'expert' received.*running statistics are used"):
        trainer, module = fit(tmp_path, BatchNormRecalibration(), module=Routed())
    assert trainer.current_epoch == 2
    plain = fit(tmp_path, module=Routed())[1]
    assert_same([module.state_dict()], [plain.state_dict()])


class Endless(IterableDataset):
    """Data without a length; `read` counts the samples that were taken."""

    def __init__(self):
        self.read = 0

    def __iter__(self):
        for x, y in make_data():
            self.read += 1
            yield x, y


class OneShot(Endless):
    def __iter__(self):
        return self

    def __next__(self):
        if self.read == 40:
            raise StopIteration
        self.read += 1
        return torch.ones(4), torch.ones(())


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (Endless, {}, "has no length.*give num_batches"),
        (OneShot, {"num_batches": 2}, "comes from a OneShot, an iterator.*batches="),
    ],
)
def test_training_data_that_cannot_be_read_again_are_refused_before_training(tmp_path, data, options, reason):
    source = data()
    with pytest.raises(MisconfigurationException, match=reason):
        fit(tmp_path, BatchNormRecalibration(**options), train=DataLoader(source, batch_size=8))
    assert source.read <= 8  # Lightning fetches the first batch ahead


def test_training_data_that_cannot_be_read_again_do_where_they_are_not_read(tmp_path):
    for options in ({"batches": [make_data()[:8]]}, {"estimator": "last_batches"}):
        callback = BatchNormRecalibration(**options)
        fit(tmp_path, callback, train=DataLoader(Endless(), batch_size=8))
        assert callback.last_report is not None


def test_a_model_without_norms_is_told(tmp_path):
    with pytest.warns(NoEffectWarning, match=r"has no batch norm.*BatchNormInsertion\(\)"):
        fit(tmp_path, BatchNormRecalibration(), module=Module(nn.Sequential(nn.Linear(4, 1))))


def test_norms_that_are_all_frozen_are_told(tmp_path):
    class Freeze(pytorch_lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            module.net[1].eval()
            module.net[5].eval()

    with pytest.warns(NoEffectWarning, match=r"does nothing.*'net\.1': frozen"):
        fit(tmp_path, Freeze(), BatchNormRecalibration())


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


def test_manual_optimization_needs_forward(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"manual optimization.*forward=lambda module, batch"):
        fit(tmp_path, BatchNormRecalibration(), module=Manual())
    callback = BatchNormRecalibration(forward=lambda module, batch: module(batch[0]))
    _, module = fit(tmp_path, callback, module=Manual(), train=in_order())
    assert_population(module.state_dict())


def test_a_step_over_the_iterator_needs_forward(tmp_path):
    class Iterating(Module):
        def training_step(self, dataloader_iter):
            batch, _, _ = next(dataloader_iter)
            return self.loss(batch)

    with pytest.raises(MisconfigurationException, match="takes a dataloader_iter"):
        fit(tmp_path, BatchNormRecalibration(), module=Iterating())


def test_a_step_without_index_and_one_that_needs_gradients(tmp_path):
    class Short(Module):
        def training_step(self, batch):
            return self.loss(batch)

    _, module = fit(tmp_path, BatchNormRecalibration(), module=Short(), train=in_order())
    assert_population(module.state_dict())

    class Penalised(Module):
        def training_step(self, batch, batch_idx):
            x = batch[0].requires_grad_()
            (gradient,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
            return gradient.square().sum()

    with pytest.raises(RuntimeError) as raised:
        fit(tmp_path, BatchNormRecalibration(), module=Penalised())
    assert "forward=..." in raised.value.__notes__[0]


AVERAGES = {
    "mean": WeightAveraging,
    "EMA": lambda: EMAWeightAveraging(decay=0.7),
    "EMA without buffers": lambda: EMAWeightAveraging(decay=0.7, use_buffers=False),
}


class AverageRecorder(pytorch_lightning.Callback):
    """The averaged weights and statistics at the start of every training batch; put it last."""

    def __init__(self, averaging):
        self.averaging = averaging
        self.states = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        state = self.averaging._average_model.state_dict()
        self.states.append({name: value.clone() for name, value in state.items()})


@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("first", [True, False], ids=["ours behind", "ours first"])
def test_averaged_weights_are_the_ones_recalibrated(tmp_path, make, first):
    averaging, checkpoint = make(), ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=3, save_last=True)
    callback, module = BatchNormRecalibration(), Module()
    callbacks = [averaging, callback] if first else [callback, averaging]
    fit(tmp_path, *callbacks, checkpoint, module=module, train=in_order(8), max_epochs=3, enable_checkpointing=True)
    paths = {*checkpoint.best_k_models, checkpoint.last_model_path}
    assert len(paths) == 4
    for path in paths:
        saved = load(path)
        assert saved[MARK]["kind"] == "population"
        assert_population(saved["state_dict"], batch_size=8)
        assert not torch.equal(saved["state_dict"]["net.0.weight"], saved["current_model_state"]["net.0.weight"])
    assert_population(module.state_dict(), batch_size=8)
    assert_same([module.state_dict()], [load(checkpoint.last_model_path)["state_dict"]])
    best = Module()
    best.load_state_dict(load(checkpoint.best_model_path)["state_dict"])
    best.eval()
    losses = [best.loss(batch).item() for batch in loaders()[1]]
    assert_close(checkpoint.best_model_score.item(), sum(losses) / 2)


@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)
def test_training_and_its_average_are_the_same_to_the_bit(tmp_path, make):
    recorded = []
    for ours in ((), (BatchNormRecalibration(),)):
        averaging, states = make(), Recorder()
        average = AverageRecorder(averaging)
        _, module = fit(tmp_path, averaging, *ours, states, average, val_check_interval=0.4)
        recorded.append((states.states, average.states, list(module.named_parameters())))
    (plain, plain_average, plain_end), (states, average, end) = recorded
    assert_same(states, plain)
    assert_same(average, plain_average)
    assert_same([dict(end)], [dict(plain_end)])


def test_a_resumed_average_goes_on_as_it_was(tmp_path):
    """Without dropout and shuffling, as plain Lightning does."""

    def run(folder, callbacks, epochs, ckpt=None):
        net, averaging = network(), EMAWeightAveraging(decay=0.7)
        net[3].p = 0.0
        average, states, checkpoint = AverageRecorder(averaging), Recorder(), ModelCheckpoint(folder)
        fit(
            tmp_path, averaging, *callbacks, states, average, checkpoint, module=Module(net), train=in_order(8),
            max_epochs=epochs, enable_checkpointing=True, ckpt=ckpt,
        )  # fmt: skip
        return states.states, average.states, checkpoint.best_model_path

    plain, plain_average, _ = run(tmp_path / "plain", [], 3)
    *_, path = run(tmp_path / "ours", [BatchNormRecalibration()], 2)
    states, average, _ = run(tmp_path / "ours", [BatchNormRecalibration()], 3, ckpt=path)
    assert_same(states, plain[-10:])
    assert_same(average, plain_average[-5:])


def test_a_second_fit_with_an_average_goes_on_from_the_running_average(tmp_path):
    recorded = []
    for ours in ((), (BatchNormRecalibration(),)):
        module, recorder = Module(), Recorder()
        for _ in range(2):
            fit(tmp_path, EMAWeightAveraging(decay=0.7), *ours, recorder, module=module)
        recorded.append(recorder.states)
    assert_same(*recorded)


def test_without_a_validation_loop_the_average_is_recalibrated_at_the_end_of_the_epoch(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1)
    _, module = fit(
        tmp_path, EMAWeightAveraging(decay=0.7), BatchNormRecalibration(), checkpoint, module=Plain(),
        train=in_order(8), val=None, enable_checkpointing=True,
    )  # fmt: skip
    paths = sorted(Path(tmp_path).glob("*.ckpt"))
    assert len(paths) == 2
    for path in paths:
        assert load(path)[MARK]["kind"] == "population"
        assert_population(load(path)["state_dict"], batch_size=8)
    assert_population(module.state_dict(), batch_size=8)


def test_weights_alone_of_an_average_say_that_they_carry_running_statistics(tmp_path):
    """Lightning writes the weights of training there, not their average."""
    every_epoch = ModelCheckpoint(tmp_path, save_weights_only=True, save_top_k=-1)
    recorder = Recorder()
    fit(
        tmp_path, EMAWeightAveraging(decay=0.7), BatchNormRecalibration(), recorder, every_epoch,
        enable_checkpointing=True,
    )  # fmt: skip
    first = load(min(Path(tmp_path).glob("*.ckpt")))
    assert first[MARK] == {"kind": "running", "estimator": "pooled", "global_step": 5}
    assert torch.equal(first["state_dict"]["net.1.running_mean"], recorder.states[10]["1.running_mean"])


@pytest.mark.parametrize("options", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 20}], ids=str)
def test_stochastic_weight_averaging_ends_with_the_statistics_of_the_average(tmp_path, options):
    recorded, reports = [], []
    for callback in (None, BatchNormRecalibration()):
        averaging, recorder = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2), Recorder()
        ours = [] if callback is None else [callback]
        _, module = fit(tmp_path, averaging, *ours, recorder, train=in_order(8), **options)
        recorded.append(recorder.states)
        reports.append(module)
    plain, ours = reports
    assert_same([dict(ours.named_parameters())], [dict(plain.named_parameters())])
    assert_population(ours.state_dict(), batch_size=8)
    assert_same(*recorded)


def test_stochastic_weight_averaging_comes_first(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"after BatchNormRecalibration.*behind it: callbacks="):
        fit(tmp_path, BatchNormRecalibration(), StochasticWeightAveraging(swa_lrs=0.1))


def test_stochastic_weight_averaging_validates_the_weights_of_training_with_their_statistics(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    averaging = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2)
    fit(
        tmp_path, averaging, BatchNormRecalibration(), checkpoint, train=in_order(8), max_epochs=4,
        enable_checkpointing=True,
    )  # fmt: skip
    paths = sorted(Path(tmp_path).glob("*.ckpt"))
    assert len(paths) == 5
    for path in paths:
        assert_population(load(path)["state_dict"], batch_size=8)


class BatchMoments(pytorch_lightning.Callback):
    """What the norms of every training batch received, recomputed in float64 from the weights before its step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(norm_inputs(module.net, [batch[0]]))


def without_dropout():
    net = network()
    net[3].p = 0.0
    return Module(net)


def test_the_last_batches_of_training(tmp_path):
    callback, moments, checkpoint = (
        BatchNormRecalibration(estimator="last_batches", num_batches=3),
        BatchMoments(),
        ModelCheckpoint(tmp_path, save_top_k=-1, monitor="val_loss"),
    )
    fit(tmp_path, callback, moments, checkpoint, module=without_dropout(), enable_checkpointing=True)
    assert (callback.last_report.estimator, callback.last_report.batches) == ("last_batches", 3)
    for path, last in zip(sorted(Path(tmp_path).glob("*.ckpt")), (moments.seen[2:5], moments.seen[7:]), strict=True):
        saved = load(path)
        assert saved[MARK]["estimator"] == "last_batches"
        for name in ("1", "5"):
            mean, variance = paper_statistics([inputs[name][0] for inputs in last])
            # Theirs are sums in float32 of what was computed twice.
            assert_close(saved["state_dict"][f"net.{name}.running_mean"], mean.float(), rtol=1e-5, atol=1e-5)
            assert_close(saved["state_dict"][f"net.{name}.running_var"], variance.float(), rtol=1e-5, atol=1e-5)


def test_the_last_batches_change_nothing_of_training_and_leave_no_hook(tmp_path):
    plain, ours = Recorder(), Recorder()
    fit(tmp_path, plain, val_check_interval=0.4)
    callback = BatchNormRecalibration(estimator="last_batches")
    _, module = fit(tmp_path, callback, ours, module=Manual(), val_check_interval=0.4)
    assert not any(part._forward_pre_hooks for part in module.modules())
    assert callback.last_report.batches == 10
    # Manual optimization needs no forward here, and takes the same steps.
    assert_same(ours.states, plain.states)


def test_the_last_batches_are_of_no_average(tmp_path):
    for averaging in (WeightAveraging(), StochasticWeightAveraging(swa_lrs=0.1)):
        with pytest.raises(MisconfigurationException, match=r"last_batches.*weights here are averaged.*pooled"):
            fit(tmp_path, averaging, BatchNormRecalibration(estimator="last_batches"))


@pytest.mark.parametrize("estimator", ["fixed_point", "ema"])
def test_the_other_estimators_do_what_the_function_does(tmp_path, estimator):
    callback = BatchNormRecalibration(estimator=estimator)
    _, module = fit(tmp_path, callback, train=in_order(8), max_epochs=1)
    expected = network()
    expected.load_state_dict(module.net.state_dict())
    if estimator == "ema":
        for norm, running in zip((expected[1], expected[5]), callback.state_dict()["running"].values(), strict=True):
            norm.running_mean.copy_(running["mean"])
            norm.running_var.copy_(running["variance"])
    batches = make_data().tensors[0].split(8)
    recalibrate_batch_norm(expected, batches, estimator=estimator, warn_drift=None)
    for name in ("1.running_mean", "1.running_var", "5.running_mean", "5.running_var"):
        assert_close(module.net.state_dict()[name], expected.state_dict()[name])
    assert callback.last_report.batches == (1 if estimator == "fixed_point" else 5)


def test_small_batches_are_regrouped(tmp_path):
    callback = BatchNormRecalibration(regroup=20)
    _, module = fit(tmp_path, callback, train=in_order(4))
    assert callback.last_report.batches == 2
    assert_population(module.state_dict(), batch_size=20)


def test_two_instances_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `BatchNormRecalibration`"):
        fit(tmp_path, BatchNormRecalibration(), BatchNormRecalibration(estimator="paper"))


def test_sharded_strategies_are_refused(tmp_path):
    class FSDPStrategy(SingleDeviceStrategy):
        strategy_name = "sharded"

    with pytest.raises(MisconfigurationException, match="FSDPStrategy does not allow"):
        fit(tmp_path, BatchNormRecalibration(), strategy=FSDPStrategy(device=torch.device("cpu")))


def test_the_exception_is_of_the_trainers_namespace(tmp_path):
    callback = BatchNormRecalibration()
    module = make_module(lightning.pytorch)()
    module.automatic_optimization = False
    with pytest.raises(lightning.pytorch.utilities.exceptions.MisconfigurationException, match="manual optimization"):
        fit(tmp_path, callback, module=module, namespace=lightning.pytorch)


def test_works_in_the_other_namespace(tmp_path):
    module = make_module(lightning.pytorch)()
    fit(tmp_path, BatchNormRecalibration(), module=module, train=in_order(), namespace=lightning.pytorch)
    assert_population(module.state_dict())


def test_bad_arguments():
    with pytest.raises(
        UnknownNameError, match="no estimator 'mean'; choose one of pooled, paper, fixed_point, last_batches, ema"
    ):
        BatchNormRecalibration(estimator="mean")
    with pytest.raises(ValueError, match="regroup=8 merges batches"):
        BatchNormRecalibration(estimator="paper", regroup=8)
    for option in ({"forward": print}, {"batches": []}):
        with pytest.raises(ValueError, match=r"last_batches.*forward= and batches= would never be used"):
            BatchNormRecalibration(estimator="last_batches", **option)
    with pytest.raises(ValueError, match="num_batches=0 would never recalibrate"):
        BatchNormRecalibration(num_batches=0)
    with pytest.raises(ValueError, match="every_n_validations=0 would never"):
        BatchNormRecalibration(every_n_validations=0)
    with pytest.raises(TypeError, match="batches is a generator, an iterator that can be used only once"):
        BatchNormRecalibration(batches=(batch for batch in []))


def test_validate_and_test_outside_a_fit_do_nothing(tmp_path):
    callback = BatchNormRecalibration()
    trainer, module = fit(tmp_path, callback)
    report, before = callback.last_report, {name: value.clone() for name, value in module.state_dict().items()}
    trainer.validate(module, loaders()[1], verbose=False)
    assert callback.last_report is report
    assert_same([module.state_dict()], [before])


def test_bf16_weights_and_bf16_autocast(tmp_path):
    for precision in ("bf16-true", "bf16-mixed"):
        callback = BatchNormRecalibration()
        _, module = fit(tmp_path, callback, train=in_order(), precision=precision)
        inputs = make_data().tensors[0].to(module.net[0].weight.dtype)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            mean, variance = pooled_statistics([module.net[0](inputs)])
        assert_close(module.net[1].running_mean, mean.to(module.net[1].running_mean.dtype))
        assert_close(module.net[1].running_var, variance.to(module.net[1].running_var.dtype))


def test_norms_that_were_inserted(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    torch.manual_seed(0)
    module = Module(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)))
    module.example_input_array = make_data().tensors[0][:4]
    fit(
        tmp_path,
        BatchNormInsertion(),
        BatchNormRecalibration(),
        checkpoint,
        module=module,
        train=in_order(),
        enable_checkpointing=True,
    )
    saved = load(checkpoint.best_model_path)
    assert saved[MARK]["kind"] == "population"
    assert "bn_lightning" in saved
    weights = {name: value.double() for name, value in saved["state_dict"].items()}
    inputs = make_data().tensors[0].double() @ weights["net.0.weight"].T + weights["net.0.bias"]
    (running_mean,) = (value for name, value in weights.items() if name.endswith("running_mean"))
    (running_var,) = (value for name, value in weights.items() if name.endswith("running_var"))
    mean, variance = pooled_statistics([inputs])
    assert_close(running_mean.float(), mean.float())
    assert_close(running_var.float(), variance.float())


DDP = """
    import sys, warnings
    import pytorch_lightning as pl, torch
    from torch import nn
    from torch.utils.data import DataLoader, IterableDataset, TensorDataset
    from bn_lightning.callbacks.recalibration import BatchNormRecalibration
    warnings.simplefilter("ignore")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))
        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().mean()
        def validation_step(self, batch, batch_idx):
            self.log("val", self.net(batch[0]).mean(), sync_dist=True)
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Save(pl.Callback):
        def on_train_end(self, trainer, module):
            report = callback.last_report
            torch.save(
                {"state": module.net.state_dict(), "batches": report.batches, "count": report.layers[0].count},
                f"{sys.argv[1]}/rank{trainer.global_rank}.pt",
            )

    data = TensorDataset(torch.randn(24, 4, generator=torch.Generator().manual_seed(1)) * 2 + 1)
    callback = BatchNormRecalibration()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback, Save()], default_root_dir=sys.argv[1],
    )
    trainer.fit(Module(), DataLoader(data, 4, shuffle=True), DataLoader(data, 4))
"""


def test_two_processes_agree_on_all_the_data(tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(textwrap.dedent(DDP))
    root = str(Path(bn_lightning.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    for name in ("LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same([ranks[0]["state"]], [ranks[1]["state"]])
    assert (ranks[0]["batches"], ranks[0]["count"]) == (6, 24)
    data = torch.randn(24, 4, generator=torch.Generator().manual_seed(1)) * 2 + 1
    state = ranks[0]["state"]
    mean, variance = pooled_statistics([data.double() @ state["0.weight"].double().T + state["0.bias"].double()])
    assert_close(state["1.running_mean"], mean.float())
    assert_close(state["1.running_var"], variance.float())


def test_messages_count_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(tmp_path, BatchNormRecalibration())
    lines = Counter(record.getMessage().split(":")[0] for record in caplog.records)
    said = {text: number for text, number in lines.items() if "BatchNormRecalibration" in text}
    assert said == {"BatchNormRecalibration at step 5": 1, "BatchNormRecalibration at step 10": 1}


def test_batches_take_the_path_of_training_also_where_it_asks_the_trainer(tmp_path):
    class Augmenting(Module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 10 + 100, batch[1]] if self.trainer.training else batch

    trainer, module = fit(tmp_path, BatchNormRecalibration(), module=Augmenting(), max_epochs=1)
    x = make_data().tensors[0] * 10 + 100
    expected = nn.functional.linear(x, module.net[0].weight, module.net[0].bias).double().mean(0)
    # The inputs are a hundred times their spread away from zero, so float32 keeps fewer digits.
    assert_close(module.net[1].running_mean.double(), expected, rtol=1e-5, atol=1e-4)
    assert not trainer.training


@pytest.mark.parametrize("limit", [{"limit_train_batches": 2}, {"fast_dev_run": 2}])
def test_no_batch_is_read_that_training_may_not_read(tmp_path, limit):
    callback = BatchNormRecalibration(num_batches=50)
    fit(tmp_path, callback, **({"max_epochs": 1} | limit))
    assert callback.last_report.batches == 2


def test_a_callback_used_again_takes_the_running_average_of_a_loaded_checkpoint(tmp_path):
    callback = BatchNormRecalibration()
    fit(tmp_path, callback, max_epochs=1)
    plain, other = fit(tmp_path, max_epochs=1)
    for norm in (other.net[1], other.net[5]):
        norm.running_mean.fill_(7.0)
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    seen = []

    class Looking(pytorch_lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(pl_module.net[1].running_mean.clone())

    fit(tmp_path, callback, Looking(), module=Module(), ckpt=tmp_path / "plain.ckpt", max_epochs=2)
    assert (seen[0] == 7.0).all()


def test_a_resume_with_other_settings_goes_on_from_the_same_running_average(tmp_path):
    trainer, _ = fit(tmp_path, BatchNormRecalibration(num_batches=3), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    states = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]
    (running,) = [state["running"] for state in states.values() if "running" in state]
    seen = []

    class Looking(pytorch_lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(pl_module.net[1].running_mean.clone())

    fit(tmp_path, BatchNormRecalibration(num_batches=5), Looking(), ckpt=tmp_path / "end.ckpt", max_epochs=2)
    assert torch.equal(seen[0], running["net.1"]["mean"])
