import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path

import torch
from inserted import loader, module, pl
from recipe_cases import ByHand, Whole, weights_of
from torch.utils.data import DistributedSampler

from bn_lightning.callbacks import BatchNormInsertion, BatchNormRecipe

folder = Path(sys.argv[2])


class Orders(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        sampler = trainer.train_dataloader.sampler
        assert isinstance(sampler, DistributedSampler) and sampler.shuffle
        self.seen.append(list(sampler))


def fit(model, loaders, *callbacks, ckpt_path=None, max_epochs=2):
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, callbacks=list(callbacks), max_epochs=max_epochs,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )
    trainer.fit(model, loaders, ckpt_path=ckpt_path)
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    kinds, orders = {"recipe": Whole, "by_hand": ByHand}, Orders()
    models = {name: module(kind=kind) for name, kind in kinds.items()}
    fit(models["recipe"], loader(), BatchNormRecipe(), BatchNormInsertion(), orders)
    rank = models["recipe"].global_rank
    fit(models["by_hand"], loader(shuffle=True), BatchNormInsertion())
    assert orders.seen[0] != orders.seen[1]
    fit(module(kind=Whole), loader(), BatchNormRecipe(), BatchNormInsertion(), max_epochs=1).save_checkpoint(
        folder / "half.ckpt"
    )
    models["resumed"] = module(4, kind=Whole)
    fit(models["resumed"], loader(), BatchNormRecipe(), BatchNormInsertion(), ckpt_path=folder / "half.ckpt")
    for name, model in models.items():
        torch.save(weights_of(model), folder / f"{name}{rank}.pt")
"""


def test_two_processes_train_as_with_the_recipe_by_hand_and_resume(tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(Path(__file__).parents[1]), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    saved = {
        name: [torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1)]
        for name in ("recipe", "by_hand", "resumed")
    }
    torch.testing.assert_close(saved["recipe"], saved["by_hand"])
    torch.testing.assert_close(saved["resumed"][0], saved["recipe"][0])
    learned = [{key: x for key, x in state.items() if "running" not in key} for state in saved["recipe"]]
    torch.testing.assert_close(learned[0], learned[1], rtol=0, atol=0)
