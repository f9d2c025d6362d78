"""Run a module's steps without what they note down in plain attributes and loggers."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from bn_lightning.callbacks._compat import namespace_of

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule

# Parameters, buffers, children, hooks and modes have guards of their own.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@contextmanager
def preserve_attributes(module: nn.Module) -> Iterator[None]:
    """Give every module inside `module` its plain attributes back on exit.

    An attribute that was set again is the object it was. A list, dict, set or deque holds what it held, one level deep:
    enough for outputs that a ``training_step`` collects for the end of the epoch, and for counters.

    Lazy modules that are built within keep what they were built with.

    Args:
        module: The module.

    Yields:
        Nothing.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> net.outputs = [1]
        >>> with preserve_attributes(net):
        ...     net.outputs.append(2)
        ...     net.steps = 1
        >>> net.outputs, hasattr(net, "steps")
        ([1], False)
    """
    built = [part for part in module.modules() if not isinstance(part, LazyModuleMixin)]
    saved = [(vars(part), _plain(vars(part))) for part in built]
    contents = [
        (value, value.copy())
        for _, attributes in saved
        for value in attributes.values()
        if isinstance(value, list | dict | set | deque)
    ]
    try:
        yield
    finally:
        for own, attributes in saved:
            for name in _plain(own).keys() - attributes.keys():
                del own[name]
            # One by one: to set what is unchanged again would be as right, and slower.
            own.update({name: value for name, value in attributes.items() if own.get(name) is not value})
        for value, held in contents:
            _refill(value, held)


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _OF_EVERY_MODULE}


def _refill(value: Any, held: Any) -> None:
    if isinstance(value, list):
        value[:] = held
        return
    value.clear()
    if isinstance(value, deque):
        value.extend(held)
    else:
        value.update(held)


@contextmanager
def silent_loggers(module: "LightningModule") -> Iterator[None]:
    """Let the loggers that a module reaches swallow what it writes to them itself, past ``log``.

    Args:
        module: The LightningModule.

    Yields:
        Nothing.
    """
    trainer = getattr(module, "_trainer", None)
    if trainer is None or not trainer.loggers:
        yield
        return
    loggers = trainer.loggers
    dummy = namespace_of(trainer).loggers.logger.DummyLogger
    try:
        trainer.loggers = [dummy() for _ in loggers]
        yield
    finally:
        trainer.loggers = loggers
