from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from monitored import quiet_trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bn_lightning.callbacks import ActivationMonitor, BatchNormInsertion, BatchNormRecalibration
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.plan import InsertionPlan


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        return self.c(self.drop(F.relu(self.b(torch.tanh(self.a(x))))))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(**options) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 4, generator=generator), torch.randint(0, 3, (48,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8, **options)


def ours() -> list:
    return [BatchNormInsertion(), BatchNormRecalibration(), ActivationMonitor(every_n_steps=2, units="typical")]


@pytest.mark.parametrize("max_steps", [6, 8], ids=["from an epoch's end", "from within an epoch"])
def test_a_resume_with_all_callbacks_trains_the_same_weights_as_the_same_resume_without_them(tmp_path, max_steps):
    start, path = quiet_trainer(tmp_path, callbacks=ours(), max_steps=max_steps), tmp_path / "start.ckpt"
    start.fit(Net(), loader(shuffle=True), loader())
    start.save_checkpoint(path)
    plan = InsertionPlan.from_dict(torch.load(path, weights_only=True)["bn_lightning"]["plan"])
    ended = []
    for callbacks in (ours(), []):
        module = Net()
        if not callbacks:
            apply_plan(module, plan)
        pl.seed_everything(7, verbose=False)
        # Lightning warns where the callbacks of a checkpoint are left out, as they are here on purpose.
        left_out = pytest.warns(UserWarning, match="callbacks used to create the checkpoint")
        with nullcontext() if callbacks else left_out:
            quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=4).fit(
                module, loader(shuffle=True), loader(), ckpt_path=path
            )
        ended.append({name: value for name, value in module.state_dict().items() if "running" not in name})
    torch.testing.assert_close(ended[0], ended[1], rtol=0, atol=0)


def test_the_best_checkpoint_of_all_callbacks_together_has_population_statistics_and_a_plan(tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, filename="best", monitor="val_loss")
    trainer = quiet_trainer(tmp_path, callbacks=[*ours(), saving], max_epochs=2, enable_checkpointing=True)
    trainer.fit(Net(), loader(shuffle=True), loader())
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert checkpoint["bn_lightning_statistics"]["kind"] == "population"
    model = Net()
    apply_plan(model, InsertionPlan.from_dict(checkpoint["bn_lightning"]["plan"]))
    model.load_state_dict(checkpoint["state_dict"])
    x = torch.cat([batch[0] for batch in loader()])
    expected = F.linear(x, model.a.weight, model.a.bias).double()
    norm = model.a.bn_lightning_norm[0]
    torch.testing.assert_close(norm.running_mean.double(), expected.mean(0))
    torch.testing.assert_close(norm.running_var.double(), expected.var(0, correction=0))
