"""Digests of code, which change when what it does changes and not when it is only written otherwise."""

from types import CodeType

from bn_lightning.analysis.short_digest import short_digest


def code_digest(code: CodeType) -> str:
    """Digest what a function does; constants that are code themselves are followed.

    Args:
        code: The function's code.

    Returns:
        Twelve hexadecimal digits, the same in every process of one Python version.

    Example:
        >>> code_digest((lambda x: x + 1).__code__) == code_digest((lambda x: x + 2).__code__)
        False
    """
    parts = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        # A frozenset's repr depends on the hash seed of the process.
        text = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
        parts.append(code_digest(constant) if isinstance(constant, CodeType) else repr(text))
    return short_digest("\n".join(parts).encode())
