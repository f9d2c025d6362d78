"""Digests of code, which change when what it does changes and not when it is only written otherwise."""

import inspect
import sys
from types import CodeType

from bn_lightning.analysis.short_digest import short_digest

_TAKES_MORE = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
_HAS_DOCSTRING = 0x4000000  # from Python 3.13 on


def code_digest(code: CodeType) -> str:
    """Digest what a function does and takes; code in its constants is followed, and its docstring is left out.

    Args:
        code: The function's code.

    Returns:
        Twelve hexadecimal digits, the same in every process of one Python version.

    Example:
        >>> code_digest((lambda x: x + 1).__code__) == code_digest((lambda x: x + 2).__code__)
        False
    """
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    takes = (code.co_argcount, code.co_posonlyargcount, named, code.co_flags & _TAKES_MORE)
    parts = [code.co_code.hex(), code.co_exceptiontable.hex(), repr(code.co_names), repr(takes)]
    for constant in code.co_consts[_is_documented(code) :]:
        # A frozenset's repr depends on the hash seed of the process.
        text = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
        parts.append(code_digest(constant) if isinstance(constant, CodeType) else repr(text))
    return short_digest("\n".join(parts).encode())


def _is_documented(code: CodeType) -> bool:
    """Whether the first constant is the docstring, or the None in its place."""
    if sys.version_info >= (3, 13):
        return bool(code.co_flags & _HAS_DOCSTRING)
    first = code.co_consts[:1]
    return not code.co_name.startswith("<") and bool(first) and isinstance(first[0], str | None)
