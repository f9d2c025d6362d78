import dataclasses
import functools
import math
import warnings

import lightning.pytorch as lightning
import numpy as np
import pytest
import pytorch_lightning
import torch
from tiny import TinyData, TinyNet, WeightsSeen, tiny_problem, tiny_study
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bn_lightning.analysis.publish import publish_folder
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.study import Arm, Budget
from bn_lightning.analysis.training import namespace_of_module, train
from bn_lightning.callbacks.insertion import BatchNormInsertion
from bn_lightning.callbacks.recalibration import BatchNormRecalibration
from bn_lightning.errors import UnknownNameError


def values(training, quantity):
    return [value for step, layer, name, value in training.rows if name == quantity and layer == ""]


def steps(training, quantity):
    return [step for step, _, name, _ in training.rows if name == quantity]


def by_hand(seed: int, lr: float, max_steps: int) -> tuple[list[float], list[float]]:
    """The same training in a plain loop: losses of the validation set every 5 steps, of every batch."""
    torch.manual_seed(seed)
    net = TinyNet(lr=lr)
    data = TinyData()
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    held_out, batches = [], []

    def evaluate() -> None:
        with torch.no_grad():
            losses = [nn.functional.mse_loss(net(x), y).item() for x, y in data.val_dataloader()]
        held_out.append(float(np.mean(losses)))

    # Iterating a loader draws from the generator, so the recorder seeds after the first evaluation.
    evaluate()
    torch.manual_seed(seed)
    step = 0
    while step < max_steps:
        for x, y in data.train_dataloader():
            if step == max_steps:
                break
            loss = nn.functional.mse_loss(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batches.append(loss.item())
            step += 1
            if step % 5 == 0:
                evaluate()
    return held_out, batches


def test_the_curve_is_that_of_a_plain_loop(tmp_path):
    found = train(tiny_problem(), Arm(name="a", options={"lr": 0.2}), seed=4, folder=tmp_path / "a" / "seed_4")
    held_out, batches = by_hand(4, 0.2, 10)
    assert steps(found, "val_loss") == [0, 5, 10]
    np.testing.assert_allclose(values(found, "val_loss")[0], held_out[0], rtol=1e-5)
    np.testing.assert_allclose(values(found, "training_loss"), [np.mean(batches[:5]), np.mean(batches[5:])], rtol=1e-5)
    np.testing.assert_allclose(values(found, "val_loss"), held_out, rtol=1e-5)
    seconds = values(found, "training_seconds")
    assert seconds[0] == 0
    assert 0 < seconds[1] < seconds[2]
    assert found.diverged_at is None


def seen(tmp_path, *, seed=0, callbacks=(), draws=0):
    watcher = WeightsSeen(draws)
    arm = Arm(name="a", callbacks=lambda: [*callbacks, watcher])
    train(tiny_problem(), arm, seed=seed, folder=tmp_path / "a" / f"seed_{seed}")
    return watcher.seen


@pytest.mark.parametrize("placement", ["before", "after"])
def test_arms_with_one_seed_are_twins_in_weights_and_order_of_data(tmp_path, placement):
    plain = seen(tmp_path)
    normed = seen(tmp_path, callbacks=[BatchNormInsertion(placement=placement), BatchNormRecalibration()])
    assert len(plain["batches"]) == 10
    for name in ("weights", "batches"):
        for one, other in zip(plain[name], normed[name], strict=True):
            assert torch.equal(one, other)


def test_a_callback_that_draws_while_the_model_is_set_up_changes_nothing(tmp_path):
    plain, drawing = seen(tmp_path), seen(tmp_path, draws=7)
    assert all(torch.equal(one, other) for one, other in zip(plain["batches"], drawing["batches"], strict=True))


def test_seeds_differ_in_weights_and_order(tmp_path):
    one, other = seen(tmp_path, seed=0), seen(tmp_path, seed=1)
    assert not torch.equal(one["weights"][0], other["weights"][0])
    assert not torch.equal(torch.cat(one["batches"][:4]), torch.cat(other["batches"][:4]))


def test_random_state_threads_and_filters_are_left_as_they_were(tmp_path):
    torch.manual_seed(1)
    before, threads, filters = torch.get_rng_state(), torch.get_num_threads(), list(warnings.filters)
    train(tiny_problem(), Arm(name="a"), seed=0, folder=tmp_path / "a" / "seed_0")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert warnings.filters == filters


def test_a_run_whose_weights_blow_up_is_a_result_with_nan_to_the_end(tmp_path):
    problem = tiny_problem(budget=Budget(max_steps=20, eval_every=5))
    found = train(problem, Arm(name="a", options={"blow_up": True}), seed=0, folder=tmp_path / "a" / "seed_0")
    assert found.diverged_at == 10
    assert steps(found, "val_loss") == [0, 5, 10, 20]
    assert [math.isnan(value) for value in values(found, "val_loss")] == [False, False, True, True]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_training_loss_is_that_of_the_batches_however_many_make_a_step(tmp_path, accumulated):
    options = {"accelerator": "cpu", "accumulate_grad_batches": accumulated}
    problem = tiny_problem(budget=Budget(max_steps=2, eval_every=2), trainer_options=options)
    found = train(problem, Arm(name="a", options={"lr": 0.0}), seed=4, folder=tmp_path / "a" / "seed_4")
    # Without learning, 2 or 4 batches of one epoch.
    _, batches = by_hand(4, 0.0, 2 * accumulated)
    np.testing.assert_allclose(values(found, "training_loss"), [np.mean(batches)], rtol=1e-5)


class TwoOptimizers(TinyNet):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]


class FiveBatches(TinyData):
    def train_dataloader(self):
        x = torch.linspace(-1, 1, 15).reshape(5, 3)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()))


@pytest.mark.parametrize(
    "changes",
    [
        {"module": TwoOptimizers},  # 2 steps a batch
        {"data": FiveBatches, "trainer_options": {"accumulate_grad_batches": 2}},  # 3 steps in 5 batches
    ],
)
def test_the_last_step_is_evaluated_however_few_batches_made_it(tmp_path, changes):
    options = {"accelerator": "cpu", **changes.get("trainer_options", {})}
    problem = tiny_problem(**{**changes, "budget": Budget(max_steps=12, eval_every=12), "trainer_options": options})
    found = train(problem, Arm(name="a"), seed=0, folder=tmp_path / "a" / "seed_0")
    assert steps(found, "val_loss") == [0, 12]
    assert values(found, "val_loss")[0] != values(found, "val_loss")[1]


class StepsBySelf(TwoOptimizers):
    def training_step(self, batch, batch_idx):
        self.manual_backward(TinyNet.training_step(self, batch, batch_idx))
        if batch_idx % 2:
            self.optimizers()[0].step()


def test_a_step_that_is_evaluated_twice_is_recorded_once(tmp_path):
    problem = tiny_problem(module=StepsBySelf, budget=Budget(max_steps=2, eval_every=1))
    found = train(problem, Arm(name="a"), seed=0, folder=tmp_path / "a" / "seed_0")
    assert steps(found, "val_loss") == [0, 1, 2]


class StoppingEarly(TinyNet):
    def configure_callbacks(self):
        return [pytorch_lightning.callbacks.EarlyStopping("val_loss", mode="max", patience=1)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"module": StoppingEarly},
            r"last of 20 optimizer steps \(steps evaluated: 0, 5, 10\), because training was ended early by "
            r"EarlyStopping, after step 10\..*configure_callbacks",
        ),
        ({"trainer_options": {"max_epochs": 2}}, r"\(steps evaluated: 0, 5\).*ended early, after step 8\."),
        (
            {"trainer_options": {"check_val_every_n_epoch": 9, "val_check_interval": 1.0}},
            r"\(steps evaluated: 0\).*went on to step 20 without an evaluation.*check_val_every_n_epoch",
        ),
        (
            {"trainer_options": {"max_epochs": 1, "num_sanity_val_steps": 0}},
            r"\(steps evaluated: none\).*ended early, after step 4",
        ),
    ],
)
def test_a_run_without_its_last_evaluation_is_refused(tmp_path, changes, said):
    options = {"accelerator": "cpu", **changes.get("trainer_options", {})}
    problem = tiny_problem(**{**changes, "budget": Budget(max_steps=20, eval_every=5), "trainer_options": options})
    with pytest.raises(RuntimeError, match=said):
        train(problem, Arm(name="a"), seed=0, folder=tmp_path / "a" / "seed_0")


class OtherNet(lightning.LightningModule):
    __init__ = TinyNet.__init__
    forward, training_step = TinyNet.forward, TinyNet.training_step
    validation_step, configure_optimizers = TinyNet.validation_step, TinyNet.configure_optimizers


class OtherData(lightning.LightningDataModule):
    _loader = TinyData._loader
    train_dataloader, val_dataloader = TinyData.train_dataloader, TinyData.val_dataloader


class Watching(pytorch_lightning.Callback):
    trainer_class = None

    def on_fit_start(self, trainer, pl_module):
        type(self).trainer_class = type(trainer)


@pytest.mark.parametrize(
    ("module", "data", "namespace"),
    [(TinyNet, TinyData, pytorch_lightning), (OtherNet, OtherData, lightning)],
)
def test_the_trainer_is_that_of_the_modules_namespace(tmp_path, module, data, namespace):
    if namespace is lightning:
        # super().__init__ of a borrowed method names its own class.
        module = type("Net", (OtherNet,), {"__init__": _init})
    problem = tiny_problem(module=module, data=data)
    found = train(problem, Arm(name="a", callbacks=lambda: [Watching()]), seed=0, folder=tmp_path / "a" / "seed_0")
    assert Watching.trainer_class is namespace.Trainer
    assert values(found, "val_loss")[0] > values(found, "val_loss")[-1]


def _init(self):
    lightning.LightningModule.__init__(self)
    self.lr, self.blow_up, self.metric = 0.1, False, "val_loss"
    self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))


def test_a_model_that_is_no_lightning_module_is_named():
    with pytest.raises(TypeError, match="made a Linear"):
        namespace_of_module(nn.Linear(1, 1))


def test_a_metric_that_is_not_logged_is_named_with_the_near_ones(tmp_path):
    problem = tiny_problem(monitor="vall_loss")
    with pytest.raises(UnknownNameError, match=r"'vall_loss'. Did you mean 'val_loss'"):
        train(problem, Arm(name="a"), seed=0, folder=tmp_path / "a" / "seed_0")


class LoggingTheRecorders(TinyNet):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log_dict({"training_loss": 42.0, "training_seconds": 42.0})


def test_a_logged_metric_with_a_name_of_the_recorder_is_left_out_and_said(tmp_path):
    folder = tmp_path / "a" / "seed_0"
    found = train(tiny_problem(module=LoggingTheRecorders), Arm(name="a"), seed=0, folder=folder)
    assert steps(found, "training_loss") == [5, 10]
    assert steps(found, "training_seconds") == [0, 5, 10]
    assert 42.0 not in values(found, "training_loss") + values(found, "training_seconds")
    said = [text for kind, text in found.warnings if kind == "NoEffectWarning"]
    assert [text.split(", so what the module logs")[0] for text in said] == [
        "A study records 'training_loss' itself",
        "A study records 'training_seconds' itself",
    ]


class TwoLoaders(TinyData):
    def val_dataloader(self):
        return [self._loader(shuffle=False), self.train_dataloader()]


class OfTwoLoaders(TinyNet):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        self.log("whole", 1.0)


def of_two_loaders(**changes):
    return tiny_problem(module=OfTwoLoaders, data=TwoLoaders, monitor="val_loss/dataloader_idx_1", **changes)


def test_a_metric_of_one_of_several_loaders_has_its_step_0(tmp_path):
    found = train(of_two_loaders(), Arm(name="a"), seed=0, folder=tmp_path / "a" / "seed_0")
    for name in ("val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1", "whole"):
        assert steps(found, name) == [0, 5, 10]
    # Both loaders hold the same samples, in batches of one size.
    one, other = (values(found, f"val_loss/dataloader_idx_{place}") for place in (0, 1))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    alone = train(tiny_problem(), Arm(name="a"), seed=0, folder=tmp_path / "b" / "seed_0")
    assert values(alone, "val_loss")[0] == pytest.approx(one[0])


def test_a_metric_of_several_loaders_that_is_misspelt_is_named_with_theirs(tmp_path):
    problem = dataclasses.replace(of_two_loaders(), monitor="val_loss")
    with pytest.raises(UnknownNameError, match=r"'val_loss'.*There are:.*val_loss/dataloader_idx_1, whole"):
        train(problem, Arm(name="a"), seed=0, folder=tmp_path / "a" / "seed_0")


@pytest.mark.parametrize("options", [{}, {"num_sanity_val_steps": 0}])
def test_a_study_by_a_metric_of_one_of_several_loaders_is_reported(tmp_path, options):
    study = tiny_study(problem=of_two_loaders(trainer_options={"accelerator": "cpu", **options}))
    execute(study, out=tmp_path, seeds=2, progress=False)
    published = publish_folder(tmp_path)
    assert published.summary["val_loss/dataloader_idx_1"].notna().all()
    assert not published.remarks


class Unvalidated(TinyData):
    val_dataloader = pytorch_lightning.LightningDataModule.val_dataloader


def test_a_module_that_is_not_validated_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not validated: it needs a validation_step"):
        train(tiny_problem(data=Unvalidated), Arm(name="a"), seed=0, folder=tmp_path / "a" / "seed_0")


class Tabulating(pytorch_lightning.Callback):
    def table(self):
        import pandas as pd

        return pd.DataFrame({"step": [3], "layer": ["net.0"], "quantity": ["width"], "value": [5.0], "more": [1]})


def test_tables_of_callbacks_and_warnings_are_kept(tmp_path):
    class Warning_(pytorch_lightning.Callback):
        def on_train_batch_end(self, *_):
            warnings.warn("mind the gap", UserWarning, stacklevel=1)

    arm = Arm(name="a", callbacks=lambda: [Tabulating(), Warning_()])
    found = train(tiny_problem(), arm, seed=0, folder=tmp_path / "a" / "seed_0")
    assert (3, "net.0", "width", 5.0) in found.rows
    assert [pair for pair in found.warnings if "gap" in pair[1]] == [("UserWarning", "mind the gap")]


def test_trainer_options_reach_the_trainer_and_logs_lie_in_the_cell(tmp_path):
    problem = tiny_problem(trainer_options={"accelerator": "cpu", "precision": "64-true"})
    dtypes = []

    class Dtype(pytorch_lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            dtypes.append(next(pl_module.parameters()).dtype)

    train(problem, Arm(name="a", callbacks=lambda: [Dtype()]), seed=0, folder=tmp_path / "a" / "seed_0")
    assert set(dtypes) == {torch.float64}
    assert list((tmp_path / "a" / "seed_0").glob("events.out.tfevents.*"))


def test_ctrl_c_comes_out_as_itself_and_works_again(tmp_path):
    import signal

    class Interrupting(pytorch_lightning.Callback):
        def on_train_batch_start(self, *_):
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    arm = Arm(name="a", callbacks=functools.partial(list, [Interrupting()]))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_problem(), arm, seed=0, folder=tmp_path / "a" / "seed_0")
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_exit_of_the_users_own_stays_one(tmp_path):
    class Exiting(pytorch_lightning.Callback):
        def on_train_batch_start(self, *_):
            raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        train(tiny_problem(), Arm(name="a", callbacks=lambda: [Exiting()]), seed=0, folder=tmp_path / "a" / "seed_0")


class OnPlateau(TinyNet):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


def test_a_scheduler_that_waits_for_a_metric_needs_an_evaluation_an_epoch(tmp_path):
    batches = len(TinyData().train_dataloader())
    problem = tiny_problem(module=OnPlateau, budget=Budget(max_steps=3 * batches, eval_every=batches))
    training = train(problem, Arm(name="plain"), seed=0, folder=tmp_path / "plain" / "seed_0")
    assert steps(training, "val_loss") == [0, batches, 2 * batches, 3 * batches]
    rare = dataclasses.replace(problem, budget=Budget(max_steps=3 * batches, eval_every=3 * batches))
    with pytest.raises(ValueError, match=rf"of OnPlateau takes a metric .* eval_every={batches} \(--eval-every\)"):
        train(rare, Arm(name="plain"), seed=0, folder=tmp_path / "rare" / "seed_0")
