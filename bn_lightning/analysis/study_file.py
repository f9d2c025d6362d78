"""Studies in files of users' own, named by their path."""

import ast
import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

from bn_lightning.analysis.import_failure import import_failure
from bn_lightning.analysis.names import unknown_name

_texts: dict[str, bytes] = {}  # of the files that were read, by the name of the module


def is_study_file(name: str | Path) -> bool:
    """Whether what names a study is the path of a file.

    Args:
        name: As given.

    Returns:
        True for what ends in `.py`, whether there is such a file or not.

    Example:
        >>> is_study_file("studies/momentum.py"), is_study_file("placement")
        (True, False)
    """
    return str(name).endswith(".py")


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
        near = [other.name for other in file.parent.glob("*.py") if other.is_file()]
        raise unknown_name(f"study file in {file.parent}", file.name, near)
    name, text = file.stem, file.read_bytes()
    _check_name(file)
    _check_neighbours(file, text)
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    if _texts.get(name, text) != text:
        # Not reloaded in its place, where what was taken out of the file would stay.
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
    _texts[name] = text
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script that parses arguments ends so
        raise import_failure(f"The study file {file}", error) from error
    _check_study(file, module)
    return module


def _check_study(file: Path, module: ModuleType) -> None:
    given = getattr(module, "study", None)
    if callable(given) and not isinstance(given, type):
        return
    held = sorted(n for n, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    it = (
        "which gives the Study; it holds"
        if given is None
        else f"but a study that is {_kind(given)}; of its own it holds"
    )
    raise ValueError(f"The study file {file} holds no function study(problem), {it}: {', '.join(held) or 'nothing'}.")


def _kind(value: object) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"of the type {type(value).__qualname__}"


def _check_neighbours(file: Path, text: bytes) -> None:
    """Check that what the file imports from its own folder is not there already, from another one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its import says what is odd in it
            nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError):  # which its import says
        return
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    for name in sorted({name.partition(".")[0] for name in names} & set(sys.modules)):
        beside = [
            place for place in (file.parent / f"{name}.py", file.parent / name / "__init__.py") if place.is_file()
        ]
        origin = getattr(getattr(sys.modules[name], "__spec__", None), "origin", None)
        if beside and origin and not _same(Path(origin), beside[0]):
            raise ValueError(
                f"The study file {file} imports {name}, of which this process has another already, {origin}, and not "
                f"{beside[0]}. Give one of the two another name, or run the study in a process of its own."
            )


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
