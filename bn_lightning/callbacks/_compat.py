"""One callback base for `pytorch_lightning` and `lightning`, whichever is installed, or both.

The two are one code base under two names, yet a Trainer of `lightning` before 2.6 and every
LightningCLI check that a callback is a subclass of their own `Callback`. So the base inherits
from each one that can be imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn


def own_state(callback: object) -> dict[str, Any]:
    """What a callback holds itself, for its copies and pickles.

    Args:
        callback: A callback.

    Returns:
        Its attributes but for `log` and `log_dict`: the module's own methods, which a Trainer hangs on every callback
        of a fit, and with which a copy would hold the whole module.
    """
    return {name: value for name, value in vars(callback).items() if name not in ("log", "log_dict")}


if TYPE_CHECKING:
    from pytorch_lightning import Callback as CallbackBase
    from pytorch_lightning import LightningModule, Trainer
else:

    def _installed() -> list[Any]:
        namespaces = []
        for name in ("pytorch_lightning", "lightning.pytorch"):
            try:
                namespaces.append(importlib.import_module(name))
            except ModuleNotFoundError as error:
                # A broken installation must be seen; only "not installed" is fine.
                if error.name not in ("pytorch_lightning", "lightning"):
                    raise
        if not namespaces:
            raise ModuleNotFoundError(
                "bn_lightning.callbacks needs Lightning: pip install pytorch-lightning, or lightning."
            )
        return namespaces

    NAMESPACES = _installed()
    CallbackBase = type(
        "CallbackBase",
        tuple(space.Callback for space in NAMESPACES),
        {"__module__": __name__, "__getstate__": own_state},
    )
    LightningModule = tuple(space.LightningModule for space in NAMESPACES)
    Trainer = tuple(space.Trainer for space in NAMESPACES)


def namespace_of(part: "Trainer | LightningModule") -> Any:
    """The Lightning package (`pytorch_lightning` or `lightning.pytorch`) that `part` belongs to.

    Args:
        part: A Trainer or a LightningModule, or an instance of a subclass of one.

    Returns:
        The imported package.
    """
    for ancestor in type(part).__mro__:
        for name in ("lightning.pytorch", "pytorch_lightning"):
            if ancestor.__module__.startswith(name + "."):
                return importlib.import_module(name)
    return importlib.import_module("pytorch_lightning")


def misconfiguration(trainer: "Trainer", message: str) -> Exception:
    """A MisconfigurationException of the Trainer's own namespace, ready to be raised.

    Args:
        trainer: The Trainer whose settings are wrong.
        message: What was asked, what was found and the way out.

    Returns:
        The exception.
    """
    exceptions = importlib.import_module(namespace_of(trainer).__name__ + ".utilities.exceptions")
    error: Exception = exceptions.MisconfigurationException(message)
    return error


def averages_weights(callback: object) -> bool:
    """Whether a callback is one of Lightning's that keep averaged weights, under either name of the package.

    Args:
        callback: A callback.

    Returns:
        True for weight averaging (EMA too) and stochastic weight averaging, and for subclasses.
    """
    kinds = {kind.__name__ for kind in type(callback).__mro__}
    return not kinds.isdisjoint({"WeightAveraging", "StochasticWeightAveraging"})


__all__ = [
    "CallbackBase",
    "LightningModule",
    "Trainer",
    "averages_weights",
    "misconfiguration",
    "namespace_of",
    "own_state",
    "rank_zero_info",
    "rank_zero_warn",
]
