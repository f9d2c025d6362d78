import warnings

import pytest
import pytorch_lightning as pl
import torch
from inserted import BuiltInConfigureModel, BuiltInSetup, Lit, data, loader, module, norms_of, trainer
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.tuner import Tuner
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.surgery.insert import insert_batch_norm

LATE = [Lit, BuiltInSetup, BuiltInConfigureModel]


class Weights(pl.Callback):
    """The weights at the start of every epoch, and after every step."""

    def __init__(self) -> None:
        self.of_epochs: list[dict[str, torch.Tensor]] = []
        self.of_steps: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.of_epochs.append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.of_steps.append(weights(pl_module))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def mean(of: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([seen[name] for seen in of]).mean(0).float() for name in of[0]}


def moving_average(of: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    average = dict(of[0])
    for seen in of[1:]:
        average = {name: decay * average[name] + (1 - decay) * seen[name] for name in seen}
    return {name: value.float() for name, value in average.items()}


def single(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in weights(model).items()}


@pytest.mark.parametrize("kind", LATE)
def test_averaged_weights_are_the_mean_of_all_steps_of_norms_and_layers(tmp_path, kind):
    model, seen = module(kind=kind), Weights()
    with warnings.catch_warnings():
        # Lightning warns of every model that builds its layers in configure_model.
        warnings.filterwarnings("ignore", "You're using the WeightAveraging callback with a model that overrides")
        trainer(tmp_path, BatchNormInsertion(), seen, WeightAveraging()).fit(model, loader())
    assert norms_of(model)
    torch.testing.assert_close(single(model), mean(seen.of_steps))


@pytest.mark.parametrize("kind", LATE)
def test_exponentially_averaged_weights_of_norms_and_layers(tmp_path, kind):
    model, seen = module(kind=kind), Weights()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You're using the WeightAveraging callback with a model that overrides")
        trainer(tmp_path, BatchNormInsertion(), seen, EMAWeightAveraging(decay=0.7)).fit(model, loader())
    assert norms_of(model)
    torch.testing.assert_close(single(model), moving_average(seen.of_steps, 0.7))


@pytest.mark.parametrize("kind", LATE)
def test_stochastic_weight_averaging_of_norms_and_layers_ends_with_statistics_of_the_average(tmp_path, kind):
    model, seen = module(kind=kind), Weights()
    averaging = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    trainer(tmp_path, BatchNormInsertion(), seen, averaging, max_epochs=4).fit(model, loader())
    average = mean(seen.of_epochs[1:4])
    # The last step is left out: after the pass for the statistics Lightning steps the optimizer once more.
    torch.testing.assert_close({name: value.float() for name, value in seen.of_steps[-2].items()}, average)
    first = nn.functional.linear(data()[:][0], average["net.0.weight"], average["net.0.bias"])
    torch.testing.assert_close(norms_of(model)[0].running_mean, first.mean(0))


def test_stochastic_weight_averaging_trains_as_it_does_with_norms_put_in_by_hand(tmp_path):
    model, by_hand = module(), module()
    insert_batch_norm(by_hand, (data()[:8][0],))
    for part, callbacks in ((model, [BatchNormInsertion()]), (by_hand, [])):
        averaging = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
        trainer(tmp_path, *callbacks, averaging, max_epochs=4).fit(part, loader())
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [StochasticWeightAveraging, EMAWeightAveraging])
def test_averaging_before_insertion_is_refused_with_the_right_order(tmp_path, kind):
    averaging = kind(swa_lrs=0.05) if kind is StochasticWeightAveraging else kind()
    match = rf"callbacks=\[BatchNormInsertion\(\), {kind.__name__}"
    with pytest.raises(MisconfigurationException, match=match):
        trainer(tmp_path, averaging, BatchNormInsertion()).fit(module(), loader())


class Pretrained(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


class Finetuning(BaseFinetuning):
    def __init__(self, *, train_bn: bool) -> None:
        super().__init__()
        self.train_bn = train_bn

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone, train_bn=self.train_bn)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, train_bn=self.train_bn)


@pytest.mark.parametrize("finetuning", [lambda: BackboneFinetuning(1), lambda: Finetuning(train_bn=True)])
@pytest.mark.parametrize("insertion_first", [True, False])
def test_finetuning_trains_as_it_does_with_norms_put_in_by_hand(tmp_path, finetuning, insertion_first):
    model, by_hand = module(kind=Pretrained), module(kind=Pretrained)
    callbacks = [BatchNormInsertion(), finetuning()]
    fit = trainer(tmp_path, *(callbacks if insertion_first else callbacks[::-1]), max_epochs=3)
    fit.fit(model, loader())
    insert_batch_norm(by_hand, (data()[:8][0],))
    trainer(tmp_path, finetuning(), max_epochs=3).fit(by_hand, loader())
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=0, atol=0)
    assert all((norm.weight != 1).any() for norm in norms_of(model.backbone))


def test_inserted_norms_that_finetuning_freezes_before_they_saw_a_batch_are_refused(tmp_path):
    callbacks = [BatchNormInsertion(), Finetuning(train_bn=False)]
    match = r"norms backbone\.0\.bn_lightning_norm\.0, .* were frozen before they saw a batch.*train_bn=True"
    with pytest.raises(MisconfigurationException, match=match):
        trainer(tmp_path, *callbacks).fit(module(kind=Pretrained), loader())


def test_norms_inserted_after_finetuning_froze_the_rest_keep_their_statistics_in_training(tmp_path):
    model = module(kind=Pretrained)
    trainer(tmp_path, Finetuning(train_bn=False), BatchNormInsertion(), max_epochs=1).fit(model, loader())
    assert [int(norm.num_batches_tracked) for norm in norms_of(model.backbone)] == [4, 4]


def test_parameters_that_no_optimizer_holds_are_named(tmp_path):
    class Collected(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.collected = [*self.net.parameters()]

        def configure_optimizers(self):
            return torch.optim.SGD(self.collected, lr=0.1)

    for callbacks in ([], [Finetuning(train_bn=True)]):
        model = module(kind=Collected)
        model.backbone = nn.Linear(1, 1)
        with pytest.raises(MisconfigurationException, match=r"No optimizer holds .* net\.0\.bn_lightning_norm\.0\.wei"):
            trainer(tmp_path, BatchNormInsertion(), *callbacks).fit(model, loader())


def test_norms_without_an_optimizer_are_named_where_no_finetuning_callback_will_add_them(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"No optimizer holds .* backbone\.0\.bn_lightning_norm\.0\.w"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(kind=Pretrained), loader())


class Tuned(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.1, 4

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        return DataLoader(data(), batch_size=self.batch_size)

    val_dataloader = train_dataloader


class TunedLate(Tuned):
    def __init__(self) -> None:
        super().__init__()
        self.net = None

    configure_model = BuiltInConfigureModel.configure_model


def tune(how: str, fit: pl.Trainer, model: pl.LightningModule) -> None:
    if how == "learning rate":
        Tuner(fit).lr_find(model, num_training=12)
    else:
        Tuner(fit).scale_batch_size(model, max_trials=2, init_val=4)


@pytest.mark.parametrize("kind", [Tuned, TunedLate])
@pytest.mark.parametrize("how", ["learning rate", "batch size"])
def test_the_tuner_leaves_new_norms_and_the_fit_after_it_trains_them(tmp_path, kind, how):
    model = module(kind=kind)
    fit = trainer(tmp_path, BatchNormInsertion(), max_epochs=1)
    tune(how, fit, model)
    norms = norms_of(model)
    assert norms
    assert all(int(norm.num_batches_tracked) == 0 and (norm.weight == 1).all() for norm in norms)
    model.lr = 0.1
    fit.fit(model)
    assert norms_of(model) == norms
    assert all(int(norm.num_batches_tracked) == len(model.train_dataloader()) for norm in norms)
    assert all((norm.weight != 1).any() for norm in norms)


@pytest.mark.parametrize("kind", [Tuned, TunedLate])
@pytest.mark.parametrize("insertion_first", [True, False])
@pytest.mark.parametrize(
    "finder", [lambda: LearningRateFinder(num_training_steps=12), lambda: BatchSizeFinder(max_trials=2, init_val=4)]
)
def test_the_finders_as_callbacks_in_either_order(tmp_path, kind, finder, insertion_first):
    model = module(kind=kind)
    callbacks = [BatchNormInsertion(), finder()]
    trainer(tmp_path, *(callbacks if insertion_first else callbacks[::-1]), max_epochs=1).fit(model)
    assert norms_of(model)
    assert all(int(norm.num_batches_tracked) == len(model.train_dataloader()) for norm in norms_of(model))
