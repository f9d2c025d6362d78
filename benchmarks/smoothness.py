"""Cost of gradient shift, loss smoothness and curvature, in forward and backward passes and in time.

Passes are counted in a pair of runs; times are ratios to one forward and backward over the same samples, by turns with
the reference timed twice (`alternating.py`). Run: ``python benchmarks/smoothness.py``.
"""

import torch
from alternating import ratios, show
from torch import nn
from torch.nn import functional as F

from bn_lightning.probes.covariate_shift import gradient_covariate_shift
from bn_lightning.probes.curvature import hessian_eigenvalues
from bn_lightning.probes.loss_smoothness import loss_smoothness
from bn_lightning.probes.scale_invariance import scale_invariant_blocks


def vgg_like(width: int = 16, blocks: int = 8) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for block in range(blocks):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
        if block % 2:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def mlp() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (784, 100, 100):
        layers += [nn.Linear(inputs, 100), nn.BatchNorm1d(100), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(100, 10))


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def measure(title: str, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], rounds: int) -> None:
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    with torch.no_grad():
        for part in model.parameters():
            part += 1e-3 * torch.randn_like(part)
    affine = sum(part.dim() > 1 for part in model.parameters())
    sizes = (0.01, 0.02, 0.05, 0.1)

    def one_pass() -> None:
        model.zero_grad()
        loss_fn(model, batch).backward()

    contenders = {
        "forward and backward": one_pass,
        "gradient shift": lambda: gradient_covariate_shift(model, [batch], before, loss_fn=loss_fn),
        "smoothness": lambda: loss_smoothness(model, [batch], loss_fn=loss_fn, step_sizes=sizes, normalised=False),
    }
    found = ratios(contenders, rounds=rounds)
    show(f"{title}, {affine} affine layers, {len(batch[0])} samples", found, "forward and backward")
    limits = {"gradient shift": 1.1 * (affine - 1), "smoothness": 1.1 * (len(sizes) + 1)}
    for name, limit in limits.items():
        print(f"  {name}: {found[name][2]:.2f} passes at most (95 %), limit {limit:.2f}")
    blocks = scale_invariant_blocks(model, [batch], loss_fn=loss_fn)
    normalised = loss_smoothness(model, [batch], loss_fn=loss_fn, step_sizes=sizes, normalised=blocks)
    print(f"  {len(blocks)} scale-invariant blocks; {normalised.evaluations} passes with normalised coordinates")
    for mode in ("train", "eval"):
        spectrum = hessian_eigenvalues(model, [batch], loss_fn=loss_fn, norm_mode=mode)
        print(
            f"  largest eigenvalue, norms in {mode}: {spectrum.eigenvalues[0]:.4g}, residual "
            f"{spectrum.residuals[0]:.1e}, {spectrum.products} products"
        )


def main() -> None:
    torch.manual_seed(0)
    digits = (torch.randn(60, 784), torch.randint(10, (60,)))
    measure("MLP 784-3×100 with norms", mlp(), digits, rounds=30)
    images = (torch.randn(64, 3, 32, 32), torch.randint(10, (64,)))
    measure("VGG-like, width 16", vgg_like(), images, rounds=12)


if __name__ == "__main__":
    main()
