import pytest
import pytorch_lightning as pl
import torch
from inserted import Lit, data, loader, module, norms_of, trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.checkpoint_mixin import InsertedNormsMixin
from bn_lightning.surgery.insert import insert_batch_norm


class Carrying(InsertedNormsMixin, Lit):
    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.seen: list[str] = []

    def on_load_checkpoint(self, checkpoint):
        self.seen.append("load")
        super().on_load_checkpoint(checkpoint)

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


def half(channels: int) -> nn.Module:
    return nn.BatchNorm1d(channels, momentum=0.5)


class CarryingOwnNorms(Carrying):
    inserted_norm = half


class CarryingStaticNorms(Carrying):
    inserted_norm = staticmethod(half)


@pytest.mark.parametrize("save_weights_only", [False, True])
@pytest.mark.parametrize(("kind", "norm"), [(Carrying, "batch"), (CarryingOwnNorms, half), (CarryingStaticNorms, half)])
def test_the_class_loads_its_own_checkpoints(tmp_path, save_weights_only, kind, norm):
    model = module(kind=kind, width=6)
    saving = ModelCheckpoint(dirpath=tmp_path, filename="end", save_weights_only=save_weights_only)
    trainer(tmp_path, BatchNormInsertion(norm=norm), saving, enable_checkpointing=True).fit(model, loader())
    loaded = kind.load_from_checkpoint(tmp_path / "end.ckpt")
    assert torch.equal(loaded.eval()(data()[:8][0]), model.eval()(data()[:8][0]))
    assert plan_of(loaded) == plan_of(model)
    assert [layer.momentum for layer in norms_of(loaded)] == [0.1 if norm == "batch" else 0.5] * 2


def test_a_trainer_without_the_callback_evaluates_predicts_and_resumes(tmp_path):
    model, path = module(kind=Carrying), tmp_path / "end.ckpt"
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(model, loader())
    fit.save_checkpoint(path)
    (tested,) = trainer(tmp_path).test(model, loader(), verbose=False)
    (again,) = trainer(tmp_path).test(module(3, Carrying), loader(), ckpt_path=path, verbose=False)
    assert again == tested
    fresh = module(4, Carrying)
    predicted = torch.cat(trainer(tmp_path).predict(fresh, loader(), ckpt_path=path))
    assert torch.equal(predicted, torch.cat([model.eval()(batch[0]) for batch in loader()]))
    assert fresh.seen == ["load"]
    whole, resumed = module(kind=Carrying), module(5, Carrying)
    trainer(tmp_path, BatchNormInsertion(), max_epochs=4).fit(whole, loader())
    trainer(tmp_path, max_epochs=4).fit(resumed, loader(), ckpt_path=path)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_norms_put_in_by_hand_are_written_without_a_callback(tmp_path):
    model = module(kind=Carrying)
    insert_batch_norm(model, (data()[:8][0],))
    fit = trainer(tmp_path)
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    loaded = Carrying.load_from_checkpoint(tmp_path / "end.ckpt")
    assert torch.equal(loaded.eval()(data()[:8][0]), model.eval()(data()[:8][0]))


def test_a_module_without_norms_saves_and_loads_as_ever(tmp_path):
    fit = trainer(tmp_path)
    fit.fit(module(kind=Carrying), loader())
    fit.save_checkpoint(tmp_path / "plain.ckpt")
    assert "bn_lightning" not in torch.load(tmp_path / "plain.ckpt", weights_only=True)
    assert plan_of(Carrying.load_from_checkpoint(tmp_path / "plain.ckpt")) is None
    carrying = module(kind=Carrying)
    insert_batch_norm(carrying, (data()[:8][0],))
    with pytest.raises(PlanMismatchError, match="written without inserted norms"):
        trainer(tmp_path).test(carrying, loader(), ckpt_path=tmp_path / "plain.ckpt", verbose=False)


def test_bases_in_the_wrong_order_are_refused():
    with pytest.raises(TypeError, match=r"Wrong has LightningModule before .*class Wrong\(InsertedNormsMixin, "):

        class Wrong(pl.LightningModule, InsertedNormsMixin):
            pass


def test_a_mixin_of_the_users_own_may_stand_before_it():
    class Noting:
        def on_save_checkpoint(self, checkpoint):
            checkpoint["note"] = "mine"
            super().on_save_checkpoint(checkpoint)

    class Both(Noting, InsertedNormsMixin, Lit):
        pass

    model, checkpoint = Both(), {}
    insert_batch_norm(model, (data()[:8][0],))
    model.on_save_checkpoint(checkpoint)
    assert set(checkpoint) == {"note", "bn_lightning"}
