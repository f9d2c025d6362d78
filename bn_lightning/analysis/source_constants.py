"""Which of a module's values its text alone decides, and not the process, the machine or the time."""

import ast
import functools
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_HOLDERS = (ast.Tuple, ast.List, ast.Set, ast.Dict)
_WRITTEN_OUT = (ast.Constant, ast.UnaryOp, ast.BinOp, *_HOLDERS, ast.operator, ast.unaryop, ast.expr_context)
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class SourceNames:
    """Names in the text of a module.

    Args:
        constants: Those that it, or a class in it, sets once and to what is written out; in classes, with the class
            before them. What is computed, such as `os.getpid()`, and what is set twice, as in a `try`, is none.
        defaults: Functions of it and its classes whose arguments' defaults are all written out.
        state: Those that functions set later: globals, and attributes of anything but `self`.
    """

    constants: frozenset[str] = frozenset()
    defaults: frozenset[str] = frozenset()
    state: frozenset[str] = frozenset()


@functools.lru_cache(maxsize=4096)
def source_names(source: bytes) -> SourceNames:
    r"""Tell apart what the text of a module decides and what may differ between healthy processes.

    Args:
        source: The module's text.

    Returns:
        The names; none where the text is no Python.

    Example:
        >>> found = source_names(b"import os\nlr = 0.1\npid = os.getpid()\nclass Net:\n    width = 2 * 32\n")
        >>> sorted(found.constants)
        ['Net.width', 'lr']
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python said on import what it finds odd
            tree = ast.parse(source)
        state = frozenset(_state(tree))
        constants = (name for name in _constants(tree.body, "") if name.rpartition(".")[2] not in state)
        return SourceNames(frozenset(constants), frozenset(_defaults(tree.body, "")), state)
    except (SyntaxError, ValueError, RecursionError):
        return SourceNames()


def _state(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield from () if isinstance(node.value, ast.Name) and node.value.id == "self" else [node.attr]


def _constants(body: list[ast.stmt], within: str) -> Iterator[str]:
    times = Counter(name for statement in body for name in _set_by(statement))
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from _constants(statement.body, f"{within}{statement.name}.")
        targets: list[ast.expr] = getattr(statement, "targets", None) or [getattr(statement, "target", statement)]
        value = statement.value if isinstance(statement, (ast.Assign, ast.AnnAssign)) else None
        if value is not None and _is_written_out(value):
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            yield from (f"{within}{name}" for name in names if times[name] == 1 and not name.startswith("__"))


def _defaults(body: list[ast.stmt], within: str) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from _defaults(statement.body, f"{within}{statement.name}.")
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = [*statement.args.defaults, *filter(None, statement.args.kw_defaults)]
            if all(map(_is_written_out, given)):
                yield f"{within}{statement.name}"


def _is_written_out(value: ast.expr) -> bool:
    return all(isinstance(node, _WRITTEN_OUT) for node in ast.walk(value))


def _set_by(node: ast.AST) -> Iterator[str]:
    """Names that a statement sets in its own scope, once for each time it does."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, _NAMED) and node.name:
        yield node.name
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    if not isinstance(node, (*_SCOPES, *_COMPREHENSIONS)):
        for child in ast.iter_child_nodes(node):
            yield from _set_by(child)
