"""Which arguments the factory of a module takes, before it is called."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


def takes_options(factory: Callable[..., Any], *names: str) -> bool:
    """Whether a factory of modules can be called with these keyword arguments.

    Args:
        factory: A class, a function or a partial of one. The command line hands over a partial of a helper with the
            class among its arguments: there the class decides.
        *names: Names of keyword arguments.

    Returns:
        True also where nothing can be told of a factory before it is called.

    Example:
        >>> def make(*, lr=0.1, depth=3): ...
        >>> takes_options(make, "depth"), takes_options(functools.partial(make, lr=1.0), "width")
        (True, False)
    """
    asked: Callable[..., Any] = factory
    while isinstance(asked, functools.partial):
        classes = [argument for argument in asked.args if isinstance(argument, type)]
        asked = classes[0] if classes else asked.func
    try:
        inspect.signature(asked).bind_partial(**dict.fromkeys(names))
    except ValueError:  # some callables tell nothing of their arguments before they are called
        return True
    except TypeError:
        return False
    return True
