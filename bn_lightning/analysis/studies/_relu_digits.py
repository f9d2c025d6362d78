"""The digits network with ReLUs that studies of settings train."""

import dataclasses
import functools
from pathlib import Path

from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.study import Budget, Problem


def relu_digits(data_dir: str | Path | None, budget: Budget, *, target: float | None = None) -> Problem:
    """The digits network with ReLUs, weights of He's standard deviation and rate 0.1.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.
        budget: How long a run is.
        target: Accuracy to time.

    Returns:
        The problem.
    """
    problem = digits_problem(data_dir=data_dir, activation="relu", lr=0.1)
    return dataclasses.replace(
        problem,
        module=functools.partial(problem.module, weight_std=None),
        budget=budget,
        target=target,
        options={**problem.options, "weight_std": "√(2/inputs)"},
    )
