import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from inserted import Lit, data, loader, module, trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.attach import apply_plan, remove_batch_norm
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.checkpoint import load_from_checkpoint
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.plan import InsertionPlan


def test_a_checkpoint_loads_in_a_new_process_with_weights_only(tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, filename="end")
    model = module()
    trainer(tmp_path, BatchNormInsertion(), saving, enable_checkpointing=True).fit(model, loader())
    expected = model.eval()(data()[:8][0])
    script = textwrap.dedent(
        """
        import sys, torch
        sys.path.insert(0, sys.argv[1])
        from inserted import Lit, data
        import bn_lightning as bnl
        checkpoint = torch.load(sys.argv[2], weights_only=True)
        plan = bnl.InsertionPlan.from_dict(checkpoint["bn_lightning"]["plan"])
        model = Lit(**checkpoint["hyper_parameters"])
        bnl.apply_plan(model, plan)
        model.load_state_dict(checkpoint["state_dict"])
        torch.save(model.eval()(data()[:8][0]), sys.argv[3])
        """
    )
    here = Path(__file__).parents[1]
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


def test_a_fresh_module_predicts_with_the_norms_of_a_checkpoint(tmp_path):
    class Predicting(Lit):
        def predict_step(self, batch, batch_idx):
            return self(batch[0])

    model, fresh = module(kind=Predicting), module(9, Predicting)
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    predicted = trainer(tmp_path, BatchNormInsertion()).predict(fresh, loader(), ckpt_path=tmp_path / "end.ckpt")
    assert torch.equal(torch.cat(predicted), torch.cat([model.eval()(batch[0]) for batch in loader()]))


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


def test_a_backbone_that_was_normalised_by_hand_travels_in_checkpoints(tmp_path):
    model = module()
    insert_batch_norm(model.net, (data()[:8][0],))
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    loaded = load_from_checkpoint(Lit, tmp_path / "end.ckpt")
    assert torch.equal(loaded.eval()(data()[:8][0]), model.eval()(data()[:8][0]))
