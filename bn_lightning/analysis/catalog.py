"""The studies there are: every file of the folder `studies` is one."""

import importlib
import pkgutil
from pathlib import Path

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
        problem: What to train; by default digits.
        data_dir: Folder with MNIST for the digits; by default the one BN_LIGHTNING_DATA names, else the embedded set.

    Returns:
        The study.

    Raises:
        UnknownNameError: If there is no such study; the message names the near ones.
        ValueError: If both a problem and a folder are given.

    Example:
        >>> [arm.name for arm in find_study("placement").arms]
        ['none', 'before', 'after']
    """
    if name not in study_names():
        raise unknown_name("study", name, study_names())
    if problem is not None and data_dir is not None:
        raise ValueError("data_dir (--data-dir) names a folder for the package's own digits; your own data need none.")
    module = importlib.import_module(f"{studies.__name__}.{name}")
    chosen = digits_problem(data_dir=data_dir) if problem is None else problem
    study: Study = module.study(chosen)
    return study
