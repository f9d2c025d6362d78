"""Curvature of the loss: largest eigenvalues and trace of the Hessian, with norms in training or evaluation mode."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import nn

from bn_lightning.functional.covariate_shift import NON_FINITE
from bn_lightning.probes.curvature_hessian import Hessian, NormMode, norms_in
from bn_lightning.probes.objective import LossFn, Objective

Product = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Spectrum:
    """Largest eigenvalues of the Hessian of the mean loss over a probe set.

    Attributes:
        eigenvalues: Descending, in loss per squared parameter unit; NaN where the Hessian is not finite.
        residuals: ‖Hv − λv‖₂ of each, with ‖v‖₂ = 1: an eigenvalue lies within so much of λ.
        products: Hessian-vector products this took.
        samples: Size of the probe set.
        norm_mode: "train" or "eval", or None for the modes the norms were in.
        state: "non-finite", or empty.
    """

    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    products: int
    samples: int
    norm_mode: NormMode | None
    state: str = ""


@dataclass(frozen=True)
class Trace:
    """An estimate of the trace of the Hessian of the mean loss over a probe set.

    Attributes:
        trace: The sum of all eigenvalues, in loss per squared parameter unit; NaN where the Hessian is not finite.
        error: Standard error of the estimate.
        products: Hessian-vector products this took.
        samples: Size of the probe set.
        norm_mode: "train" or "eval", or None for the modes the norms were in.
    """

    trace: float
    error: float
    products: int
    samples: int
    norm_mode: NormMode | None


def hessian_eigenvalues(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    loss_fn: LossFn | None = None,
    num_eigenvalues: int = 1,
    norm_mode: NormMode | None = None,
    parameters: str | Sequence[str] | None = None,
    tolerance: float = 1e-4,
    max_iterations: int | None = None,
    keep_graphs: bool = True,
    seed: int = 0,
) -> Spectrum:
    """The algebraically largest eigenvalues of the Hessian, without forming it.

    Hessian-vector products by double backward (Pearlmutter, 1994) go into ARPACK's implicitly restarted Lanczos method
    (`scipy.sparse.linalg.eigsh`). The modes of norms matter: the same network can be ten times as curved in evaluation
    mode, where a norm divides by constants, as in training mode, where the gradient runs through its
    statistics. In training mode the Hessian is that of the mean of the batches' losses, each normalised by itself.

    The Krylov space of one vector holds a repeated eigenvalue once. So of two eigenvalues and more, those found are
    taken out of the Hessian and the method is run for the largest of the rest, until it is none of those asked for: one
    run of 20 products or more, and another for each eigenvalue that was missed. A single eigenvalue costs no more.

    Nothing on the model changes: no buffer moves in either mode (see `Objective`).

    Args:
        model: The module.
        batches: The probe set, a list of batches.
        loss_fn: ``loss_fn(model, batch)``; by default a LightningModule's ``training_step``.
        num_eigenvalues: How many, at most one for each parameter element.
        norm_mode: "train" or "eval" for batch and instance norms; all other modules stay in their modes. None
            leaves norms in theirs too.
        parameters: fnmatch patterns on the parameters' paths; by default all that are trained.
        tolerance: Relative accuracy of an eigenvalue, as `eigsh` takes it.
        max_iterations: Restarts of the method; scipy's default when None.
        keep_graphs: See `Hessian`: faster, at the memory of all batches.
        seed: Of the start vector.

    Returns:
        The eigenvalues with residuals.

    Raises:
        ValueError: If there are fewer parameter elements than eigenvalues asked for, or the mode is unknown.
        RuntimeError: If the method does not converge, or an operation has no second derivative.

    Example:
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
        >>> spectrum = hessian_eigenvalues(model, [x], loss_fn=lambda model, x: model(x).square().mean())
        >>> [round(value, 6) for value in spectrum.eigenvalues]
        [4.0]
    """
    objective = Objective(model, batches, loss_fn=loss_fn, parameters=parameters)
    size = sum(value.numel() for value in objective.parameters.values())
    if not 1 <= num_eigenvalues <= size:
        raise ValueError(
            f"The Hessian of {type(objective.model).__name__} has {size} eigenvalues, so {num_eigenvalues} of them "
            "cannot be computed; ask for 1 or more and for no more than there are."
        )
    with objective.guarded(), norms_in(objective.model, norm_mode):
        hessian = Hessian(objective, keep_graphs)
        start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
        product = hessian(start)
        if not np.isfinite(product).all():
            nan = (math.nan,) * num_eigenvalues
            return Spectrum(nan, nan, hessian.products, objective.samples, norm_mode, NON_FINITE)
        if not product.any():
            # A random vector is lost in a Hessian of 0 only, and ARPACK refuses to start from 0.
            zeros = (0.0,) * num_eigenvalues
            return Spectrum(zeros, zeros, hessian.products, objective.samples, norm_mode)
        values, vectors = _largest(hessian, size, num_eigenvalues, start, tolerance, max_iterations)
        residuals = [
            float(np.linalg.norm(hessian(vector) - value * vector))
            for value, vector in zip(values, vectors.T, strict=True)
        ]
    return Spectrum(tuple(values.tolist()), tuple(residuals), hessian.products, objective.samples, norm_mode)


def hessian_trace(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    loss_fn: LossFn | None = None,
    num_samples: int = 32,
    norm_mode: NormMode | None = None,
    parameters: str | Sequence[str] | None = None,
    keep_graphs: bool = True,
    seed: int = 0,
) -> Trace:
    """Estimate the trace of the Hessian with random signs.

    Source: Hutchinson (1990): the mean of zᵀHz over vectors z of independent random signs is unbiased, and exact for a
    diagonal H. Nothing on the model changes.

    Args:
        model: The module.
        batches: The probe set, a list of batches.
        loss_fn: ``loss_fn(model, batch)``; by default a LightningModule's ``training_step``.
        num_samples: Random vectors, each one product; 2 or more.
        norm_mode: "train" or "eval" for batch and instance norms, as for `hessian_eigenvalues`.
        parameters: fnmatch patterns on the parameters' paths; by default all that are trained.
        keep_graphs: As for `hessian_eigenvalues`.
        seed: Of the vectors.

    Returns:
        The estimate with its standard error.

    Raises:
        ValueError: If there are fewer than two vectors, or the mode is unknown.
        RuntimeError: If an operation has no second derivative.

    Example:
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
        >>> found = hessian_trace(model, [x], loss_fn=lambda model, x: model(x).square().mean(), num_samples=4)
        >>> round(found.trace, 6), found.error
        (5.0, 0.0)
    """
    if num_samples < 2:
        raise ValueError(f"A standard error needs two random vectors or more, got num_samples={num_samples}.")
    objective = Objective(model, batches, loss_fn=loss_fn, parameters=parameters)
    size = sum(value.numel() for value in objective.parameters.values())
    generator = torch.Generator().manual_seed(seed)
    with objective.guarded(), norms_in(objective.model, norm_mode):
        hessian = Hessian(objective, keep_graphs)
        found = []
        for _ in range(num_samples):
            signs = torch.randint(2, (size,), generator=generator).double().mul(2).sub(1).numpy()
            found.append(float(signs @ hessian(signs)))
    values = torch.tensor(found, dtype=torch.float64)
    values = torch.where(values.isfinite(), values, torch.nan)
    error = float(values.std() / num_samples**0.5)
    return Trace(float(values.mean()), error, hessian.products, objective.samples, norm_mode)


def _largest(
    hessian: Product, size: int, count: int, start: np.ndarray, tolerance: float, max_iterations: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending, with unit eigenvectors as columns."""
    if count >= size - 1 or size < 20:
        # ARPACK needs room for a Krylov space; so few columns are the whole matrix.
        dense = np.stack([hessian(column) for column in np.eye(size)])
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    else:
        values, vectors = _lanczos(hessian, count, start, tolerance, max_iterations)
        generator = np.random.default_rng(0)
        # The largest comes out the first time, so no more than count - 1 can be missing.
        for _ in range(count - 1):
            start = generator.standard_normal(size)
            least = np.sort(values)[-count]
            value, vector = _largest_beside(hessian, values, vectors, least, start, tolerance, max_iterations)
            if value <= least + tolerance * abs(least):
                break
            values, vectors = np.append(values, value), np.column_stack([vectors, vector])
    order = np.argsort(values)[::-1][:count]
    return values[order], vectors[:, order]


def _largest_beside(
    hessian: Product,
    values: np.ndarray,
    vectors: np.ndarray,
    least: float,
    start: np.ndarray,
    tolerance: float,
    max_iterations: int | None,
) -> tuple[float, np.ndarray]:
    """The largest eigenvalue beside those known, as exact as matters where it is below the least of interest."""
    # What is known is moved well below. All is shifted up, as a relative tolerance is never met by eigenvalues of 0.
    drops, shift = values - least + np.abs(values).max(), 2 * abs(least)

    def deflated(vector: np.ndarray) -> np.ndarray:
        vector = vector.ravel()
        return hessian(vector) - vectors @ (drops * (vectors.T @ vector)) + shift * vector

    found, (vector,) = (part.T for part in _lanczos(deflated, 1, start, tolerance, max_iterations))
    return float(found[0]) - shift, vector


def _lanczos(
    product: Product, count: int, start: np.ndarray, tolerance: float, max_iterations: int | None
) -> tuple[np.ndarray, np.ndarray]:
    operator = LinearOperator((start.size, start.size), matvec=product, dtype=np.float64)
    try:
        values, vectors = eigsh(operator, k=count, which="LA", v0=start, tol=tolerance, maxiter=max_iterations)
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"Only {len(error.eigenvalues)} of {count} eigenvalues came out to the relative tolerance "
            f"{tolerance:g}. Give a larger tolerance or max_iterations; float32 gradients seldom carry below 1e-5."
        ) from error
    return values, vectors
