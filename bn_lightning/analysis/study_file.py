"""Studies in files of users' own, named by their path."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from bn_lightning.analysis.import_failure import import_failure
from bn_lightning.analysis.names import unknown_name

_texts: dict[str, str] = {}  # of the files that were read, by the name of the module


def is_study_file(name: str) -> bool:
    """Whether what names a study is the path of a file.

    Args:
        name: As given.

    Returns:
        True for what ends in `.py`, whether there is such a file or not.

    Example:
        >>> is_study_file("studies/momentum.py"), is_study_file("placement")
        (True, False)
    """
    return name.endswith(".py")


def study_module(path: str | Path) -> ModuleType:
    """Import a file that holds a study.

    It is imported as Python imports a script's neighbours: under its own name, its folder on the path, so that other
    processes find it too and it may import what lies beside it. A file that was changed since is read again.

    Args:
        path: Of the file. It holds a function `study(problem)`, and may hold a `default_problem(data_dir=None)`.

    Returns:
        The module.

    Raises:
        UnknownNameError: If there is no such file; the message names the near ones.
        ValueError: If its name cannot be a module's, or is another module's, it fails as it is imported, or holds no
            study.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        near = [other.name for other in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise unknown_name(f"study file in {file.parent}", file.name, near)
    name, text = file.stem, file.read_text(encoding="utf-8")
    _check_name(file)
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    try:
        module = importlib.import_module(name)
        if _texts.get(name, text) != text:
            importlib.invalidate_caches()
            module = importlib.reload(module)
    except Exception as error:
        raise import_failure(f"The study file {file}", error) from error
    _texts[name] = text
    if not inspect.isfunction(getattr(module, "study", None)):
        held = sorted(n for n, value in vars(module).items() if getattr(value, "__module__", None) == name)
        raise ValueError(
            f"The study file {file} holds no function study(problem), which gives the Study; it holds: "
            f"{', '.join(held) or 'nothing of its own'}."
        )
    return module


def _check_name(file: Path) -> None:
    if not file.stem.isidentifier():
        raise ValueError(
            f"The study file {file} is imported by its name, and {file.stem!r} cannot be one. Call it, for instance, "
            f"{''.join(c if c.isidentifier() or c.isdigit() else '_' for c in file.stem)}.py."
        )
    try:
        found = importlib.util.find_spec(file.stem)
    except ValueError:  # as of __main__
        found = importlib.util.spec_from_loader(file.stem, None)
    if found is not None and (found.origin is None or not _same(Path(found.origin), file)):
        where = f"of {found.origin}" if found.origin else "that Python has"
        raise ValueError(
            f"The study file {file} has the name of a module {where}, which would be imported in its place. Give it "
            "another name."
        )


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)
