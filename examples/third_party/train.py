"""Batch norm by one callback in three published LightningModules, none of them changed: molecules, series, tables."""

# %% Each project in its own words: its data, its loaders, its module. Nothing here knows of batch norm.
import logging
import math
import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch
import pandas as pd
import pytorch_lightning
import torch
from rich.console import Console
from rich.table import Table

import bn_lightning as bnl
from bn_lightning.callbacks import BatchNormInsertion, BatchNormRecalibration

SEEDS = (0, 1, 2)
EPOCHS = 2
Callbacks = tuple[type, ...]
ARMS: dict[str, Callbacks] = {
    "without": (),
    "with": (BatchNormInsertion,),
    "with, recalibrated": (BatchNormInsertion, BatchNormRecalibration),
}


@dataclass(frozen=True)
class Project:
    """A published LightningModule with data of its own field."""

    distribution: str
    task: str
    lightning: ModuleType  # the namespace that its module and so its Trainer come from
    module: Callable[[], Any]
    loaders: tuple[Any, Any]
    monitor: str
    norms: int  # that its plan inserts
    load_options: dict[str, Any] = field(default_factory=dict)  # what its load_from_checkpoint needs to be told


def molecules() -> Project:
    """chemprop's message-passing network on 1,017 ChEMBL activities that come with RDKit."""
    from chemprop import data, models, nn
    from rdkit import RDConfig

    folder = Path(RDConfig.RDContribDir) / "FreeWilson" / "data"
    smiles = pd.read_csv(folder / "CHEMBL2321810.smi", sep=" ", names=["smiles", "Name"])
    table = smiles.merge(pd.read_csv(folder / "CHEMBL2321810_act.csv"), on="Name")
    points = [data.MoleculeDatapoint.from_smi(row.smiles, [row.Act]) for row in table.itertuples()]
    split = data.make_split_indices([point.mol for point in points], "random", (0.8, 0.2, 0.0), seed=0)
    (train,), (validation,), _ = data.split_data_by_indices(points, *split)
    train, validation = data.MoleculeDataset(train), data.MoleculeDataset(validation)
    scaler = train.normalize_targets()
    validation.normalize_targets(scaler)

    def module() -> Any:
        unscale = nn.UnscaleTransform.from_standard_scaler(scaler)
        head = nn.RegressionFFN(n_layers=2, output_transform=unscale)
        return models.MPNN(nn.BondMessagePassing(), nn.MeanAggregation(), head, warmup_epochs=1)

    loaders = (data.build_dataloader(train, num_workers=0), data.build_dataloader(validation, shuffle=False))
    return Project("chemprop", "pIC50 of molecules", lightning.pytorch, module, loaders, "val_loss", norms=4)


def series() -> Project:
    """pytorch-forecasting's N-BEATS on its own generated series."""
    from pytorch_forecasting import NBeats, TimeSeriesDataSet
    from pytorch_forecasting.data.examples import generate_ar_data

    table = generate_ar_data(n_series=30, timesteps=200, seasonality=10.0, seed=0)
    train = TimeSeriesDataSet(
        table[table["time_idx"] < 180],
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        time_varying_unknown_reals=["value"],
        max_encoder_length=40,
        max_prediction_length=20,
    )
    validation = TimeSeriesDataSet.from_dataset(train, table, min_prediction_idx=180)
    loaders = (train.to_dataloader(train=True, batch_size=64), validation.to_dataloader(train=False, batch_size=64))
    return Project(
        "pytorch-forecasting",
        "series, 20 steps ahead",
        lightning.pytorch,
        lambda: NBeats.from_dataset(train, learning_rate=1e-3),
        loaders,
        "val_loss",
        norms=18,
    )


def tables() -> Project:
    """pytorch-tabular's category embedding network on its own generated table of mixed columns."""
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig
    from pytorch_tabular.utils import make_mixed_dataset

    random.seed(0)  # make_mixed_dataset draws the categorical columns from it, whatever its random_state
    table, categorical, continuous = make_mixed_dataset(
        "classification", n_samples=2000, n_features=12, n_categories=3, n_informative=8, random_state=0
    )
    model = TabularModel(
        data_config=DataConfig(
            target=["target"], categorical_cols=categorical, continuous_cols=continuous, pin_memory=False
        ),
        model_config=CategoryEmbeddingModelConfig(task="classification"),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(batch_size=64, accelerator="cpu"),
        verbose=False,
    )
    data = model.prepare_dataloader(table[:1600], table[1600:])
    model.prepare_model(data)  # finds out the sizes that loading from a checkpoint has to be told
    return Project(
        "pytorch-tabular",
        "classes of table rows",
        pytorch_lightning,
        lambda: model.prepare_model(data),
        (data.train_dataloader(), data.val_dataloader()),
        "valid_loss",
        norms=3,
        load_options={"config": model.config, "inferred_config": model.inferred_config},
    )


# %% Train with and without the callback: the same seeds, so the same first weights and the same batches.
def trainer_of(project: Project, folder: Path, callbacks: Callbacks) -> Any:
    return project.lightning.Trainer(
        max_epochs=EPOCHS,
        callbacks=[make() for make in callbacks],
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def trained(project: Project, folder: Path, seed: int, callbacks: Callbacks) -> tuple[Any, Any]:
    """The module after two epochs, and the Trainer with its metrics and its checkpoint."""
    project.lightning.seed_everything(seed, verbose=False)
    module = project.module()
    project.lightning.seed_everything(seed, verbose=False)
    trainer = trainer_of(project, folder, callbacks)
    trainer.fit(module, *project.loaders)
    return module, trainer


def restored_losses(project: Project, folder: Path, path: str, callbacks: Callbacks) -> tuple[float, float]:
    """Validation losses of a checkpoint, restored by a Trainer into a fresh module, and without one by its class."""
    fresh, validation = project.module(), project.loaders[1]
    # The hyperparameters of all three hold classes, which weights_only=True refuses, norms or not.
    (by_trainer,) = trainer_of(project, folder, callbacks).validate(
        fresh, validation, ckpt_path=path, weights_only=False, verbose=False
    )
    loaded = bnl.load_from_checkpoint(type(fresh), path, **project.load_options)
    (by_class,) = trainer_of(project, folder, ()).validate(loaded, validation, verbose=False)
    return by_trainer[project.monitor], by_class[project.monitor]


# %% The point: the callback works on each of them, and what it inserted survives in the checkpoint.
def quiet() -> None:
    """Advice on workers, loggers and cloud services would hide the table."""
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning_utilities", "chemprop"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers",
        ".*no logger configured",
        ".*LeafSpec",
        ".*smaller than the logging interval",
        ".*exists and is not empty",
        ".*is an instance of `nn.Module` and is already saved",
    ):
        warnings.filterwarnings("ignore", message)


def described(losses: list[float]) -> str:
    return f"{sum(losses) / len(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"


def row(project: Project, folder: Path) -> tuple[str, ...]:
    """Train, check and restore one project."""
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in SEEDS:
        for arm, callbacks in ARMS.items():
            module, trainer = trained(project, folder, seed, callbacks)
            loss = trainer.callback_metrics[project.monitor].item()
            assert math.isfinite(loss)
            losses[arm].append(loss)
            if not callbacks:
                plain = module
                continue
            assert type(module) is type(plain)
            kept = set(plain.state_dict())
            assert kept < set(module.state_dict()), "every key of the published module is still there"
            assert all("bn_lightning_norm" in key for key in set(module.state_dict()) - kept)
            restored = restored_losses(project, folder, trainer.checkpoint_callback.best_model_path, callbacks)
            assert restored == (loss, loss), "the same weights and statistics give the same loss, to the bit"
    plan = trainer.callbacks[0].plan
    Console().print(plan.table())
    assert len(plan.inserted) == project.norms
    reasons = "; ".join(sorted({site.reason for site in plan.skipped}))
    skipped = f"{len(plan.skipped)}: {reasons}" if reasons else "none"
    name = f"{project.distribution} {version(project.distribution)}: {type(plain).__name__}"
    return name, project.task, *map(described, losses.values()), str(len(plan.inserted)), skipped


if __name__ == "__main__":
    quiet()
    torch.set_num_threads(1)
    title = f"Validation loss after {EPOCHS} epochs, mean and range of {len(SEEDS)} seeds; torch {version('torch')}"
    result = Table("module", "task", *ARMS, "norms", "sites skipped", title=title)
    with tempfile.TemporaryDirectory() as folder:
        for make in (molecules, series, tables):
            result.add_row(*row(make(), Path(folder) / make.__name__))
    Console().print(result)
