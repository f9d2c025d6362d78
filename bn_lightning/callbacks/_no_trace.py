"""Run a module's steps beside training, so that training does not notice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bn_lightning.callbacks._attributes import preserve_attributes, silent_loggers
from bn_lightning.callbacks._metrics import preserve_metrics

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule


@contextmanager
def no_trace(module: "LightningModule") -> Iterator[None]:
    """Let the steps of a module leave nothing in its metrics, its plain attributes, ``log`` and the loggers.

    Args:
        module: The LightningModule.

    Yields:
        Nothing.
    """
    with preserve_metrics(module), preserve_attributes(module), _muted_logging(module):
        yield


@contextmanager
def _muted_logging(module: "LightningModule") -> Iterator[None]:
    """Let `log` and `log_dict` of this module do nothing, nor what it writes to loggers itself.

    Args:
        module: The LightningModule.

    Yields:
        Nothing.
    """
    names = ("log", "log_dict")
    saved = {name: vars(module)[name] for name in names if name in vars(module)}
    try:
        for name in names:
            vars(module)[name] = _ignore
        with silent_loggers(module):
            yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        vars(module).update(saved)


def _ignore(*args: Any, **kwargs: Any) -> None:
    pass
