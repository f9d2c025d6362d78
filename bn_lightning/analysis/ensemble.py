"""Averages of class probabilities, over members and over views, and the error that is left.

Outputs and probabilities are `[N, C]`: one row a sample, one column a class. All is computed in float64.
"""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from bn_lightning.analysis.names import unknown_name
from bn_lightning.errors import NonFiniteError

Outputs = Literal["auto", "logits", "probabilities"]


def class_probabilities(output: Tensor, outputs: Outputs = "auto") -> Tensor:
    r"""Probabilities of what a classifier returned.

    $p_c = e^{z_c} / \sum_k e^{z_k}$ where it returned logits, or log-probabilities, for which the same holds; otherwise
    its rows, divided by their sums, which rounding keeps from 1.

    Args:
        output: `[N, C]`, two classes or more.
        outputs: "logits", "probabilities", or "auto": probabilities where no value is negative and every row sums to 1
            (to the square root of the dtype's precision), else logits.

    Returns:
        `[N, C]`, float64.

    Raises:
        UnknownNameError: If there is no such kind of outputs.
        TypeError: If the output is no tensor of floating point.
        ValueError: If its shape is not `[N, C]`, or rows that are to be probabilities are none.
        NonFiniteError: If a row is NaN, or its softmax would be.

    Example:
        >>> class_probabilities(torch.tensor([[0.0, 0.0], [0.25, 0.75]]), "logits")[0]
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> class_probabilities(torch.tensor([[0.25, 0.75]]))
        tensor([[0.2500, 0.7500]], dtype=torch.float64)
    """
    if outputs not in get_args(Outputs):
        raise unknown_name("kind of outputs", outputs, get_args(Outputs))
    _refuse_shapes(output)
    values = output.detach().to("cpu", torch.float64)
    are_probabilities = sum_to_one(output)
    if outputs == "probabilities" and not are_probabilities and values.isfinite().all():
        sums = values.sum(1)
        raise ValueError(
            "The outputs are to be probabilities, but their rows are not: "
            f"values from {values.min():.4g} to {values.max():.4g}, "
            f'sums from {sums.min():.4g} to {sums.max():.4g}. If they are logits, say so: outputs="logits" '
            "(--outputs logits)."
        )
    if outputs == "logits" or not are_probabilities:
        probabilities = values.softmax(1)
    else:
        probabilities = values / values.sum(1, keepdim=True)
    broken = ~probabilities.isfinite().all(1)
    if broken.any():
        raise NonFiniteError(
            f"{int(broken.sum())} of {len(broken)} rows of class probabilities are NaN, the first is row "
            f"{int(broken.int().argmax())}."
        )
    return probabilities


def sum_to_one(output: Tensor) -> bool:
    """Whether every row of an output is a distribution over classes.

    Args:
        output: `[N, C]`.

    Returns:
        True if no value is negative and every row sums to 1, to the square root of the dtype's precision.

    Example:
        >>> sum_to_one(torch.tensor([[0.5, 0.5]])), sum_to_one(torch.tensor([[1.5, -0.5]]))
        (True, False)
    """
    values = output.detach().to(torch.float64)
    tolerance = torch.finfo(output.dtype).eps ** 0.5
    return bool((values >= 0).all() and ((values.sum(1) - 1).abs() <= tolerance).all())


def average_probabilities(parts: Iterable[Tensor]) -> Tensor:
    r"""Arithmetic mean of class probabilities, $\bar p = \frac{1}{K} \sum_k p_k$, of members or of views.

    Source: Ioffe & Szegedy 2015, section 4.2.3. Only the sum and one part are held at a time.

    Args:
        parts: K tensors `[N, C]`.

    Returns:
        `[N, C]`, float64.

    Raises:
        ValueError: If there are none, or their shapes differ.
        NonFiniteError: If one holds NaN or an infinite value.

    Example:
        >>> average_probabilities([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])])
        tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    total: Tensor | None = None
    count = 0
    for count, part in enumerate(parts, start=1):
        if not part.isfinite().all():
            raise NonFiniteError(f"Part {count} of the average holds class probabilities that are NaN or infinite.")
        if total is not None and part.shape != total.shape:
            raise ValueError(
                f"Only class probabilities of the same samples and classes can be averaged: part {count} is "
                f"{list(part.shape)}, those before are {list(total.shape)} (samples, classes)."
            )
        total = part.to(torch.float64, copy=True) if total is None else total.add_(part)
    if total is None:
        raise ValueError("There is nothing to average: no member, or no view of the inputs.")
    return total / count


def top_k_error(probabilities: Tensor, target: Tensor, k: int = 1) -> float:
    r"""Share of samples whose class is not among the k most probable ones.

    Args:
        probabilities: `[N, C]`.
        target: `[N]`, the classes as whole numbers from 0 to C − 1.
        k: How many classes may be named; fewer than there are, as all of them are never wrong.

    Returns:
        The error, between 0 and 1.

    Raises:
        ValueError: If the target is not of that form, there is no sample, or k is not from 1 to C − 1.

    Example:
        >>> probabilities, target = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]), torch.tensor([0, 1])
        >>> top_k_error(probabilities, target), top_k_error(probabilities, target, k=2)
        (0.5, 0.0)
    """
    samples, classes = probabilities.shape
    if not 1 <= k < classes:
        raise ValueError(f"A top-{k} error of {classes} classes says nothing: k is from 1 to {classes - 1}.")
    if not samples:
        raise ValueError("There is no sample to take an error over.")
    if target.shape != (samples,) or target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"The target of {samples} samples is their class as a whole number, [{samples}], but it is {target.dtype} "
            f"{list(target.shape)}."
        )
    if samples and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(
            f"The classes of the target reach from {int(target.min())} to {int(target.max())}, those of the outputs "
            f"from 0 to {classes - 1}."
        )
    right = multiclass_accuracy(probabilities, target, num_classes=classes, average="micro", top_k=k)
    # A share of float32, of a count that is whole.
    return (samples - round(float(right) * samples)) / samples


def _refuse_shapes(output: Any) -> None:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        found = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(
            f"A member returns a tensor of floating point with a value for each class, but this one returned {found}. "
            "If it returns several things, name the one to use by its key or place (output=, --output)."
        )
    if output.ndim != 2 or output.shape[1] < 2:
        raise ValueError(
            f"A member returns [N, C] with two classes or more, but this one returned {list(output.shape)}. A single "
            "logit of two classes needs a forward of your own that returns both (forward=, --forward)."
        )
