"""The problem of the studies that measure a run while it trains."""

import dataclasses
from pathlib import Path

from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.study import Budget, Problem

MOST_STEPS = 10_000


def measured_digits(data_dir: str | Path | None = None) -> Problem:
    """The digits network of the paper's first experiment, on MNIST for 10,000 of its 50,000 steps.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    problem = digits_problem(data_dir=data_dir)
    steps = min(problem.budget.max_steps, MOST_STEPS)
    return dataclasses.replace(problem, budget=Budget(max_steps=steps, eval_every=problem.budget.eval_every))
