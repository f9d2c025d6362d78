# %% [markdown]
# # Noisy batch norm: unstable distributions, and training as fast?
# Santurkar et al. (2018, section 2.1, figure 2) put noise behind every batch norm, with another mean and variance at
# each step, so that what the layers receive shifts more than without batch norm; it "still trains as fast". They used
# VGG on CIFAR-10. Here: the sigmoid network on digits, and a VGG-like one on CIFAR-10 (examples/vgg_cifar.py).
#
#     BN_LIGHTNING_DATA=FOLDER_WITH_MNIST python examples/noisy_batch_norm.py
#
# Without a folder the embedded digits are used.

# %%
import time
from pathlib import Path

import pandas as pd
import torch
from claims import Claim, draw, judged, markdown, write_down
from claims_training import ARMS, Run, batches_of, with_norm
from joblib import Parallel, delayed

from bn_lightning.analysis.problems.digits import digits_problem

PROBE = 1_000
NOISY = "noisy batch norm"
MARGIN = 0.01  # of accuracy: what counts as the same, fixed before the runs
CLAIMS = (
    Claim("batch norm reaches a higher test accuracy", "test accuracy", expects="higher"),
    Claim("noisy batch norm still beats no norm", "test accuracy", arm=NOISY, expects="higher"),
    Claim(f"noisy batch norm is no worse than batch norm, to {MARGIN:g}", "test accuracy", arm=NOISY,
          reference="batch norm", expects="same", margin=MARGIN),
    Claim("its inputs shift more than without norm, over std", "activation shift W1 / std", arm=NOISY,
          expects="higher"),
    Claim("its inputs shift more than without norm, raw", "activation shift W1", arm=NOISY, expects="higher"),
    Claim("its inputs shift more than with batch norm", "activation shift W1 / std", arm=NOISY, reference="batch norm",
          expects="higher"),
    Claim("its gradients shift more than without norm", "gradient shift, relative", arm=NOISY, expects="higher"),
)  # fmt: skip


# %%
def cell(arm: str, seed: int, lr: float, data_dir: str | None, stages: tuple[int, ...]) -> pd.DataFrame:
    torch.set_num_threads(1)
    problem = digits_problem(data_dir=data_dir)
    data = problem.data()
    data.setup()
    train, test = data.sets["train"], data.sets["test"]
    torch.manual_seed(seed)
    model = with_norm(problem.module(lr=lr), arm)
    chosen = torch.randperm(len(train.digits), generator=torch.Generator().manual_seed(1_000))[:PROBE]
    batches = batches_of((train.images, train.digits), 60, seed)
    probe = [(train.images[chosen], train.digits[chosen])]
    run = Run(model, lr=lr, batches=batches, probe=probe, multiples=(0.5, 1, 2, 4))
    for step in stages:
        run.train(max(0, step - run.step))
        run.measure(f"step {step:,}")
        for_statistics = [next(run.batches) for _ in range(20)]
        run.evaluate(f"step {step:,}", for_statistics, (test.images, test.digits))
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
        rates: Learning rates, each for all arms.
        out: Folder for tables and figures.
        fast: A run of seconds that shows that everything works, and no more.
    """
    if fast:
        steps, seeds, rates, jobs = 20, 2, rates[-1:], 1
    stages = tuple(round(share * steps) for share in ((0, 1) if fast else (0, 0.25, 1)))
    start = time.perf_counter()
    cells = [(arm, seed, lr) for lr in rates for seed in range(seeds) for arm in ARMS]
    parts = Parallel(n_jobs=jobs)(delayed(cell)(*which, data_dir, stages) for which in cells)
    table = pd.concat(parts, ignore_index=True)
    sections, verdicts = {}, {}
    for lr in rates:
        of_rate = table[table["lr"] == lr]
        verdicts[lr] = judged(of_rate, CLAIMS, [f"step {step:,}" for step in stages])
        picture = f"rate_{lr:g}.png"
        draw(of_rate, Path(out) / picture, ["loss", "test accuracy", "activation shift W1 / std",
             "gradient shift, relative", "gradient shift, cosine", "effective beta, normalised"])  # fmt: skip
        sections[f"Learning rate {lr:g}"] = markdown(verdicts[lr]) + f"\n![measures]({picture})\n"
    words = f"""3 × 100 sigmoids on {digits_problem(data_dir=data_dir).name}, batches of 60, {steps:,} steps, {seeds}
seeds, norms before the nonlinearity, noise as published. Activation shift: Wasserstein-1 over the pooled standard
deviation (raw: not over it) between what each sigmoid receives before and after one step, noise included, mean over
units and layers, on a probe set of {PROBE:,} training images (or all). Interval: 95 % t over pairs of equal seeds of
the mean log ratio (or difference), arm over reference; no correction for the number of claims. Accuracy without noise,
by population statistics of 20 batches.

{time.perf_counter() - start:.0f} s on {jobs} processes.
"""
    print(write_down(Path(out), "Noisy batch norm: claims and what was seen", words, sections, table).read_text())
    # The point: the noise does what it is for, it makes what the layers receive less stable than batch norm alone.
    for found in verdicts.values():
        unstable = found[found["claim"].str.startswith("its inputs shift more than with batch norm")]
        assert (unstable["mean"].astype(float) > 1).all(), unstable
    return pd.concat(verdicts, names=["lr"])


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
