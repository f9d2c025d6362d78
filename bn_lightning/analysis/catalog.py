"""The studies there are: every file of the folder `studies` is one."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from bn_lightning.analysis import studies
from bn_lightning.analysis.names import unknown_name
from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.study import Problem, Study


def study_names() -> tuple[str, ...]:
    """Names of all studies, in alphabetical order.

    Returns:
        The names.

    Example:
        >>> "placement" in study_names()
        True
    """
    return tuple(sorted(found.name for found in pkgutil.iter_modules(studies.__path__) if found.name[0] != "_"))


def find_study(name: str, *, problem: Problem | None = None, data_dir: str | Path | None = None) -> Study:
    """Build a study by its name.

    Args:
        name: Name of a study, which is the name of its file.
        problem: What to train; by default the study's own, see `default_problem`.
        data_dir: Folder with MNIST for the digits; by default the one BN_LIGHTNING_DATA names, else the embedded set.

    Returns:
        The study.

    Raises:
        UnknownNameError: If there is no such study; the message names the near ones.
        ValueError: If both a problem and a folder are given.

    Example:
        >>> [arm.name for arm in find_study("placement").arms]
        ['none', 'before', 'after', 'before_plain', 'after_plain']
    """
    module = _study_module(name)
    if problem is not None and data_dir is not None:
        raise ValueError("data_dir (--data-dir) names a folder for the package's own digits; your own data need none.")
    study: Study = module.study(default_problem(name, data_dir=data_dir) if problem is None else problem)
    return study


def default_problem(name: str, *, data_dir: str | Path | None = None) -> Problem:
    """What a study trains unless it is told otherwise: its file's own `default_problem`, else the digits.

    Args:
        name: Name of a study.
        data_dir: Folder with MNIST for the digits.

    Returns:
        The problem.

    Raises:
        UnknownNameError: If there is no such study.

    Example:
        >>> default_problem("divergence").budget.max_steps
        300
    """
    make = getattr(_study_module(name), "default_problem", digits_problem)
    problem: Problem = make(data_dir=data_dir)
    return problem


def _study_module(name: str) -> Any:
    if name not in study_names():
        raise unknown_name("study", name, study_names())
    return importlib.import_module(f"{studies.__name__}.{name}")
