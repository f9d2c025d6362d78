"""The three arms of studies that ask of one measure what batch norm does to it in either place."""

import functools
from collections.abc import Callable
from typing import Any

from bn_lightning.analysis.study import Arm, Problem

PLACEMENTS = {"none": "without BN", "before": "BN before", "after": "BN after"}


def placement_arms(callbacks: Callable[[str, int], list[Any]], problem: Problem) -> tuple[Arm, ...]:
    """Batch norm nowhere, before and after the nonlinearities.

    Args:
        callbacks: Makes an arm's callbacks, from its placement and the steps of a run.
        problem: What is trained.

    Returns:
        The arms.
    """
    return tuple(
        Arm(
            name=name,
            label=label,
            factors={"placement": name},
            callbacks=functools.partial(callbacks, name, problem.budget.max_steps),
        )
        for name, label in PLACEMENTS.items()
    )
