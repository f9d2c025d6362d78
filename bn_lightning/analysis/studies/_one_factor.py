"""Arms that differ in one factor, as those of studies that ask what batch norm does in either place."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from bn_lightning.analysis.study import Arm, Problem

PLACEMENTS = {"none": "without BN", "before": "BN before", "after": "BN after"}


def one_factor_arms(
    factor: str, labels: Mapping[str, str], callbacks: Callable[[str, int], list[Any]], problem: Problem
) -> tuple[Arm, ...]:
    """An arm for each level of a factor.

    Args:
        factor: Its name.
        labels: For each level, which names the arm, what figures and tables call it.
        callbacks: Makes an arm's callbacks, from its level and the steps of a run.
        problem: What is trained.

    Returns:
        The arms.
    """
    return tuple(
        Arm(
            name=name,
            label=label,
            factors={factor: name},
            callbacks=functools.partial(callbacks, name, problem.budget.max_steps),
        )
        for name, label in labels.items()
    )
