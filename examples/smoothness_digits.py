# %% [markdown]
# # Is the loss of the sigmoid network smoother with batch norm?
# The first experiment of Ioffe & Szegedy (3 × 100 sigmoids on digits), measured as Santurkar et al. (2018) do: gradient
# shift, activation shift, loss range, gradient predictiveness and effective β, at fixed steps and where each arm first
# comes below a loss, with a large probe set and a small one.
#
#     BN_LIGHTNING_DATA=FOLDER_WITH_MNIST python examples/smoothness_digits.py
#
# `--steps 50000` is the paper's length. Without a folder the embedded digits are used.

# %%
import time
from pathlib import Path

import pandas as pd
import torch
from claims import Claim, draw, judged, markdown, write_down
from claims_training import Run, batches_of, with_norm
from joblib import Parallel, delayed

from bn_lightning.analysis.problems.digits import digits_problem

LOSSES = (1.0, 0.5, 0.3)
PROBE, SMALL = 1_000, 16
CHECK_EVERY = 25
CLAIMS = (
    Claim("batch norm lowers the loss", "loss"),
    Claim("smaller range of the loss along the gradient", "loss range"),
    Claim("gradient more predictive: changes less", "gradient change, largest"),
    Claim("gradient more predictive: changes less, relative to its length", "gradient change / gradient"),
    Claim("smaller effective β", "effective beta"),
    Claim(f"smaller effective β, by a probe set of {SMALL}", "effective beta, small probe"),
    Claim("stabler inputs (Ioffe & Szegedy): smaller activation shift, over std", "activation shift W1 / std"),
    Claim("stabler inputs (Ioffe & Szegedy): smaller activation shift, raw", "activation shift W1"),
    Claim("no smaller gradient shift: larger relative shift", "gradient shift, relative", expects="higher"),
    Claim("no smaller gradient shift: smaller cosine", "gradient shift, cosine"),
    Claim("gradients vanish less: fewer decades a layer", "gradient norm, decades per layer"),
)


# %%
def cell(arm: str, seed: int, lr: float, data_dir: str | None, steps: int, stages: tuple[int, ...]) -> pd.DataFrame:
    torch.set_num_threads(1)
    problem = digits_problem(data_dir=data_dir)
    data = problem.data()
    data.setup()
    train, test = data.sets["train"], data.sets["test"]
    torch.manual_seed(seed)
    model = with_norm(problem.module(lr=lr), arm)
    chosen = torch.randperm(len(train.digits), generator=torch.Generator().manual_seed(1_000))[:PROBE]
    probe = [(train.images[chosen], train.digits[chosen])]
    batches = batches_of((train.images, train.digits), 60, seed)
    run = Run(model, lr=lr, batches=batches, probe=probe, multiples=(0.5, 1, 2, 4))
    few, below = [(probe[0][0][:SMALL], probe[0][1][:SMALL])], list(LOSSES)
    for step in sorted({*stages, *range(0, steps, CHECK_EVERY)}):
        run.train(max(0, step - run.step))
        if step in stages:
            run.measure(f"step {step:,}", small=few)
            for_statistics = [next(run.batches) for _ in range(20)]
            run.evaluate(f"step {step:,}", for_statistics, (test.images, test.digits))
        # A measurement moves a step on, so the same point cannot be measured under a second name.
        elif below and (loss := run.probe_loss()) < below[0]:
            while len(below) > 1 and loss < below[1]:
                below.pop(0)  # fell past it between two looks
            run.measure(f"loss {below.pop(0):g}", small=few)
    return run.table(arm, seed, lr=lr)


def main(
    *,
    data_dir: str | None = None,
    steps: int = 2_000,
    seeds: int = 6,
    jobs: int = 2,
    rates: tuple[float, ...] = (0.1, 1.0),
    out: str = str(Path(__file__).with_suffix("")),
    fast: bool = False,
) -> pd.DataFrame:
    """Train, measure, judge and write down.

    Args:
        data_dir: Folder with mnist.npz; by default BN_LIGHTNING_DATA, else the embedded digits.
        steps: Steps of a run.
        seeds: Number of seeds.
        jobs: Number of processes, of one thread each.
        rates: Learning rates, each for both arms.
        out: Folder for tables and figures.
        fast: A run of seconds that shows that everything works, and no more.
    """
    if fast:
        steps, seeds, rates, jobs = 50, 2, rates[-1:], 1
    stages = tuple(round(share * steps) for share in ((0, 1) if fast else (0, 0.05, 0.25, 1)))
    start = time.perf_counter()
    cells = [(arm, seed, lr) for lr in rates for seed in range(seeds) for arm in ("no norm", "batch norm")]
    parts = Parallel(n_jobs=jobs)(delayed(cell)(*which, data_dir, steps, stages) for which in cells)
    table = pd.concat(parts, ignore_index=True)
    name = digits_problem(data_dir=data_dir).name
    sections, verdicts = {}, {}
    for lr in rates:
        of_rate = table[table["lr"] == lr]
        names = [f"step {step:,}" for step in stages] + [f"loss {loss:g}" for loss in LOSSES]
        verdicts[lr] = judged(of_rate, CLAIMS, names)
        picture = f"rate_{lr:g}.png"
        steps_only = of_rate[of_rate["stage"].str.startswith("step")]
        draw(steps_only, Path(out) / picture, ["loss", "test accuracy", "loss range", "gradient change / gradient",
             "effective beta", "effective beta, normalised", "activation shift W1 / std", "gradient shift, relative",
             "gradient shift, cosine"])  # fmt: skip
        sections[f"Learning rate {lr:g}"] = markdown(verdicts[lr]) + f"\n![measures]({picture})\n"
    words = f"""3 × 100 sigmoids on {name}, batches of 60, {steps:,} steps, {seeds} seeds, batch norm before the
nonlinearity. Probe set: {PROBE:,} training images, or all if there are fewer; step sizes 1/2, 1, 2, 4 × the learning
rate. "loss 0.5" is where an arm is first seen below that loss on the probe set (a look every {CHECK_EVERY} steps); a
seed that one arm passed by, or never came to, is no pair. Shifts are means over layers. Interval: 95 % t over pairs of
equal seeds of the mean log ratio (or difference), batch norm over none; no correction for the number of claims.
β in normalised coordinates (in results.csv) is not compared between arms: only weights before a norm
have such coordinates, so without norms it is the raw β.

{time.perf_counter() - start:.0f} s on {jobs} processes.
"""
    print(write_down(Path(out), "The sigmoid network: claims and what was seen", words, sections, table).read_text())
    # The point, whatever the verdicts: at every fixed step every claim was measured in every pair.
    for found in verdicts.values():
        assert (found.loc[found["stage"].str.startswith("step"), "pairs"] == seeds).all(), found
    return pd.concat(verdicts, names=["lr"])


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
