import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.callbacks._example import example_of
from bn_lightning.errors import BatchSizeError, NoEffectWarning, NoSiteError, PlanMismatchError, UnknownNameError
from bn_lightning.surgery.attach import apply_plan, insert_batch_norm, remove_batch_norm
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.checkpoint import load_from_checkpoint
from bn_lightning.surgery.plan import InsertionPlan


class Lit(pl.LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def data(samples: int = 32) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(samples, 4, generator=generator), torch.randint(0, 3, (samples,), generator=generator)
    )


def loader(**options) -> DataLoader:
    return DataLoader(data(), batch_size=8, **options)


def trainer(tmp_path, *callbacks, **options) -> pl.Trainer:
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options}
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def module(seed: int = 0, kind: type[pl.LightningModule] = Lit, **arguments) -> pl.LightningModule:
    torch.manual_seed(seed)
    return kind(**arguments)


def norms_of(model: nn.Module) -> list[nn.BatchNorm1d]:
    return [norm for name, norm in model.named_modules() if "bn_lightning_norm." in name]


@pytest.mark.parametrize("placement", ["before", "after"])
def test_one_line_gives_a_script_batch_norm_that_is_trained(tmp_path, placement):
    model = module()
    fit = trainer(tmp_path, BatchNormInsertion(placement=placement))
    fit.fit(model, loader())
    norms = norms_of(model)
    assert [int(norm.num_batches_tracked) for norm in norms] == [8, 8]
    held = {id(parameter) for parameter in fit.optimizers[0].param_groups[0]["params"]}
    assert all(id(parameter) in held for norm in norms for parameter in norm.parameters())
    assert all((norm.weight != 1).any() for norm in norms)


def test_training_equals_that_of_a_model_with_the_norms_put_in_by_hand(tmp_path):
    by_callback, by_hand = module(), module()
    insert_batch_norm(by_hand, (data()[:8][0],))
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path, BatchNormInsertion()).fit(by_callback, loader(shuffle=True))
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path).fit(by_hand, loader(shuffle=True))
    torch.testing.assert_close(by_callback.state_dict(), by_hand.state_dict(), rtol=0, atol=0)


class BuiltInSetup(Lit):
    def __init__(self) -> None:
        super().__init__()
        del self.net

    def setup(self, stage: str) -> None:
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class BuiltInConfigureModel(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.net = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("kind", [BuiltInSetup, BuiltInConfigureModel])
def test_modules_that_build_their_layers_late(tmp_path, kind):
    model = module(kind=kind)
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(model, loader())
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [8]
    assert "configure_model" not in vars(model)
    held = {id(parameter) for parameter in fit.optimizers[0].param_groups[0]["params"]}
    assert id(norms_of(model)[0].weight) in held


class WithExample(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 4)

    def training_step(self, batch, batch_idx):
        assert self.trainer.training
        assert self.trainer.state.stage is not None
        assert self.trainer.train_dataloader is not None, "ran before the loaders were set up"
        return super().training_step(batch, batch_idx)


def test_with_an_example_input_array_forward_is_traced_and_no_batch_is_taken(tmp_path):
    callback = BatchNormInsertion()
    trainer(tmp_path, callback).fit(module(kind=WithExample), loader())
    assert callback.plan.entry == "forward"


def test_without_one_the_first_batch_goes_through_the_transfer_hooks_and_logging_is_muted(tmp_path):
    class Transferred(Lit):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch["x"], batch["y"]

    class Dictionaries(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return {"x": x, "y": y}

    callback = BatchNormInsertion()
    loaders = DataLoader(Dictionaries(*data().tensors), batch_size=8)
    trainer(tmp_path, callback).fit(module(kind=Transferred), loaders)
    assert callback.plan.entry == "training_step"
    assert callback.plan.inserted[0].shape == (8, 8)


def test_tracing_leaves_the_metrics_of_the_module_alone(tmp_path):
    class Measured(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = MulticlassAccuracy(num_classes=3, average="micro")

        def training_step(self, batch, batch_idx):
            self.accuracy(self(batch[0]), batch[1])
            return super().training_step(batch, batch_idx)

    model = module(kind=Measured)
    trainer(tmp_path, BatchNormInsertion(), max_epochs=1).fit(model, loader())
    assert model.accuracy._update_count == 4


def test_taking_the_example_moves_neither_random_state_nor_generators_nor_the_loader(tmp_path):
    order: list[list[int]] = []

    class Recorded(Lit):
        def on_train_batch_start(self, batch, batch_idx):
            order[-1].extend(batch[1].tolist())

    for callbacks in ([], [BatchNormInsertion()]):
        order.append([])
        pl.seed_everything(3, verbose=False)
        shuffled = loader(shuffle=True, generator=torch.Generator().manual_seed(5))
        trainer(tmp_path, *callbacks).fit(module(kind=Recorded), shuffled)
        order[-1].append(int(torch.randint(0, 10**9, ())))
    assert order[0] == order[1]


def test_a_checkpoint_loads_in_a_new_process_with_weights_only(tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, filename="end")
    model = module()
    trainer(tmp_path, BatchNormInsertion(), saving, enable_checkpointing=True).fit(model, loader())
    expected = model.eval()(data()[:8][0])
    script = textwrap.dedent(
        """
        import sys, torch
        sys.path.insert(0, sys.argv[1])
        from test_insertion import Lit, data
        import bn_lightning as bnl
        checkpoint = torch.load(sys.argv[2], weights_only=True)
        plan = bnl.InsertionPlan.from_dict(checkpoint["bn_lightning"]["plan"])
        model = Lit(**checkpoint["hyper_parameters"])
        bnl.apply_plan(model, plan)
        model.load_state_dict(checkpoint["state_dict"])
        torch.save(model.eval()(data()[:8][0]), sys.argv[3])
        """
    )
    here = Path(__file__).parent
    result = tmp_path / "out.pt"
    done = subprocess.run(
        [sys.executable, "-c", script, str(here), str(tmp_path / "end.ckpt"), str(result)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(result), expected)


def test_load_from_checkpoint_gives_an_unmodified_class_its_norms(tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, filename="end", save_weights_only=True)
    model = module(width=6)
    trainer(tmp_path, BatchNormInsertion(), saving, enable_checkpointing=True).fit(model, loader())
    loaded = load_from_checkpoint(Lit, tmp_path / "end.ckpt", map_location="cpu")
    assert type(loaded) is Lit
    assert torch.equal(loaded.eval()(data()[:8][0]), model.eval()(data()[:8][0]))
    assert plan_of(loaded).structure == plan_of(model).structure


@pytest.mark.parametrize("how", ["test", "validate"])
def test_a_fresh_module_takes_its_norms_from_the_checkpoint(tmp_path, how):
    model = module()
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    fresh = module(seed=9)
    evaluate = trainer(tmp_path, BatchNormInsertion())
    metrics = getattr(evaluate, how)(fresh, loader(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    x, y = data()[:]
    expected = torch.stack([F.cross_entropy(model.eval()(a), b) for a, b in zip(x.split(8), y.split(8), strict=True)])
    assert metrics[0]["val_loss"] == pytest.approx(expected.mean().item(), rel=1e-6)  # Lightning averages in float32


def test_resuming_from_an_epochs_end_equals_an_uninterrupted_run_to_the_bit(tmp_path):
    whole, first = module(), module()
    trainer(tmp_path, BatchNormInsertion(), max_epochs=4).fit(whole, loader())
    half = trainer(tmp_path, BatchNormInsertion())
    half.fit(first, loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module(seed=5)
    trainer(tmp_path, BatchNormInsertion(), max_epochs=4).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_resume_with_the_callback_equals_the_same_resume_without_it(tmp_path):
    class Dropping(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.net.append(nn.Dropout(0.3))

    start, path = trainer(tmp_path, BatchNormInsertion(), max_steps=3), tmp_path / "mid.ckpt"
    start.fit(module(kind=Dropping), loader(shuffle=True))
    start.save_checkpoint(path)
    with_callback, without = module(kind=Dropping), module(kind=Dropping)
    plan = InsertionPlan.from_dict(torch.load(path, weights_only=True)["bn_lightning"]["plan"])
    apply_plan(without, plan)
    for model, callbacks in ((with_callback, [BatchNormInsertion()]), (without, [])):
        pl.seed_everything(7, verbose=False)
        trainer(tmp_path, *callbacks, max_epochs=3).fit(model, loader(shuffle=True), ckpt_path=path)
    torch.testing.assert_close(with_callback.state_dict(), without.state_dict(), rtol=0, atol=0)


def test_a_second_fit_keeps_the_norms_and_other_settings_are_refused(tmp_path):
    model = module()
    trainer(tmp_path, BatchNormInsertion()).fit(model, loader())
    norms = norms_of(model)
    trainer(tmp_path, BatchNormInsertion()).fit(model, loader())
    assert norms_of(model) == norms
    with pytest.raises(MisconfigurationException, match=r"already carries norms \(batch, before\)"):
        trainer(tmp_path, BatchNormInsertion(placement="after")).fit(model, loader())


def test_a_checkpoint_without_norms_is_refused_with_the_way_out(tmp_path):
    fit = trainer(tmp_path)
    fit.fit(module(), loader())
    fit.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(PlanMismatchError, match="written without inserted norms"):
        trainer(tmp_path, BatchNormInsertion(), max_epochs=4).fit(module(), loader(), ckpt_path=tmp_path / "plain.ckpt")


def test_norms_removed_after_training_leave_a_module_that_saves_plainly(tmp_path):
    model = module()
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(model, loader())
    with pytest.warns(UserWarning, match="2 trained norms were removed"):
        remove_batch_norm(model)
    fit.save_checkpoint(tmp_path / "removed.ckpt")
    assert "bn_lightning" not in torch.load(tmp_path / "removed.ckpt", weights_only=True)
    Lit.load_from_checkpoint(tmp_path / "removed.ckpt")


def test_weight_averaging_after_it_averages_the_norms_too(tmp_path):
    model = module()
    averaging = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    trainer(tmp_path, BatchNormInsertion(), averaging, max_epochs=4).fit(model, loader())
    assert all(torch.isfinite(norm.running_var).all() for norm in norms_of(model))


def test_parameters_that_no_optimizer_holds_are_named(tmp_path):
    class Collected(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.collected = [*self.net.parameters()]

        def configure_optimizers(self):
            return torch.optim.SGD(self.collected, lr=0.1)

    with pytest.raises(MisconfigurationException, match=r"No optimizer holds .* net\.0\.bn_lightning_norm\.0\.weight"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(kind=Collected), loader())


def test_unknown_names_are_refused_at_once():
    with pytest.raises(UnknownNameError, match="placement is 'before' or 'after' the nonlinearity, not 'around'"):
        BatchNormInsertion(placement="around")
    with pytest.raises(UnknownNameError, match="No norm is called 'bacth'"):
        BatchNormInsertion(norm="bacth")


def test_a_model_without_nonlinearity(tmp_path):
    class Straight(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 3))

    with pytest.raises(NoSiteError, match=r"No nonlinearity was called when Straight\.training_step ran") as caught:
        trainer(tmp_path, BatchNormInsertion()).fit(module(kind=Straight), loader())
    assert any("Set example_input_array" in note for note in caught.value.__notes__)


def test_empty_and_one_shot_training_data(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return self

        def __next__(self):
            return torch.randn(4), torch.tensor(0)

    with pytest.raises(MisconfigurationException, match=r"hold no batch to trace with\. Set example_input_array"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(), [])
    with pytest.raises(MisconfigurationException, match=r"from a Stream, an iterator.*Set example_input_array"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(), DataLoader(Stream(), batch_size=8))
    batches = iter([(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))])
    with pytest.raises(MisconfigurationException, match="from a list_iterator, an iterator"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(), batches)


def test_no_training_data_and_no_checkpoint_to_validate_with(tmp_path):
    with pytest.warns(NoEffectWarning, match="outside fit there is no training batch to trace Lit with"):
        trainer(tmp_path, BatchNormInsertion()).validate(module(), loader(), verbose=False)


def test_training_on_batches_of_one_sample_names_the_site(tmp_path):
    with pytest.raises(BatchSizeError, match=r"batch norm at 'net\.1' received 1 value per channel"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(), DataLoader(data(), batch_size=1))


def test_other_shapes_of_training_data(tmp_path):
    class Iterable(IterableDataset):
        def __iter__(self):
            x, y = data()[:]
            return iter(list(zip(x, y, strict=True)))

    class Named(Lit):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    one = DataLoader(Iterable(), batch_size=8)
    trainer(tmp_path, BatchNormInsertion()).fit(module(), one)
    trainer(tmp_path, BatchNormInsertion()).fit(module(kind=Named), {"a": loader(), "b": loader()})

    class Batches:
        def __iter__(self):
            return iter([data()[:8], data()[8:16]])

    trainer(tmp_path, BatchNormInsertion()).fit(module(), Batches())


def test_the_other_namespace(tmp_path):
    lightning = importlib.import_module("lightning.pytorch")

    class Other(lightning.LightningModule):
        forward, training_step = Lit.forward, Lit.training_step
        configure_optimizers = Lit.configure_optimizers

        def __init__(self) -> None:
            lightning.LightningModule.__init__(self)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    model = Other()
    fit = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[BatchNormInsertion()],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
    )
    fit.fit(model, loader())
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [4]
    other = importlib.import_module("lightning.pytorch.utilities.exceptions")
    with pytest.raises(other.MisconfigurationException, match="hold no batch to trace with"):
        fit.fit(Other(), [])


def test_two_processes_train_the_same_norms(tmp_path):
    script = textwrap.dedent(
        """
        import sys, torch
        sys.path.insert(0, sys.argv[1])
        from test_insertion import BatchNormInsertion, loader, module, norms_of, pl
        if __name__ == "__main__":
            torch.set_num_threads(1)
            model = module()
            fit = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
                             callbacks=[BatchNormInsertion()], enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[2])
            fit.fit(model, loader())
            torch.save(model.state_dict(), f"{sys.argv[2]}/rank{fit.global_rank}.pt")
            assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [4, 4]
        """
    )
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    weights = [{k: v for k, v in state.items() if "running" not in k} for state in ranks]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [StochasticWeightAveraging, EMAWeightAveraging])
def test_averaging_before_insertion_is_refused_with_the_right_order(tmp_path, kind):
    averaging = kind(swa_lrs=0.05) if kind is StochasticWeightAveraging else kind()
    match = rf"callbacks=\[BatchNormInsertion\(\), {kind.__name__}"
    with pytest.raises(MisconfigurationException, match=match):
        trainer(tmp_path, averaging, BatchNormInsertion()).fit(module(), loader())


def test_a_setup_that_fails_leaves_no_patch(tmp_path):
    class Failing(BuiltInSetup):
        def setup(self, stage: str) -> None:
            raise RuntimeError("no layers today")

    model = module(kind=Failing)
    with pytest.raises(RuntimeError, match="no layers today"):
        trainer(tmp_path, BatchNormInsertion()).fit(model, loader())
    assert "configure_model" not in vars(model)


def test_manual_optimization_needs_an_example(tmp_path):
    class Manual(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    with pytest.raises(MisconfigurationException, match=r"Manual optimizes manually.*Set example_input_array"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(kind=Manual), loader())
    model = module(kind=Manual)
    model.example_input_array = torch.zeros(2, 4)
    trainer(tmp_path, BatchNormInsertion()).fit(model, loader())
    assert all((norm.weight != 1).any() for norm in norms_of(model))


def test_a_backbone_that_was_normalised_by_hand_travels_in_checkpoints(tmp_path):
    model = module()
    insert_batch_norm(model.net, (data()[:8][0],))
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    loaded = load_from_checkpoint(Lit, tmp_path / "end.ckpt")
    assert torch.equal(loaded.eval()(data()[:8][0]), model.eval()(data()[:8][0]))


def test_an_example_without_any_training_data(tmp_path):
    with pytest.raises(MisconfigurationException, match="no training data to take an example batch from"):
        example_of(trainer(tmp_path), module())
