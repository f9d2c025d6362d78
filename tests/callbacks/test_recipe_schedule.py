"""The closed form of each schedule of torch, at six times the time."""

import math

import pytest
import pytorch_lightning as pl
import torch
from inserted import Lit, loader, module, trainer
from torch.optim import lr_scheduler as schedules

from bn_lightning.callbacks import BatchNormRecipe
from bn_lightning.errors import NoEffectWarning

STEPS = 24  # of an unchanged run: 6 epochs of 4 batches; it uses the rates of steps 0 to 23
ONLY_DECAY = {
    "learning_rate": None,
    "remove_dropout": False,
    "divide_weight_decay": None,
    "remove_local_response_norm": False,
    "shuffle": False,
}


def cosine(start, end, part):
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def linear(start, end, part):
    return start + (end - start) * part


def one_cycle(anneal):
    # Its warm-up ends at step 0.3·24 − 1, its descent at step 23.
    top = 0.3 * STEPS - 1

    def rate(s):
        return anneal(0.02, 0.5, s / top) if s < top else anneal(0.5, 2e-6, (min(s, 23) - top) / (23 - top))

    return rate


# What makes the scheduler, and the rate at step s = 6t of the unchanged schedule; where it would rise after the end
# of the unchanged run, s stays where it was lowest.
SCHEDULES = {
    "exponential": (lambda o: schedules.ExponentialLR(o, 0.95), lambda s: 0.1 * 0.95**s),
    "step": (lambda o: schedules.StepLR(o, 4, 0.5), lambda s: 0.1 * 0.5 ** (s // 4)),
    "milestones": (lambda o: schedules.MultiStepLR(o, [3, 20], 0.5), lambda s: 0.1 * 0.5 ** ((s >= 3) + (s >= 20))),
    "multiplicative": (lambda o: schedules.MultiplicativeLR(o, lambda _: 0.9), lambda s: 0.1 * 0.9**s),
    "lambda": (lambda o: schedules.LambdaLR(o, lambda s: 1 / (1 + s)), lambda s: 0.1 / (1 + s)),
    "cosine": (
        lambda o: schedules.CosineAnnealingLR(o, STEPS, eta_min=0.01),
        lambda s: cosine(0.1, 0.01, min(s, 24) / 24),
    ),
    "cosine by a function": (
        lambda o: schedules.LambdaLR(o, lambda s: cosine(1, 0, s / STEPS)),
        lambda s: cosine(0.1, 0, min(s, 24) / 24),
    ),
    "linear": (lambda o: schedules.LinearLR(o, 1, 0.1, STEPS), lambda s: linear(0.1, 0.01, min(s, 24) / 24)),
    "constant": (lambda o: schedules.ConstantLR(o, 0.5, 9), lambda s: 0.05 if s < 9 else 0.1),
    "polynomial": (lambda o: schedules.PolynomialLR(o, STEPS, 2), lambda s: 0.1 * (1 - min(s, 24) / 24) ** 2),
    "restarts": (
        lambda o: schedules.CosineAnnealingWarmRestarts(o, 12, eta_min=0.01),
        lambda s: cosine(0.1, 0.01, min(s, 23) % 12 / 12),
    ),
    "triangles": (
        lambda o: schedules.CyclicLR(o, 0.1, 0.4, step_size_up=8, cycle_momentum=False),
        lambda s: 0.4 - 0.3 * abs(min(s, 23) % 16 / 8 - 1),
    ),
    "one cycle": (lambda o: schedules.OneCycleLR(o, 0.5, STEPS), one_cycle(cosine)),
    "one linear cycle": (lambda o: schedules.OneCycleLR(o, 0.5, STEPS, anneal_strategy="linear"), one_cycle(linear)),
    "warm-up": (
        lambda o: schedules.SequentialLR(o, [schedules.LinearLR(o, 0.1, 1, 9), schedules.StepLR(o, 4, 0.5)], [9]),
        lambda s: linear(0.01, 0.1, s / 9) if s < 9 else 0.1 * 0.5 ** ((s - 9) // 4),
    ),
    "chained": (
        lambda o: schedules.ChainedScheduler([schedules.ExponentialLR(o, 0.95), schedules.StepLR(o, 4, 0.5)]),
        lambda s: 0.1 * 0.95**s * 0.5 ** (s // 4),
    ),
}


class Scheduled(Lit):
    interval = "step"

    def __init__(self, make) -> None:
        pl.LightningModule.__init__(self)
        self.net, self.make, self.rates, self.momenta = torch.nn.Linear(4, 3), make, [], []

    def on_train_batch_start(self, batch, batch_idx):
        (group,) = self.trainer.optimizers[0].param_groups
        self.rates.append(float(group["lr"]))
        self.momenta.append(group["momentum"])

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = {"scheduler": self.make(optimizer), "interval": self.interval, "monitor": "level"}
        return [optimizer], [scheduler]


def fitted(tmp_path, model, *, recipe=None, **options):
    options = {"max_epochs": 6, **options}
    fit = trainer(tmp_path, BatchNormRecipe(**ONLY_DECAY) if recipe is None else recipe, **options)
    fit.fit(model, loader())
    return fit


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_t_steps_the_rate_is_that_of_step_6t(tmp_path, name):
    make, rate = SCHEDULES[name]
    model = module(kind=Scheduled, make=make)
    fit = fitted(tmp_path, model)
    expected = [rate(6 * t) for t in range(STEPS)]
    torch.testing.assert_close(torch.tensor(model.rates).double(), torch.tensor(expected).double())
    scheduler = fit.lr_scheduler_configs[0].scheduler
    assert type(scheduler) is getattr(schedules, type(scheduler).__name__)


def lines(o, steps=STEPS, **options):
    """A cycle that ends at 0.5/5/2, and whose last line would still be above 0 a step later."""
    return schedules.OneCycleLR(o, 0.5, steps, anneal_strategy="linear", div_factor=5, final_div_factor=2, **options)


ENDING = {
    "two lines": lambda o: lines(o),
    "three lines": lambda o: lines(o, three_phase=True),
    "chained": lambda o: schedules.ChainedScheduler([lines(o)]),
    "after a warm-up": lambda o: schedules.SequentialLR(o, [schedules.ConstantLR(o, 0.5, 4), lines(o, STEPS - 4)], [4]),
}


@pytest.mark.parametrize("name", ENDING)
def test_a_schedule_that_knows_its_end_does_not_go_past_it(tmp_path, name):
    model = module(kind=Scheduled, make=ENDING[name])
    fitted(tmp_path, model)
    torch.testing.assert_close(model.rates[4:], [0.05] * 20)


# torch would rather count itself, but goes where it is told.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_a_schedule_by_explicit_time_does_not_go_past_its_end(tmp_path):
    class Explicit(Scheduled):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(self.global_step)

    model = module(kind=Explicit, make=lines)
    fitted(tmp_path, model)
    torch.testing.assert_close(model.rates[4:], [0.05] * 20)


def test_momentum_is_held_with_the_rate(tmp_path):
    model = module(kind=Scheduled, make=SCHEDULES["one cycle"][0])
    fitted(tmp_path, model)
    # base_momentum 0.85 at the top of the cycle, max_momentum 0.95 at both ends.
    torch.testing.assert_close(model.momenta[4:], [0.95] * 20)
    assert 0.85 <= model.momenta[1] < 0.9


def test_a_tensor_rate_is_held_in_place(tmp_path):
    class Tensors(Scheduled):
        def configure_optimizers(self):
            self.rate = torch.tensor(0.1)
            adam = torch.optim.Adam(self.parameters(), lr=self.rate, foreach=False)
            return [adam], [{"scheduler": self.make(adam), "interval": "step"}]

        def on_train_batch_start(self, batch, batch_idx):
            self.rates.append(float(self.rate))

    model = module(kind=Tensors, make=SCHEDULES["cosine"][0])
    fitted(tmp_path, model)
    expected = [SCHEDULES["cosine"][1](6 * t) for t in range(STEPS)]
    torch.testing.assert_close(torch.tensor(model.rates), torch.tensor(expected))


@pytest.mark.parametrize(("options", "end"), [({"max_epochs": 9}, 9), ({"max_steps": 31, "max_epochs": -1}, 8)])
def test_a_schedule_of_epochs(tmp_path, options, end):
    class ByEpoch(Scheduled):
        interval = "epoch"

    # The second run's 31 steps end in its eighth epoch, so both cosines would next have risen.
    model = module(kind=ByEpoch, make=lambda o: schedules.CosineAnnealingLR(o, end))
    fitted(tmp_path, model, **options)
    expected = [cosine(0.1, 0, min(6 * (step // 4), end) / end) for step in range(len(model.rates))]
    torch.testing.assert_close(model.rates, expected)


def test_patience_is_divided(tmp_path):
    class Plateau(Scheduled):
        interval = "epoch"

        def training_step(self, batch, batch_idx):
            self.log("level", 1.0)
            return super().training_step(batch, batch_idx)

    model = module(
        kind=Plateau, make=lambda o: schedules.ReduceLROnPlateau(o, patience=12, cooldown=6, factor=0.5, min_lr=0.01)
    )
    recipe = BatchNormRecipe(**ONLY_DECAY)
    fitted(tmp_path, model, recipe=recipe, max_epochs=9)
    # 13 epochs without improvement become 3 (epochs 1 to 3), then one of cooldown (4) and three more (5 to 7).
    torch.testing.assert_close(model.rates[::4], [0.1] * 4 + [0.05] * 4 + [0.025])
    (change,) = recipe.report.changes
    assert str(change) == "ReduceLROnPlateau 0: patience=12, cooldown=6 → patience=2, cooldown=1"


class ByHand(pl.LightningModule):
    """Two networks, each with its optimizer, stepped in turn; only the first has a schedule."""

    def __init__(self, make) -> None:
        super().__init__()
        self.automatic_optimization, self.make, self.rates = False, make, []
        self.one, self.two = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in self.optimizers()])
        for net, optimizer in zip((self.one, self.two), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(net(batch[0]).square().mean())
            optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD(net.parameters(), lr=lr) for net, lr in ((self.one, 0.1), (self.two, 0.2))]
        return optimizers, [self.make(optimizers[0])]


@pytest.mark.parametrize("name", ["exponential", "one cycle", "step"])
def test_manual_optimization_with_two_optimizers(tmp_path, name):
    make, rate = SCHEDULES[name]
    model = module(kind=ByHand, make=make)
    fitted(tmp_path, model)
    torch.testing.assert_close(model.rates, [[rate(6 * t), 0.2] for t in range(STEPS)])


def test_a_schedule_by_explicit_time(tmp_path):
    class Explicit(Scheduled):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(self.global_step / 4)

    model = module(kind=Explicit, make=lambda o: schedules.CosineAnnealingWarmRestarts(o, 12))
    fitted(tmp_path, model)
    torch.testing.assert_close(model.rates, [cosine(0.1, 0, (6 * t / 4) % 12 / 12) for t in range(STEPS)])


def test_a_scheduler_of_another_kind_is_left_and_named(tmp_path):
    class Own:
        def __init__(self, optimizer) -> None:
            self.optimizer = optimizer

        def step(self, *args): ...

        def state_dict(self):
            return {}

        def load_state_dict(self, state): ...

    class WithOwn(Scheduled):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step()

    with pytest.warns(NoEffectWarning, match="decay_faster .Own 0: its own steps, left: it is no torch LRScheduler"):
        fitted(tmp_path, module(kind=WithOwn, make=Own), max_epochs=1)


def test_data_without_a_length_and_a_run_without_end(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(loader().dataset)

    model = module(kind=Scheduled, make=SCHEDULES["one cycle"][0])
    fit = trainer(tmp_path, BatchNormRecipe(**ONLY_DECAY), max_epochs=6)
    fit.fit(model, torch.utils.data.DataLoader(Stream(), batch_size=8))
    # The end of the cycle is known all the same.
    torch.testing.assert_close(model.rates[4:], [2e-6] * 20)
