"""Give an existing Lightning script batch norm by one line, keep it in checkpoints, take it out again."""

# %% An existing script: nothing in it knows of batch norm.
import tempfile
import warnings

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bn_lightning as bnl
from bn_lightning.callbacks import BatchNormInsertion


class LitNet(pl.LightningModule):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(x + self.conv2(x))  # a residual connection
        return self.head(x.mean((2, 3)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


pl.seed_everything(0, verbose=False)
data = TensorDataset(torch.randn(128, 1, 8, 8), torch.randint(0, 10, (128,)))
loader = DataLoader(data, batch_size=32)

# %% What would be inserted, and why: the plan, without changing the model.
model = LitNet()
plan = bnl.plan_insertion(model, (data[:4][0],))
for site in plan.sites:
    print(f"{site.name:8} {site.decision:7} {site.reason}")
assert [site.layer for site in plan.inserted] == ["conv1", "conv2"]

# %% The one line: callbacks=[BatchNormInsertion()].
folder = tempfile.mkdtemp()
trainer = pl.Trainer(
    callbacks=[BatchNormInsertion()],
    max_epochs=1,
    accelerator="cpu",
    default_root_dir=folder,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*does not have many workers")
    trainer.fit(model, loader)
assert model.conv1.bn_lightning_norm[0].num_batches_tracked == 4

# %% The checkpoint rebuilds the norms in an unmodified class.
path = trainer.checkpoint_callback.best_model_path
loaded = bnl.load_from_checkpoint(LitNet, path)
x = data[:4][0]
assert torch.equal(loaded.eval()(x), model.eval()(x))

# %% And they come out again. The trained weights stay, so the function changes: a warning says so.
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    bnl.remove_batch_norm(model)
assert "computes another function" in str(caught[0].message)
assert list(model.state_dict()) == list(LitNet().state_dict())
