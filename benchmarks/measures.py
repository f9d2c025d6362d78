"""Cost of gradient shift, loss smoothness, curvature and surfaces, beside what was predicted and beside peers.

Times are ratios to one forward and backward over the same samples, by turns, in the processor time of the thread, with
the reference timed twice (`alternating.py`). Peers: curvlinops and PyHessian for the largest eigenvalue, in evaluation
mode, the only one they have, at the residual that ours reaches; loss-landscapes for a surface of equal points.

Run: ``python benchmarks/measures.py``.
"""

import copy
import importlib.util
import time
from collections.abc import Callable

import numpy as np
import torch
from alternating import ratios, show
from torch import Tensor, nn
from torch.nn import functional as F

from bn_lightning.probes.covariate_shift import gradient_covariate_shift
from bn_lightning.probes.curvature import hessian_eigenvalues
from bn_lightning.probes.curvature_directions import random_direction
from bn_lightning.probes.curvature_surface import loss_surface
from bn_lightning.probes.loss_smoothness import loss_smoothness
from bn_lightning.probes.scale_invariance import scale_invariant_blocks

Batch = tuple[Tensor, Tensor]
GRID = 7


def vgg_like(width: int = 16, blocks: int = 8) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for block in range(blocks):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
        if block % 2:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def mlp() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (784, 100, 100):
        layers += [nn.Linear(inputs, 100), nn.BatchNorm1d(100), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(100, 10))


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def passes(title: str, model: nn.Module, batch: Batch, rounds: int) -> None:
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    with torch.no_grad():
        for part in model.parameters():
            part += 1e-3 * torch.randn_like(part)
    affine = sum(part.dim() > 1 for part in model.parameters())
    sizes = (0.01, 0.02, 0.05, 0.1)
    weights = list(model.parameters())

    def one_pass() -> None:
        model.zero_grad()
        loss_fn(model, batch).backward()

    def bare_passes() -> None:
        # What the passes of smoothness cost by themselves: no other point, nothing guarded, nothing computed.
        for _ in range(len(sizes) + 1):
            torch.autograd.grad(loss_fn(model, batch), weights)

    contenders = {
        "forward and backward": one_pass,
        f"{len(sizes) + 1} bare passes": bare_passes,
        "gradient shift": lambda: gradient_covariate_shift(model, [batch], before, loss_fn=loss_fn),
        "smoothness": lambda: loss_smoothness(model, [batch], loss_fn=loss_fn, step_sizes=sizes, normalised=False),
    }
    found = ratios(contenders, rounds=rounds, clock=time.thread_time)
    show(f"{title}, {affine} affine layers, {len(batch[0])} samples", found, "forward and backward")
    limits = {"gradient shift": 1.1 * (affine - 1), "smoothness": 1.1 * (len(sizes) + 1)}
    for name, limit in limits.items():
        verdict = "kept" if found[name][2] <= limit else "missed"
        print(f"  {name}: {found[name][2]:.2f} passes at most (95 %), limit {limit:.2f}: {verdict}")
    blocks = scale_invariant_blocks(model, [batch], loss_fn=loss_fn)
    normalised = loss_smoothness(model, [batch], loss_fn=loss_fn, step_sizes=sizes, normalised=blocks)
    print(f"  {len(blocks)} scale-invariant blocks; {normalised.evaluations} passes with normalised coordinates")


def eigenvalues(title: str, model: nn.Module, batch: Batch, rounds: int) -> None:
    for mode in ("train", "eval"):
        found = hessian_eigenvalues(model, [batch], loss_fn=loss_fn, norm_mode=mode)
        print(
            f"  largest eigenvalue, norms in {mode}: {found.eigenvalues[0]:.4g}, residual {found.residuals[0]:.1e}, "
            f"{found.products} products"
        )
    if missing("curvlinops", "pyhessian"):
        return
    model = copy.deepcopy(model).eval()
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: hessian_eigenvalues(model, [batch], loss_fn=loss_fn),
        "curvlinops": curvlinops_peer(model, batch),
        "PyHessian": pyhessian_peer(model, batch, found.residuals[0]),
    }
    times = ratios(contenders, rounds=rounds, clock=time.thread_time)
    show(f"{title}: largest eigenvalue in evaluation mode", times, "ours")


def missing(*peers: str) -> bool:
    absent = [peer for peer in peers if importlib.util.find_spec(peer) is None]
    if absent:
        print(f"  without {', '.join(absent)}: pip install --group peers")
    return bool(absent)


def curvlinops_peer(model: nn.Module, batch: Batch) -> Callable[[], object]:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    def run() -> tuple[float, float]:
        weights = list(model.parameters())
        operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), weights, [batch], check_deterministic=False)
        product = operator.to_scipy()
        start = torch.randn(product.shape[0], generator=torch.Generator().manual_seed(0)).numpy()
        values, vectors = eigsh(product, k=1, which="LA", v0=start, tol=1e-4)
        error = product @ vectors[:, 0] - values[0] * vectors[:, 0]
        return float(values[0]), float(np.linalg.norm(error))

    value, error = run()
    print(f"  curvlinops: {value:.4g}, residual {error:.1e}")
    return run


def pyhessian_peer(model: nn.Module, batch: Batch, residual: float) -> Callable[[], object]:
    """Power iteration, run for as many iterations as bring the residual to ours, or 200 if none do."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    def run(iterations: int) -> tuple[float, float]:
        torch.manual_seed(0)
        computer = hessian(model, nn.CrossEntropyLoss(), data=batch, cuda=False)
        values, vectors = computer.eigenvalues(maxIter=iterations, tol=0.0)
        image = hessian_vector_product(computer.gradsH, computer.params, vectors[0])
        error = sum((a - values[0] * b).square().sum().item() for a, b in zip(image, vectors[0], strict=True)) ** 0.5
        model.zero_grad()
        return values[0], error

    iterations = next((count for count in (5, 10, 20, 50, 100, 200) if run(count)[1] <= residual), 200)
    value, error = run(iterations)
    print(f"  PyHessian: {value:.4g}, residual {error:.1e} after {iterations} iterations")
    return lambda: run(iterations)


def surfaces(title: str, model: nn.Module, batch: Batch, rounds: int) -> None:
    if missing("loss_landscapes"):
        return
    from loss_landscapes import random_plane
    from loss_landscapes.metrics import Loss

    directions = [random_direction(model, seed=seed, vectors="scale") for seed in (0, 1)]
    steps = np.linspace(-1, 1, GRID).tolist()
    criterion, twin = nn.CrossEntropyLoss(), copy.deepcopy(model)
    contenders = {
        "ours": lambda: loss_surface(model, [batch], directions, [steps, steps], loss_fn=loss_fn),
        "loss-landscapes": lambda: random_plane(
            twin, Loss(criterion, *batch), steps=GRID, normalization="model", deepcopy_model=True
        ),
    }
    found = ratios(contenders, rounds=rounds, clock=time.thread_time)
    show(f"{title}: surface of {GRID} × {GRID} points", found, "ours")


def main() -> None:
    torch.manual_seed(0)
    digits = (torch.randn(60, 784), torch.randint(10, (60,)))
    images = (torch.randn(64, 3, 32, 32), torch.randint(10, (64,)))
    for title, model, batch, rounds in (
        ("MLP 784-3×100 with norms", mlp(), digits, 40),
        ("VGG-like, width 16", vgg_like(), images, 8),
    ):
        passes(title, model, batch, rounds)
        eigenvalues(title, model, batch, max(rounds // 4, 3))
        surfaces(title, model, batch, max(rounds // 4, 3))


if __name__ == "__main__":
    main()
