"""The studies there are: every file of the folder `studies` is one, and so is any file of a user's that is named."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bn_lightning.analysis import studies
from bn_lightning.analysis.module_options import takes_options
from bn_lightning.analysis.names import unknown_name
from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.study import Problem, Study
from bn_lightning.analysis.study_file import is_study_file, study_module
from bn_lightning.errors import UnknownNameError


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
    """Build a study by its name, or by its file.

    Args:
        name: Name of a study, which is the name of its file in the folder `studies`; or the path of a file of your own,
            ending in `.py`, which holds a function `study(problem)` that gives the Study.
        problem: What to train; by default the study's own, see `default_problem`.
        data_dir: Folder with MNIST for the digits; by default the one BN_LIGHTNING_DATA names, else the embedded set.

    Returns:
        The study.

    Raises:
        UnknownNameError: If there is no such study, or file; the message names the near ones.
        ValueError: If both a problem and a folder are given, or the file gives no study.

    Example:
        >>> [arm.name for arm in find_study("placement").arms]
        ['none', 'before', 'after', 'before_plain', 'after_plain']
    """
    module = _study_module(name)
    if problem is not None and data_dir is not None:
        raise ValueError("data_dir (--data-dir) names a folder for the package's own digits; your own data need none.")
    study = module.study(default_problem(name, data_dir=data_dir) if problem is None else problem)
    if not isinstance(study, Study):
        raise ValueError(
            f"study(problem) of {name} gave a {type(study).__qualname__}, and should give a Study, as "
            "bn_lightning.analysis has it."
        )
    return dataclasses.replace(study, file=str(Path(name).expanduser().absolute())) if is_study_file(name) else study


def default_problem(name: str, *, data_dir: str | Path | None = None) -> Problem:
    """What a study trains unless it is told otherwise: its file's own `default_problem`, else the digits.

    Args:
        name: Name of a study, or the path of its file.
        data_dir: Folder with MNIST for the digits.

    Returns:
        The problem.

    Raises:
        UnknownNameError: If there is no such study, or file.
        ValueError: If a folder is given to a file whose `default_problem` takes none.

    Example:
        >>> default_problem("divergence").budget.max_steps
        300
    """
    make: Callable[..., Problem] = getattr(_study_module(name), "default_problem", digits_problem)
    if data_dir is None:
        return make()
    if not takes_options(make, "data_dir"):
        raise ValueError(
            f"data_dir (--data-dir) was given, and default_problem of {name} takes none: it has data of its own."
        )
    return make(data_dir=data_dir)


def _study_module(name: str) -> Any:
    if is_study_file(name):
        return study_module(name)
    if name not in study_names():
        near = unknown_name("study", name, study_names())
        raise UnknownNameError(f"{near} A study of your own is named by its file, as {name}.py.")
    return importlib.import_module(f"{studies.__name__}.{name}")
