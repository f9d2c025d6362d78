"""Average six networks and many crops, the protocol of Ioffe & Szegedy (2015), section 4.2.3, on real digits.

The paper's figures (ImageNet, top-1/top-5 error): one network and one crop 25.2/7.82 %, 144 crops 21.99/5.82 %, six
networks with 144 crops each 20.1/4.9 %. Here: a small Inception-style network, or with `--network mlp` the sigmoid
network of the first experiment, with batch norm put in, on 360 test images of 8 × 8 pixels, trained on random ones of
the five crops. As in the paper the Inception-style members are trained by its recipe, with a dropout of 5 or 10 %.
"""

# %% Images in place of rows; in training, one of the five crops at random.
import argparse
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from bn_lightning.analysis.crops import crops_144, five_crops
from bn_lightning.analysis.ensemble_checkpoints import Ensemble, ensemble_checkpoints
from bn_lightning.analysis.problems.digits_data import DigitsData
from bn_lightning.analysis.problems.digits_model import DigitsMLP
from bn_lightning.analysis.problems.inception_model import Inception
from bn_lightning.analysis.statistics import Interval, mean_interval
from bn_lightning.analysis.training import quiet_lightning
from bn_lightning.callbacks import BatchNormInsertion, BatchNormRecalibration, BatchNormRecipe


class DigitImages(DigitsData):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, digits = batch
        images = images.view(-1, 1, 8, 8)
        if self.trainer is not None and self.trainer.training:
            images = next(itertools.islice(five_crops(images), int(torch.randint(5, ())), None))
        return images, digits


class CropsMLP(DigitsMLP):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1))


# %% The members. Their recalibration needs a validation, which is at the end of training.
def inception_callbacks() -> list[Any]:
    recipe = BatchNormRecipe(learning_rate=5.0, remove_dropout=False)
    return [BatchNormInsertion(), recipe, BatchNormRecalibration()]


NETWORKS: dict[str, tuple[Callable[[int], Any], Callable[[], list[Any]]]] = {
    "inception": (lambda seed: Inception(lr=0.03, dropout=(0.05, 0.1)[seed % 2]), inception_callbacks),
    "mlp": (lambda seed: CropsMLP(lr=0.3), lambda: [BatchNormInsertion()]),
}


def train_member(folder: Path, network: str, seed: int, steps: int) -> Path:
    make, callbacks = NETWORKS[network]
    pl.seed_everything(seed, verbose=False)
    with quiet_lightning():
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=callbacks(),
            val_check_interval=steps,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(make(seed), datamodule=DigitImages())
        path = folder / f"member_{seed}.ckpt"
        trainer.save_checkpoint(path)
    return path


# %% One crop or many. Views of one's own are a function: a mirrored 2 is no digit, so every second view is left out.
def upright(images: Tensor) -> Iterable[Tensor]:
    return itertools.islice(crops_144(images), 0, None, 2)


VIEWS = {"centre": "centre", "5 crops": "5-crop", "144 crops, not mirrored": upright, "144 crops": "144-crop"}


def members_of(found: Ensemble, quantity: str) -> Interval:
    rows = found.table.query("arm != 'ensemble' and quantity == @quantity")
    return mean_interval(rows["value"].to_numpy())


def error_of(found: Ensemble, quantity: str) -> float:
    return float(found.table.query("arm == 'ensemble' and quantity == @quantity")["value"].item())


def main(network: str = "inception", members: int = 6, steps: int = 1000) -> dict[str, Ensemble]:
    torch.set_num_threads(1)
    results: dict[str, Ensemble] = {}
    model = functools.partial(NETWORKS[network][0], 0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [train_member(Path(folder), network, seed, steps) for seed in range(members)]
        for name, views in VIEWS.items():
            results[name] = ensemble_checkpoints(paths, model=model, data=DigitImages, views=views)
        single = [ensemble_checkpoints([path], model=model, data=DigitImages, views="centre") for path in paths]
    print(f"error on 360 test digits; alone: mean and 95 % t interval of {members} members")
    for quantity, title in (("top_1_error", "top-1"), ("top_5_error", "top-5")):
        print(f"{title:24} {'alone':>24} {'together':>9}")
        for name, found in results.items():
            alone = members_of(found, quantity)
            interval = f"{alone.mean:.2%} [{alone.low:.2%}, {alone.high:.2%}]"
            print(f"{name:24} {interval:>24} {error_of(found, quantity):>9.2%}")

    # The log-loss of a mean of probabilities is at most the mean of theirs (Jensen); the error may be larger.
    centre = results["centre"]

    def log_loss(found: Ensemble) -> float:
        return F.nll_loss(found.probabilities.log(), found.target).item()

    alone_loss = sum(map(log_loss, single)) / members
    print(f"log-loss, centre crop: alone {alone_loss:.4f}, together {log_loss(centre):.4f}")
    assert log_loss(centre) < alone_loss
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=list(NETWORKS), default="inception")
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1000)
    main(**vars(parser.parse_args()))
