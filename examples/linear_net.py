# %% [markdown]
# # Smoother without nonlinearities? 25 linear layers
# Santurkar et al. (2018, section 3.1 and appendix) train 25 linear layers of 10 × 10 by full-batch gradient descent on
# 1,000 samples, with and without batch norm behind each layer, and find the loss smoother and the gradient more
# predictive with it. Here: both readings of their loss (summed at a rate of 1e-7, the mean at 1e-6), six seeds.
#
#     python examples/linear_net.py                    # the run written down in examples/linear_net
#     python examples/linear_net.py --steps 10000      # the paper's length

# %%
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from claims import Claim, draw, judged, markdown, write_down
from claims_training import Run
from joblib import Parallel, delayed
from torch import nn

from bn_lightning.analysis.problems.linear_net import LinearData, LinearNet

SETTINGS = {"sum, 1e-7": ("sum", 1e-7), "sum, 1e-6": ("sum", 1e-6), "mean, 1e-6": ("mean", 1e-6)}
MULTIPLES = (0.01, 0.1, 1, 3, 10, 30)  # the paper's [1/100, 30] × the learning rate
SHARES = (0.0, 0.25, 1.0)
CLAIMS = (
    Claim("batch norm trains faster: lower loss", "loss"),
    Claim("smaller range of the loss along the gradient", "loss range"),
    Claim("gradient more predictive: changes less", "gradient change, largest"),
    Claim("gradient more predictive: changes less, relative to its length", "gradient change / gradient"),
    Claim("smaller effective β", "effective beta"),
    Claim("gradient shift no smaller with batch norm: larger relative shift", "gradient shift, relative",
          expects="higher"),
)  # fmt: skip
WORDS = """25 linear layers of 10 × 10, Glorot weights, 1,000 inputs from N(0, 1), targets a random linear map of them
(our choice; the paper does not give it), full batch, plain gradient descent. The probe set is the training set, 1,000
samples. Stages are shares of the run. Interval: 95 % t over pairs of equal seeds of the mean log ratio, batch norm over
none. No correction for the number of claims.
β in normalised coordinates (in results.csv) is not compared between arms: only weights before a norm
have such coordinates, so without norms it is the raw β.
"""


# %%
def cell(arm: str, seed: int, setting: str, steps: int, shares: tuple[float, ...]) -> pd.DataFrame:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    reduction, lr = SETTINGS[setting]
    model = LinearNet(lr=lr, reduction=reduction, norm=nn.BatchNorm1d if arm == "batch norm" else None)
    batch = LinearData(seed=seed).batch
    run = Run(model, lr=lr, batches=iter(lambda: batch, None), probe=[batch], multiples=MULTIPLES)
    for share in shares:
        run.train(round(share * steps) - run.step)
        run.measure(f"{share:.0%}")
    return run.table(arm, seed, setting=setting)


def main(
    *,
    steps: int = 2_000,
    seeds: int = 6,
    jobs: int = 2,
    settings: tuple[str, ...] = tuple(SETTINGS),
    out: str = str(Path(__file__).with_suffix("")),
    fast: bool = False,
) -> pd.DataFrame:
    """Train, measure, judge and write down.

    Args:
        steps: Steps of a run; the paper's are 10,000.
        seeds: Number of seeds.
        jobs: Number of processes, of one thread each.
        settings: Which of the losses and rates.
        out: Folder for tables and figures.
        fast: A run of seconds that shows that everything works, and no more.
    """
    shares = SHARES
    if fast:
        steps, seeds, settings, jobs, shares = 10, 2, settings[:1], 1, (0.0, 1.0)
    start = time.perf_counter()
    cells = [(arm, seed, name) for name in settings for seed in range(seeds) for arm in ("no norm", "batch norm")]
    table = pd.concat(Parallel(n_jobs=jobs)(delayed(cell)(*which, steps, shares) for which in cells), ignore_index=True)
    stages = [f"{share:.0%}" for share in shares]
    sections, verdicts = {}, {}
    for name in settings:
        of_setting = table[table["setting"] == name]
        verdicts[name] = judged(of_setting, CLAIMS, stages)
        picture = f"{name.replace(', ', '_')}.png"
        draw(of_setting, Path(out) / picture, ["loss", "loss range", "gradient change, largest",
             "gradient change / gradient", "effective beta", "effective beta, normalised"])  # fmt: skip
        sections[f"Loss and rate: {name}"] = markdown(verdicts[name]) + f"\n![measures]({picture})\n"
    words = f"{WORDS}\n{steps:,} steps, {seeds} seeds, {time.perf_counter() - start:.0f} s on {jobs} processes.\n"
    print(write_down(Path(out), "25 linear layers: claims and what was seen", words, sections, table).read_text())
    # The point, whatever the verdicts: every claim was measured at every stage, with finite numbers.
    for found in verdicts.values():
        assert np.isfinite(found["mean"].astype(float)).all(), found
    return pd.concat(verdicts, names=["setting"])


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
