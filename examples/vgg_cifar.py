# %% [markdown]
# # A VGG-like network on CIFAR-10, without norm, with batch norm and with noisy batch norm
# Santurkar et al. (2018): VGG, SGD, batches of 128, rate 0.1, 15,000 steps, Glorot weights, no augmentation: test
# accuracy 83 % with batch norm and 80 % without; noisy batch norm trains as fast; no smaller gradient shift; a smaller
# range of the loss along the gradient, better predictive gradients, a smaller effective β.
#
#     python examples/vgg_cifar.py --data_dir FOLDER          # a small VGG, some hundred steps: what is written down
#     python examples/vgg_cifar.py --data_dir FOLDER --width 64 --convolutions 8 --steps 15000      # the paper's size
#
# FOLDER holds cifar10.npz or cifar10_small.npz (uint8 arrays x_train [n, 32, 32, 3], y_train [n], x_test, y_test); by
# default the one that BN_LIGHTNING_DATA names.

# %%
import time
from pathlib import Path

import pandas as pd
import torch
from claims import Claim, draw, judged, markdown, write_down
from claims_training import ARMS, Run, batches_of, with_norm
from joblib import Parallel, delayed

from bn_lightning.analysis.problems.cifar import cifar_problem

NOISY = "noisy batch norm"
MARGIN = 0.02  # of accuracy: what counts as the same, fixed before the runs
CLAIMS = (
    Claim("batch norm reaches a higher test accuracy", "test accuracy", expects="higher"),
    Claim("noisy batch norm still beats no norm", "test accuracy", arm=NOISY, expects="higher"),
    Claim(f"noisy batch norm is no worse than batch norm, to {MARGIN:g}", "test accuracy", arm=NOISY,
          reference="batch norm", expects="same", margin=MARGIN),
    Claim("inputs shift more with noisy batch norm than without norm, over std", "activation shift W1 / std",
          arm=NOISY, expects="higher"),
    Claim("inputs shift more with noisy batch norm than without norm, raw", "activation shift W1", arm=NOISY,
          expects="higher"),
    Claim("no smaller gradient shift: larger relative shift", "gradient shift, relative", expects="higher"),
    Claim("no smaller gradient shift: smaller cosine", "gradient shift, cosine"),
    Claim("smaller range of the loss along the gradient", "loss range"),
    Claim("gradient more predictive: changes less", "gradient change, largest"),
    Claim("gradient more predictive: changes less, relative to its length", "gradient change / gradient"),
    Claim("smaller effective β", "effective beta"),
    Claim("smaller effective β, by a probe set of 16", "effective beta, small probe"),
    Claim("gradients vanish less: fewer decades a layer", "gradient norm, decades per layer"),
)  # fmt: skip


# %%
def cell(
    arm: str, seed: int, lr: float, data_dir: str | None, width: int, convolutions: int, stages: tuple, probe: int
) -> pd.DataFrame:
    torch.set_num_threads(1)
    problem = cifar_problem("vgg", data_dir=data_dir, lr=lr, width=width, convolutions=convolutions)
    data = problem.data()
    data.setup()
    images, classes = data.sets["train"]
    torch.manual_seed(seed)
    model = with_norm(problem.module(), arm)
    chosen = torch.randperm(len(classes), generator=torch.Generator().manual_seed(1_000))[:probe]
    fixed = [(images[chosen], classes[chosen])]
    run = Run(model, lr=lr, batches=batches_of((images, classes), 128, seed), probe=fixed, multiples=(0.5, 1, 2, 4))
    for step in stages:
        run.train(max(0, step - run.step))
        # The paper steps along the gradient by 1/2 to 4 times the learning rate, at most 0.4.
        run.measure(f"step {step:,}", small=[(fixed[0][0][:16], fixed[0][1][:16])], max_step_size=0.4)
        for_statistics = [next(run.batches) for _ in range(10)]
        run.evaluate(f"step {step:,}", for_statistics, data.sets["test"])
    return run.table(arm, seed)


def main(
    *,
    data_dir: str | None = None,
    width: int = 4,
    convolutions: int = 6,
    lr: float = 0.1,
    steps: int = 240,
    probe: int = 256,
    seeds: int = 6,
    jobs: int = 2,
    out: str = str(Path(__file__).with_suffix("")),
    fast: bool = False,
) -> pd.DataFrame:
    """Train, measure, judge and write down.

    Args:
        data_dir: Folder with the images; by default BN_LIGHTNING_DATA.
        width: Channels of the first convolution.
        convolutions: 6, or 8 for VGG-11.
        lr: Learning rate.
        steps: Steps of a run.
        probe: Images of the probe set.
        seeds: Number of seeds.
        jobs: Number of processes, of one thread each.
        out: Folder for tables and figures.
        fast: A run of seconds that shows that everything works, and no more.
    """
    if fast:
        width, steps, probe, seeds, jobs = 2, 2, 32, 2, 1
    stages = tuple(round(share * steps) for share in ((0, 1) if fast else (0, 0.25, 1)))
    start = time.perf_counter()
    settings = (lr, data_dir, width, convolutions, stages, probe)
    cells = [(arm, seed) for seed in range(seeds) for arm in ARMS]
    parts = Parallel(n_jobs=jobs)(delayed(cell)(*which, *settings) for which in cells)
    table = pd.concat(parts, ignore_index=True)
    verdicts = judged(table, CLAIMS, [f"step {step:,}" for step in stages])
    draw(table, Path(out) / "measures.png", ["loss", "test accuracy", "loss range", "gradient change / gradient",
         "effective beta", "effective beta, normalised", "activation shift W1 / std", "gradient shift, relative",
         "gradient shift, cosine"])  # fmt: skip
    name = cifar_problem(data_dir=data_dir).name
    words = f"""VGG-like, {convolutions} convolutions, first width {width}, batches of 128, rate {lr:g}, {steps:,}
steps, {seeds} seeds, no augmentation, norms before the nonlinearity. Problem: {name}; accuracies on a subset are not
comparable with published ones. Probe set: {probe} training images. Activation shift: Wasserstein-1
over the pooled standard deviation between what each ReLU receives before and after one step, noise included. Interval:
95 % t over pairs of equal seeds of the mean log ratio (or difference), arm over reference; no correction for the number
of claims.
β in normalised coordinates (in results.csv) is not compared between arms: only weights before a norm
have such coordinates, so without norms it is the raw β.

{time.perf_counter() - start:.0f} s on {jobs} processes.
"""
    sections = {"Claims": markdown(verdicts) + "\n![measures](measures.png)\n"}
    print(write_down(Path(out), "VGG on CIFAR-10: claims and what was seen", words, sections, table).read_text())
    # The point, whatever the verdicts: every claim was measured in every pair at the start.
    assert (verdicts.loc[verdicts["stage"] == "step 0", "pairs"] == seeds).all(), verdicts
    return verdicts


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
