"""The studies there are: every file of the folder `studies` is one, and so is any file of a user's that is named."""

import dataclasses
import importlib
import inspect
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


def find_study(name: str | Path, *, problem: Problem | None = None, data_dir: str | Path | None = None) -> Study:
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
        ValueError: If both a problem and a folder are given, or the file gives no study when it is handed the problem.

    Example:
        >>> [arm.name for arm in find_study("placement").arms]
        ['none', 'before', 'after', 'before_plain', 'after_plain']
    """
    module = _study_module(name)
    if problem is not None and data_dir is not None:
        raise ValueError("data_dir (--data-dir) names a folder for the package's own digits; your own data need none.")
    if problem is None:
        problem = default_problem(name, data_dir=data_dir)
    _check_call(module.study, name, "study(problem)", problem)
    study = module.study(problem)
    if not isinstance(study, Study):
        raise ValueError(
            f"study(problem) of {name} gave a {type(study).__qualname__}, and should give a Study, as "
            "bn_lightning.analysis has it."
        )
    return dataclasses.replace(study, file=str(Path(name).expanduser().absolute())) if is_study_file(name) else study


def default_problem(name: str | Path, *, data_dir: str | Path | None = None) -> Problem:
    """What a study trains unless it is told otherwise: its file's own `default_problem`, else the digits.

    Args:
        name: Name of a study, or the path of its file.
        data_dir: Folder with MNIST for the digits.

    Returns:
        The problem.

    Raises:
        UnknownNameError: If there is no such study, or file.
        ValueError: If a folder is given to a file whose `default_problem` takes none, or that gives no Problem.

    Example:
        >>> default_problem("divergence").budget.max_steps
        300
    """
    make: Callable[..., Problem] = getattr(_study_module(name), "default_problem", digits_problem)
    if data_dir is not None and not takes_options(make, "data_dir"):
        raise ValueError(
            f"data_dir (--data-dir) was given, and default_problem of {name} takes none: it has data of its own."
        )
    given = {} if data_dir is None else {"data_dir": data_dir}
    _check_call(make, name, "default_problem(data_dir=None)", **given)
    problem = make(**given)
    if not isinstance(problem, Problem):
        raise ValueError(
            f"default_problem of {name} gave a {type(problem).__qualname__}, and should give a Problem, as "
            "bn_lightning.analysis has it."
        )
    return problem


def _check_call(function: Any, name: str | Path, form: str, *arguments: Any, **options: Any) -> None:
    called = form.partition("(")[0]
    if not callable(function):
        raise ValueError(f"{called} of {name} is a {type(function).__qualname__}, and should be a function: {form}.")
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        raise ValueError(f"{called} of {name} is called as {form}, but that fails: {error}.") from error


def _study_module(name: str | Path) -> Any:
    if is_study_file(name):
        return study_module(name)
    if name not in study_names():
        near = unknown_name("study", str(name), study_names())
        raise UnknownNameError(f"{near} A study of your own is named by its file, as {name}.py.")
    return importlib.import_module(f"{studies.__name__}.{name}")
