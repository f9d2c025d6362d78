"""What a cell was run with, in plain values, and a hash of it that changes when any of them does."""

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from platform import python_version
from typing import Any

from bn_lightning.analysis.description import describe
from bn_lightning.analysis.study import Arm, Problem


def problem_configuration(problem: Problem) -> dict[str, Any]:
    """What all cells of a problem have in common, where data that a factory holds may take seconds to digest.

    Args:
        problem: What is trained.

    Returns:
        JSON types only.
    """
    return {
        "problem": problem.name,
        "module": describe(problem.module),
        "data": describe(problem.data),
        "options": describe(dict(problem.options)),
        "monitor": problem.monitor,
        "mode": problem.mode,
        "trainer_options": describe(dict(problem.trainer_options)),
    }


def cell_configuration(problem: Problem, arm: Arm, *, shared: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What decides what a cell of `arm` computes, as far as `describe` can tell; not the seed and the versions.

    Args:
        problem: What is trained.
        arm: The arm; its callbacks are made once to be described.
        shared: What `problem_configuration` gave, if it was asked before.

    Returns:
        JSON types only.
    """
    budget = arm.budget or problem.budget
    return {
        **(problem_configuration(problem) if shared is None else shared),
        "max_steps": budget.max_steps,
        "eval_every": budget.eval_every,
        "arm": arm.name,
        "arm_options": describe(dict(arm.options)),
        "factors": describe(dict(arm.factors)),
        "callbacks": [describe(callback) for callback in arm.callbacks()],
    }


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """Hash a configuration.

    Args:
        configuration: JSON types only.

    Returns:
        Sixteen hexadecimal digits, the same for equal configurations in every process.

    Example:
        >>> configuration_hash({"a": 1, "b": 2}) == configuration_hash({"b": 2, "a": 1})
        True
    """
    text = json.dumps(configuration, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what decides a cell's numbers.

    Returns:
        Version by distribution: python, bn-lightning, torch, pytorch-lightning, torchmetrics and numpy.
    """
    from bn_lightning._version import __version__

    found = {"python": python_version(), "bn-lightning": __version__}
    for name in ("torch", "pytorch-lightning", "lightning", "torchmetrics", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
