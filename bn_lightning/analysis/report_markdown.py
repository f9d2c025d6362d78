"""Text for a report in Markdown: what users named is shown as they named it and never taken for markup."""

import re
from typing import Any
from urllib.parse import quote

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Verbatim(str):
    """Text that is Markdown already, or stands in a code block."""

    __slots__ = ()


def markdown_text(value: Any) -> str:
    r"""Escape a value, so that every character of Markdown and HTML in it is shown as itself.

    Args:
        value: Anything; `Verbatim` is left as it is.

    Returns:
        One line of Markdown.

    Example:
        >>> print(markdown_text("<script> a|b"))
        &lt;script&gt; a\|b
    """
    if isinstance(value, Verbatim):
        return value
    text = re.sub("[&<>]", lambda found: _ENTITIES[found.group()], " ".join(str(value).split()))
    # A dash or a number with a dot starts a list only at the start of a line.
    return re.sub(r"^(\d+(?=\.(?:\s|$))|(?=[-=]))", r"\1\\", _MARKUP.sub(r"\\\1", text))


def markdown_path(path: str) -> Verbatim:
    """Write a relative path as the target of a link.

    Args:
        path: Relative path with forward slashes.

    Returns:
        The target.

    Example:
        >>> markdown_path("figures/a figure (1).png")
        'figures/a%20figure%20%281%29.png'
    """
    return Verbatim(quote(path, safe="/"))
