# %% [markdown]
# # Where different optimizers end, and what lies between: plateaus with and without batch norm
# Im et al. (2016, "An empirical analysis of the optimization of deep network loss surfaces") start a VGG and a network
# in network once, end them by several optimizers, and look at the loss between the ends: optimizers end in different
# solutions, and surfaces of networks with batch norm show no plateaus. They show pictures, one run each. Here there are
# seeds, and a plateau is where the gradient's norm is below a tenth of a scale. There are two scales, because each has
# a blind spot: the norm at the run's own initial weights finds no plateau where the run starts on one, and the largest
# norm on the surface itself, nearest to what the eye sees in a picture, finds one beside every cliff.
#
#     python examples/plateaus.py --data_dir FOLDER           # small networks, some hundred steps: what is written down
#     python examples/plateaus.py --data_dir FOLDER --vgg_width 64 --nin_width 192 --steps 15000    # the papers' sizes
#
# FOLDER holds cifar10.npz or cifar10_small.npz; by default the one that BN_LIGHTNING_DATA names.

# %%
import math
import time
from collections.abc import Mapping
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from claims import Claim, judged, markdown, write_down
from claims_training import Batch, batches_of, with_norm
from joblib import Parallel, delayed
from torch import Tensor, nn

from bn_lightning.analysis.plots.landscapes import plot_landscape_planes
from bn_lightning.analysis.problems.cifar import cifar_problem
from bn_lightning.probes.curvature_directions import direction_between
from bn_lightning.probes.curvature_surface import Surface, loss_surface
from bn_lightning.probes.objective import trainable_parameters

NETWORKS = ("vgg", "nin")
ARMS = ("no norm", "batch norm")
# With grids of rates, fixed before the runs; the rate of each network and arm is the one with the least training loss.
OPTIMIZERS = {
    "SGD": (lambda parts, lr: torch.optim.SGD(parts, lr=lr), (0.03, 0.1, 0.3)),
    "momentum": (lambda parts, lr: torch.optim.SGD(parts, lr=lr, momentum=0.9), (0.003, 0.01, 0.03)),
    "Adam": (lambda parts, lr: torch.optim.Adam(parts, lr=lr), (0.0003, 0.001, 0.003)),
    "RMSprop": (lambda parts, lr: torch.optim.RMSprop(parts, lr=lr), (0.0003, 0.001, 0.003)),
}
TUNING_SEED = 1000
PLANES = {"ends": ("SGD", "Adam", "RMSprop"), "way": ("start", "SGD", "Adam")}
FRACTION = 0.1
SCALES = {"start": "the start's", "own": "the plane's largest"}
WORDS = {"ends": "between the ends of SGD, Adam and RMSprop", "way": "between start, SGD and Adam"}
CLAIMS = (
    *(
        Claim(f"fewer plateaus, {words}, gradient below {FRACTION:g} of {of}", f"plateau {plane}, {scale}")
        for plane, words in WORDS.items()
        for scale, of in SCALES.items()
    ),
    Claim("a lower barrier between ends", "barrier"),
    Claim("ends further apart", "distance", expects="higher"),
)


# %% [markdown]
# ## One start, several ends
def start_of(network: str, arm: str, seed: int, data_dir: str | None, width: int) -> tuple[nn.Module, Batch]:
    more = {"convolutions": 6} if network == "vgg" else {}
    problem = cifar_problem(network, data_dir=data_dir, width=width, **more)
    data = problem.data()
    data.setup()
    torch.manual_seed(seed)
    return with_norm(problem.module(), arm), data.sets["train"]


def end_by(name: str, lr: float, model: nn.Module, start: Mapping[str, Tensor], data: Batch, seed: int, steps: int):
    """Train from the start, by the same batches for every optimizer: the weights, and the mean of the last losses."""
    model.load_state_dict(start)
    model.train()
    optimizer = OPTIMIZERS[name][0]([part for part in model.parameters() if part.requires_grad], lr)
    batches, losses = batches_of(data, 128, seed), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.training_step(next(batches), 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # Population statistics play no part: surfaces are measured in training mode.
    return weights_of(model), float(np.mean(losses[-20:]))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: part.detach().clone() for name, part in trainable_parameters(model).items()}


def tuned(network: str, arm: str, name: str, data_dir: str | None, width: int, steps: int) -> dict[str, object]:
    torch.set_num_threads(1)
    model, data = start_of(network, arm, TUNING_SEED, data_dir, width)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    losses = {lr: end_by(name, lr, model, start, data, TUNING_SEED, steps)[1] for lr in OPTIMIZERS[name][1]}
    finite = {lr: loss for lr, loss in losses.items() if math.isfinite(loss)}
    return {"network": network, "arm": arm, "optimizer": name, "lr": min(finite, key=finite.__getitem__), **losses}


# %% [markdown]
# ## What lies between
def cell(network: str, arm: str, seed: int, rates: Mapping[str, float], data_dir: str | None, width: int, steps: int,
         probe: int, side: int) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    torch.set_num_threads(1)
    model, data = start_of(network, arm, seed, data_dir, width)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    chosen = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(1_000))[:probe]
    batches = [(data[0][chosen], data[1][chosen])]
    points, rows, initial = {"start": weights_of(model)}, [], math.nan
    at_start = loss_surface(model, batches, [points["start"]], [(0,)], gradients=True, norm_mode="train")
    initial = float(at_start.gradient_norms[0])
    for name, lr in rates.items():
        points[name], loss = end_by(name, lr, model, start, data, seed, steps)
        rows.append(("loss", f"end of {name}", loss))
    drawn = []
    for plane, corners in PLANES.items():
        found = between(model, batches, [points[name] for name in corners], side)
        rows.append((f"plateau {plane}, start", "", found.plateau_share(FRACTION, initial)))
        rows.append((f"plateau {plane}, own", "", found.plateau_share(FRACTION)))
        norms = found.gradient_norms[found.gradient_norms.isfinite()]
        rows += [
            (f"{word} gradient {plane}, of the start's", "", float(norms.quantile(at)) / initial)
            for word, at in {"least": 0.0, "median": 0.5, "largest": 1.0}.items()
        ]
        drawn += [
            (f"{network}_{plane}", first, second, float(found.losses[i, j]))
            for (i, first), (j, second) in product(*map(enumerate, found.coordinates))
        ]
    for one, other in combinations(rates, 2):
        rows.append(("barrier", f"{one} to {other}", barrier(model, batches, points[one], points[other])))
        apart = distance(points[one], points[other]) / distance(points["start"], points[one])
        rows.append(("distance", f"{one} to {other}", apart))
    for name in rates:
        rows.append(("barrier from the start", name, barrier(model, batches, points["start"], points[name])))
    where = {"network": network, "arm": arm, "seed": seed}
    table = pd.DataFrame(rows, columns=["quantity", "between", "value"]).assign(**where)
    surface = pd.DataFrame(drawn, columns=["surface", "first", "second", "loss"]).assign(norm_mode="train", **where)
    return table, surface


def between(model: nn.Module, batches: list[Batch], corners: list[Mapping[str, Tensor]], side: int) -> Surface:
    """The plane through three points: the first lies at (0, 0), the second at (1, 0), the third at (0, 1)."""
    ways = [direction_between(corners[0], other) for other in corners[1:]]
    # A quarter of the way further than each corner, and the corners themselves among the points.
    sides = np.linspace(-0.25, 1.25, side).tolist()
    return loss_surface(model, batches, ways, [sides, sides], origin=corners[0], gradients=True, norm_mode="train")


def barrier(model: nn.Module, batches: list[Batch], one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """How far the loss on the straight way rises above the higher of its ends."""
    way = [direction_between(one, other)]
    line = loss_surface(model, batches, way, [np.linspace(0, 1, 13).tolist()], origin=one, norm_mode="train")
    return float(line.losses.nan_to_num(math.inf).max() - max(line.losses[0], line.losses[-1]))


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float((other[name] - part).double().square().sum()) for name, part in one.items()))


# %%
def main(
    *,
    data_dir: str | None = None,
    vgg_width: int = 8,
    nin_width: int = 24,
    steps: int = 150,
    probe: int = 256,
    side: int = 7,
    seeds: int = 6,
    jobs: int = 2,
    out: str = str(Path(__file__).with_suffix("")),
    fast: bool = False,
) -> pd.DataFrame:
    """Tune, train, measure, judge and write down.

    Args:
        data_dir: Folder with the images; by default BN_LIGHTNING_DATA.
        vgg_width: Channels of the first convolution of the VGG, of 6 convolutions.
        nin_width: Channels of the network in network, a multiple of 12.
        steps: Steps of a run.
        probe: Images of the probe set, one batch.
        side: Points along each side of a plane; 6 n + 1, so that the corners are among them.
        seeds: Number of seeds.
        jobs: Number of processes, of one thread each.
        out: Folder for tables and figures.
        fast: A run of seconds that shows that everything works, and no more.
    """
    if fast:
        vgg_width, nin_width, steps, probe, side, seeds, jobs = 2, 12, 2, 16, 3, 2, 1
    begin = time.perf_counter()
    widths = {"vgg": vgg_width, "nin": nin_width}
    parallel = Parallel(n_jobs=jobs)
    asked = list(product(NETWORKS, ARMS, OPTIMIZERS))
    grid = pd.DataFrame(
        parallel(delayed(tuned)(net, arm, name, data_dir, widths[net], steps) for net, arm, name in asked)
    )
    rates = {
        key: dict(zip(rows["optimizer"], rows["lr"], strict=True)) for key, rows in grid.groupby(["network", "arm"])
    }
    found = parallel(
        delayed(cell)(net, arm, seed, rates[net, arm], data_dir, widths[net], steps, probe, side)
        for seed, net, arm in product(range(seeds), NETWORKS, ARMS)
    )
    table, surfaces = (pd.concat(parts, ignore_index=True) for parts in zip(*found, strict=True))
    table = table.assign(stage=table["network"])
    verdicts = judged(table, CLAIMS, NETWORKS)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names = {"ends": "three ends", "way": "start, two ends"}
    panels = {f"{net}_{plane}": f"{net.upper()}: {names[plane]}" for net in NETWORKS for plane in PLANES}
    plot_landscape_planes(surfaces, panels, arms=ARMS).savefig(folder / "planes.png", dpi=75, bbox_inches="tight")
    data_name = cifar_problem(data_dir=data_dir).name.removesuffix("_vgg")
    words = f"""A VGG-like network (6 convolutions, first width {vgg_width}) and a network in network (width
{nin_width}) on {data_name}, batches of 128, {steps:,} steps, {seeds} seeds. For a seed, all optimizers start from the
same weights and see the same batches; each has the rate of a grid with the least training loss at seed {TUNING_SEED}.
Norms stand before the nonlinearity and are in training mode. Surfaces are of {probe} training images, {side} × {side}
points of the plane through three points and a quarter of the way further: in the pictures (seed 0) the first of SGD,
Adam, RMSprop, or of start, SGD, Adam, lies at the cross (0, 0), the others at (1, 0) and (0, 1). A *plateau* is the
share of points where ‖g‖ is below a tenth of that at the run's own initial weights ("start"), or of the largest on the
plane itself ("own"). A *barrier* is how far the loss rises on the straight way above the higher of its ends (0: it does
not). *Distance* is that between two ends over that from the start to the first of them. Barriers and distances: mean
over the six pairs of ends. Interval: 95 % t over pairs of equal seeds, of the mean log ratio where both are positive,
else of the difference; no correction for the number of claims.

{time.perf_counter() - begin:.0f} s on {jobs} processes.
"""
    medians = table.groupby(["network", "arm", "quantity", "between"], sort=False)["value"].agg(
        ["median", "min", "max"]
    )
    sections = {
        "Claims": markdown(verdicts.rename(columns={"stage": "network"})) + "\n![planes](planes.png)\n",
        "By optimizer, over seeds": markdown(medians.reset_index()),
        "The grid of learning rates: training loss": markdown(grid.rename(columns=str)),
    }
    print(
        write_down(folder, "Ends of several optimizers, and plateaus between them", words, sections, table).read_text()
    )
    # The point, whatever the verdicts: every claim was measured in every pair.
    assert (verdicts["pairs"] == seeds).all(), verdicts
    return verdicts


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
