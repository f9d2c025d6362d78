"""Checkpoints recalibrated offline: what the new file carries, that it is better, and what is refused."""

from functools import partial

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from oracles import norm_inputs, pooled_statistics
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from bn_lightning.analysis.recalibrate_checkpoint import recalibrate_checkpoint
from bn_lightning.callbacks.insertion import BatchNormInsertion
from bn_lightning.errors import NoNormError, PlanMismatchError, RunFolderError, StatisticsWarning
from bn_lightning.surgery.checkpoint import load_from_checkpoint

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def make_classes(namespace):
    class Net(namespace.LightningModule):
        def __init__(self, width=6, manual=False, momentum=0.01):
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = not manual
            # Slow statistics, so that the running ones lag far behind.
            self.net = nn.Sequential(
                nn.Linear(3, width), nn.BatchNorm1d(width, momentum=momentum), nn.ReLU(), nn.Linear(width, 1)
            )

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            loss = F.mse_loss(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Data(namespace.LightningDataModule):
        def __init__(self, offset=0.0, combine=False):
            super().__init__()
            self.offset, self.combine = offset, combine

        def setup(self, stage):
            if stage == "fit":
                x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1)) * 2 + 3
                self.train = TensorDataset(x + self.offset, x.sum(1, keepdim=True).sin())
            x = torch.randn(64, 3, generator=torch.Generator().manual_seed(2)) * 2 + 3
            self.val = TensorDataset(x + self.offset, x.sum(1, keepdim=True).sin())

        def train_dataloader(self):
            loader = DataLoader(self.train, batch_size=16, shuffle=True)
            return {"a": loader, "b": loader} if self.combine else loader

        def val_dataloader(self):
            return DataLoader(self.val, batch_size=16)

    return Net, Data


Net, Data = make_classes(pytorch_lightning)


def train(path, module, data, *callbacks, namespace=pytorch_lightning):
    trainer = namespace.Trainer(max_epochs=10, callbacks=list(callbacks), **QUIET)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return train(tmp_path / "last.ckpt", Net(), Data())


def loaded(path):
    return torch.load(path, weights_only=True)


def expected_statistics(saved, data):
    data.setup("fit")
    net = Net(len(saved["state_dict"]["net.0.bias"])).net
    net.load_state_dict({name.removeprefix("net."): value for name, value in saved["state_dict"].items()})
    return pooled_statistics(norm_inputs(net, [data.train.tensors[0]])["1"])


@pytest.mark.parametrize("namespace", [pytorch_lightning, lightning.pytorch], ids=lambda space: space.__name__)
def test_a_new_checkpoint_with_population_statistics_and_a_lower_loss(tmp_path, namespace):
    net, data = make_classes(namespace)
    path = train(tmp_path / "last.ckpt", net(), data(), namespace=namespace)
    old = path.read_bytes()
    result = recalibrate_checkpoint(path, model=net, data=data)
    assert result.path == tmp_path / "last.recalibrated.ckpt"
    assert path.read_bytes() == old
    assert result.after["val_loss"] < result.before["val_loss"]
    assert (result.report.batches, result.report.layers[0].count) == (4, 64)
    before, after = loaded(path), loaded(result.path)
    assert after["bn_lightning_statistics"] == {"kind": "population", "estimator": "pooled", "global_step": 40}
    assert before.keys() | {"bn_lightning_statistics"} == after.keys()
    mean, variance = expected_statistics(before, data())
    assert_close(after["state_dict"]["net.1.running_mean"], mean.float())
    assert_close(after["state_dict"]["net.1.running_var"], variance.float())
    for name, value in before["state_dict"].items():
        assert name.endswith(("running_mean", "running_var")) or torch.equal(after["state_dict"][name], value)
    fresh = net.load_from_checkpoint(result.path, weights_only=True)
    (found,) = namespace.Trainer(**QUIET).validate(fresh, datamodule=data(), verbose=False)
    assert_close(found["val_loss"], result.after["val_loss"])


def test_options_reach_the_recalibration(checkpoint, tmp_path, capsys):
    options = {"model": Net, "data": partial(Data, combine=False), "out": tmp_path / "new.ckpt"}
    result = recalibrate_checkpoint(checkpoint, **options, num_batches=3, regroup=32, progress=True)
    assert result.path == tmp_path / "new.ckpt"
    assert (result.report.batches, result.report.layers[0].count) == (2, 48)
    assert "Batches for the statistics" in capsys.readouterr().err
    assert recalibrate_checkpoint(checkpoint, **options, estimator="paper").report.estimator == "paper"
    again = recalibrate_checkpoint(checkpoint, **options)
    assert_close(again.after, recalibrate_checkpoint(checkpoint, **options).after, rtol=0, atol=0)


def test_the_forward_alone_needs_no_labels_and_no_automatic_optimization(checkpoint):
    make = partial(Net, manual=True)
    with pytest.raises(MisconfigurationException, match=r"training_step of Net cannot.*manual.*--entry forward"):
        recalibrate_checkpoint(checkpoint, model=make, data=Data)
    result = recalibrate_checkpoint(checkpoint, model=make, data=partial(Data, offset=5.0), entry="forward")
    mean, _ = expected_statistics(loaded(checkpoint), Data(offset=5.0))
    assert_close(loaded(result.path)["state_dict"]["net.1.running_mean"], mean.float())


def test_another_domain_is_warned_of_and_gains(tmp_path):
    make = partial(Net, momentum=0.1)
    path = train(tmp_path / "last.ckpt", make(), Data())
    with pytest.warns(StatisticsWarning, match=r"statistics of 'net.1' moved far"):
        result = recalibrate_checkpoint(path, model=make, data=partial(Data, offset=5.0))
    assert result.after["val_loss"] < result.before["val_loss"]


def test_loaders_that_are_combined(checkpoint):
    class Both(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["b"], batch_idx)

    result = recalibrate_checkpoint(checkpoint, model=Both, data=partial(Data, combine=True))
    assert result.report.layers[0].count == 64


def test_norms_that_were_inserted_are_rebuilt_from_the_checkpoint(tmp_path):
    class Bare(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
            self.example_input_array = torch.randn(8, 3)

    path = train(tmp_path / "inserted.ckpt", Bare(), Data(), BatchNormInsertion())
    result = recalibrate_checkpoint(path, model=Bare, data=Data)
    module = load_from_checkpoint(Bare, result.path, weights_only=True)
    (layer,) = result.report.layers
    data = Data()
    data.setup("fit")
    inputs = module.net[0].double().weight @ data.train.tensors[0].double().T
    found = module.get_submodule(layer.layer).running_mean - module.net[0].bias
    assert_close(found, inputs.mean(1))


def test_a_norm_of_two_names_gets_its_statistics_under_both(tmp_path):
    """Loading takes the values of the last name, so old ones there would undo all of it."""

    class Aliased(Net):
        def __init__(self):
            super().__init__()
            self.alias = self.net[1]

    written = recalibrate_checkpoint(train(tmp_path / "a.ckpt", Aliased(), Data()), model=Aliased, data=Data)
    saved = loaded(written.path)
    fresh = Aliased()
    fresh.load_state_dict(saved["state_dict"])
    mean, variance = expected_statistics({"state_dict": fresh.net.state_dict(prefix="net.")}, Data())
    assert_close(fresh.net[1].running_mean, mean.float())
    assert_close(fresh.net[1].running_var, variance.float())


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_that_are_built_by_the_trainer(tmp_path, hook, insert):
    class Late(Net):
        def build(self, stage=None):
            if not hasattr(self, "net"):
                self.net = self.kept

        def __init__(self):
            super().__init__()
            net = self.net
            del self.net
            # Not as a sub-module yet.
            self.__dict__["kept"] = nn.Sequential(net[0], *([] if insert else [net[1]]), *net[2:])

    setattr(Late, hook, Late.build)
    callbacks = [BatchNormInsertion()] if insert else []
    checkpoint = train(tmp_path / "late.ckpt", Late(), Data(), *callbacks)
    written = recalibrate_checkpoint(checkpoint, model=Late, data=Data)
    old, new = loaded(checkpoint)["state_dict"], loaded(written.path)["state_dict"]
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var"}
    assert written.after["val_loss"] != written.before["val_loss"]
    data = Data()
    data.setup("fit")
    inputs = F.linear(data.train.tensors[0].double(), new["net.0.weight"].double(), new["net.0.bias"].double())
    (mean,) = (new[name] for name in changed if name.endswith("running_mean"))
    assert_close(mean, inputs.mean(0).float())


def test_a_setup_that_builds_the_layers_each_time(tmp_path):
    """The second validation sets the module up again, which throws the loaded weights away."""

    class Rebuilding(Net):
        def __init__(self):
            super().__init__()
            del self.net

        def setup(self, stage):
            torch.manual_seed(7)
            self.net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))

    checkpoint = train(tmp_path / "rebuilt.ckpt", Rebuilding(), Data())
    saved = loaded(recalibrate_checkpoint(checkpoint, model=Rebuilding, data=Data).path)
    mean, variance = expected_statistics(saved, Data())
    assert_close(saved["state_dict"]["net.1.running_mean"], mean.float())
    assert_close(saved["state_dict"]["net.1.running_var"], variance.float())


def test_a_data_module_that_asks_for_its_trainer(checkpoint):
    class Asking(Data):
        def setup(self, stage):
            assert self.trainer.world_size == 1
            super().setup(stage)

    assert recalibrate_checkpoint(checkpoint, model=Net, data=Asking).report.batches == 4


def test_what_is_no_data_module_is_named(checkpoint):
    with pytest.raises(TypeError, match=r"made a DataLoader.*LightningDataModule"):
        recalibrate_checkpoint(checkpoint, model=Net, data=partial(DataLoader, [torch.ones(1)]))


def test_what_cannot_be_recalibrated(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"out=.*last.ckpt' is the checkpoint itself"):
        recalibrate_checkpoint(checkpoint, model=Net, data=Data, out=checkpoint)
    with pytest.raises(RunFolderError, match="There is no checkpoint"):
        recalibrate_checkpoint(tmp_path / "absent.ckpt", model=Net, data=Data)
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "plain.ckpt")
    with pytest.raises(NoNormError, match=r"plain.ckpt holds no running statistics of batch norms"):
        recalibrate_checkpoint(tmp_path / "plain.ckpt", model=Net, data=Data)
    with pytest.raises(PlanMismatchError, match=r"not a checkpoint of Net with these arguments.*size mismatch"):
        recalibrate_checkpoint(checkpoint, model=partial(Net, width=7), data=Data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "plain.ckpt"]


def test_a_checkpoint_of_another_model_names_what_differs(checkpoint):
    class Deeper(Net):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 1)
            self.net[3] = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1))

    with pytest.raises(
        PlanMismatchError, match=r"lacks net.3.0.weight,.* and 3 more and has net.3.weight, net.3.bias besides"
    ):
        recalibrate_checkpoint(checkpoint, model=Deeper, data=Data)


def test_no_module_and_no_validation_data(checkpoint):
    with pytest.raises(TypeError, match="made a Linear"):
        recalibrate_checkpoint(checkpoint, model=partial(nn.Linear, 1, 1), data=Data)

    class Unvalidated(Data):
        def val_dataloader(self):
            return []

    with pytest.raises(ValueError, match=r"Net was not validated.*hold no batch"):
        recalibrate_checkpoint(checkpoint, model=Net, data=Unvalidated)


def test_nan_in_the_data_leaves_no_file(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="NaN or infinite"):
        recalibrate_checkpoint(checkpoint, model=Net, data=partial(Data, offset=float("nan")))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
