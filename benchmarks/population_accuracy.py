"""How right each way of getting population statistics is: on real digits, at small batches, and far from zero.

python benchmarks/population_accuracy.py
"""

import copy
import math
import warnings

import torch
from fvcore.nn.precise_bn import update_bn_stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.optim.swa_utils import update_bn

from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm
from bn_lightning.surgery.statistics.recent_batches import RecentBatchStatistics

SEEDS = 6
SIZES = {2: 0.005, 8: 0.02, 32: 0.05}  # batch and learning rate
EPOCHS = 4
LAST = 20
Norm = nn.modules.batchnorm._BatchNorm


def digits():
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=0)
    return [torch.tensor(part, dtype=torch.float32 if part.ndim == 2 else torch.long) for part in parts]


def mlp(width=64, dropout=0.0):
    layers, inputs = [], 64
    for _ in range(5):
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(width, 10))


def trained(seed, size, dropout=0.0):
    """A network trained with batches of this size, and what watched its last batches."""
    x, _, y, _ = digits()
    torch.manual_seed(seed)
    model = mlp(dropout=dropout)
    optimizer = torch.optim.SGD(model.parameters(), lr=SIZES[size], momentum=0.9)
    with RecentBatchStatistics(model, num_batches=LAST) as recent:
        for _ in range(EPOCHS):
            for index in torch.randperm(len(x)).split(size):
                if len(index) < size:
                    continue
                nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
                optimizer.zero_grad()
                recent.end_batch()
    return model, recent


def norms_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Norm)}


@torch.no_grad()
def truth(model, batches):
    """Pooled variance of what every norm receives in float64, each normalising by its own batch; dropout off."""
    twin = copy.deepcopy(model).double().eval()
    seen = {name: [] for name in norms_of(twin)}
    for name, norm in norms_of(twin).items():
        norm.train()
        norm.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
    for batch in batches:
        twin(batch.double())
    return {name: torch.cat(inputs).var(0, correction=0) for name, inputs in seen.items()}


def error(model, expected):
    """Relative error of the variance, the mean over channels that are not dead, then over layers."""
    errors = []
    for name, norm in norms_of(model).items():
        alive = expected[name] > 1e-12
        errors.append((norm.running_var.double()[alive] / expected[name][alive] - 1).abs().mean().item())
    return sum(errors) / len(errors)


def ours(**options):
    return lambda model, batches: recalibrate_batch_norm(model, batches, warn_drift=None, **options)


def fvcore_update(model, batches):
    update_bn_stats(model.train(), batches, num_iters=len(batches))


CONTENDERS = {
    "running average": lambda model, batches: None,
    "swa_utils.update_bn": lambda model, batches: update_bn(batches, model),
    "fvcore": fvcore_update,
    "pooled": ours(),
    "pooled, regroup=256": ours(regroup=256),
    "paper": ours(estimator="paper"),
    "fixed_point": ours(estimator="fixed_point"),
    "fixed_point, all in one": ours(estimator="fixed_point", regroup=10_000),
    "ema": ours(estimator="ema"),
}


@torch.no_grad()
def test_loss(model):
    _, x, _, y = digits()
    return nn.functional.cross_entropy(model.eval()(x), y).item()


def table(dropout=0.0):
    x = digits()[0]
    names = [*CONTENDERS, f"last {LAST} batches"]
    for size in SIZES:
        rows = {name: [] for name in names}
        for seed in range(SEEDS):
            model, recent = trained(seed, size, dropout)
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
            batches = [x[index] for index in order.split(size) if len(index) == size]
            pooled, fixed = truth(model, batches), truth(model, [torch.cat(batches)])
            for name, estimate in CONTENDERS.items():
                copied = copy.deepcopy(model)
                estimate(copied, batches)
                rows[name].append((error(copied, fixed), error(copied, pooled), test_loss(copied)))
            recent.write()
            rows[names[-1]].append((error(model, fixed), error(model, pooled), test_loss(model)))
        print(f"MLP 5×64 with dropout {dropout}, trained and measured at batch {size}; means over {SEEDS} seeds")
        print(f"  {'relative error of the variance against':30} {'evaluation':>12} {'pooled':>12} {'test loss':>12}")
        for name, found in rows.items():
            means = torch.tensor(found).mean(0).tolist()
            print(f"  {name:38} " + " ".join(f"{value:12.4g}" for value in means))


def over_estimates():
    """Algorithm 2 over the pooled variance, a layer."""
    x = digits()[0]
    print("Algorithm 2's variance over the pooled one in float64, per layer; mean over channels and seeds")
    for size in SIZES:
        ratios = []
        for seed in range(SEEDS):
            model, _ = trained(seed, size)
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
            batches = [x[index] for index in order.split(size) if len(index) == size]
            expected = truth(model, batches)
            recalibrate_batch_norm(model, batches, estimator="paper", warn_drift=None)
            ratios.append(
                [
                    (norm.running_var.double() / expected[name])[expected[name] > 1e-12].mean().item()
                    for name, norm in norms_of(model).items()
                ]
            )
        means = torch.tensor(ratios).mean(0).tolist()
        print(f"  m = {size:2}, m/(m-1) = {size / (size - 1):.3f}: " + " ".join(f"{value:.3f}" for value in means))


def far_from_zero(mean=1000.0, number=2000, size=8):
    """Relative error of the variance at mean/sd = 1000, against float64."""
    generator = torch.Generator().manual_seed(0)
    batches = [mean + torch.randn(size, 64, generator=generator) for _ in range(number)]
    expected = {"": torch.cat(batches).double().var(0, correction=0)}
    print(f"Relative error of the variance over {number} batches of {size}, mean/sd = {mean:g}")
    for name in ("swa_utils.update_bn", "fvcore", "pooled", "pooled, regroup=256", "paper"):
        norm = nn.BatchNorm1d(64)
        CONTENDERS[name](norm, batches)
        relative = error(norm, expected)
        print(f"  {name:38} {relative:.3g}" + ("" if math.isfinite(relative) else " (not finite)"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Raised inside Lightning on this torch, in every run.
    warnings.filterwarnings("ignore", category=FutureWarning)
    over_estimates()
    far_from_zero()
    table()
    table(dropout=0.25)
