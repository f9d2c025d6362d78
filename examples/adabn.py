"""Adapt a trained network to another domain by its batch norms' statistics alone (AdaBN), on shifted real digits.

Source: Li et al., 2016, "Revisiting batch normalization for practical domain adaptation". No label of the new domain is
used and no weight moves: the population statistics are taken again, from the new domain's inputs.
"""

# %% A network of the paper's first experiment, with batch norm put in, trained on the digits as they are.
import argparse

import torch
from torch import nn
from torch.nn import functional as F

import bn_lightning as bnl
from bn_lightning.analysis.problems.digits_data import DigitsData
from bn_lightning.analysis.problems.digits_model import DigitsMLP

data = DigitsData()
data.prepare_data()
data.setup()
train, test = data.sets["train"], data.sets["test"]


def trained(seed: int, steps: int) -> DigitsMLP:
    torch.manual_seed(seed)
    model = DigitsMLP(lr=0.1, activation="relu", weight_std=0.1)
    bnl.insert_batch_norm(model, (torch.zeros(2, 64),))
    optimizer = torch.optim.SGD(model.parameters(), lr=model.lr)
    for _ in range(steps):
        chosen = torch.randint(len(train.digits), (60,))
        F.cross_entropy(model(train.images[chosen]), train.digits[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    bnl.recalibrate_batch_norm(model, train.images.split(60), warn_drift=None)
    return model.eval()


# %% The other domains: the same digits, seen otherwise. Images are rows of 8 × 8 pixels in [0, 1].
def blurred(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x.view(-1, 1, 8, 8), 3, stride=1, padding=1).flatten(1)


def rotated(x: torch.Tensor) -> torch.Tensor:
    angle = torch.tensor(torch.pi / 9)  # 20 degrees
    turn = torch.stack([angle.cos(), -angle.sin(), torch.zeros(()), angle.sin(), angle.cos(), torch.zeros(())])
    grid = F.affine_grid(turn.view(1, 2, 3).expand(len(x), 2, 3), (len(x), 1, 8, 8), align_corners=False)
    return F.grid_sample(x.view(-1, 1, 8, 8), grid, align_corners=False).flatten(1)


SHIFTS = {
    "as trained": lambda x: x,
    "faint (a quarter of the contrast)": lambda x: x / 4,
    "bright (contrast 0.5, +0.5)": lambda x: 0.5 + 0.5 * x,
    "dark corner to corner (-1 … +1)": lambda x: x + torch.linspace(-1, 1, 64),
    "blurred (3 × 3)": blurred,
    "rotated by 20°": rotated,
    "inverted": lambda x: 1 - x,
}


def accuracy(model: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == test.digits).double().mean().item()


# %% Before and after: statistics from the shifted training images, accuracy on the shifted test images.
def main(seeds: int = 6, steps: int = 600) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    found = {name: ([], []) for name in SHIFTS}
    for seed in range(seeds):
        model = trained(seed, steps)
        source = {name: value.clone() for name, value in model.state_dict().items()}
        for name, shift in SHIFTS.items():
            model.load_state_dict(source)
            before = accuracy(model, shift(test.images))
            bnl.recalibrate_batch_norm(model, shift(train.images).split(60), warn_drift=None)
            found[name][0].append(before)
            found[name][1].append(accuracy(model, shift(test.images)))
    results = {name: (torch.tensor(before), torch.tensor(after)) for name, (before, after) in found.items()}
    print(
        f"{'accuracy on 360 test digits':36} {'before':>8} {'after':>8} {'gained':>8}   least and most of {seeds} seeds"
    )
    for name, (before, after) in results.items():
        gain = after - before
        means = f"{before.mean():8.3f} {after.mean():8.3f} {gain.mean():+8.3f}"
        print(f"{name:36} {means}   {gain.min():+.3f} {gain.max():+.3f}")
    # Where the shift moves means and scales it helps in every seed; where there is none it does not hurt.
    for name in ("faint (a quarter of the contrast)", "dark corner to corner (-1 … +1)"):
        before, after = results[name]
        assert (after > before).all(), name
    before, after = results["as trained"]
    assert (after - before).abs().max() < 0.01
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=600)
    main(**vars(parser.parse_args()))
