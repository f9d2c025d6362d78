"""Find the activation modules between the layers of a model, and put others in their places."""

from typing import TYPE_CHECKING

from torch import nn

from bn_lightning.callbacks._insertion_run import trace_plan
from bn_lightning.errors import NoSiteError
from bn_lightning.surgery.plan import Site

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


def hidden_activations(trainer: "Trainer", module: "LightningModule", *, to: str) -> dict[str, tuple[Site, ...]]:
    """The activation modules that insertion would put a norm at, were there no norms yet.

    The module is traced as `BatchNormInsertion` traces it. Output heads, gates and what lies in recurrences are left
    out by the same rules.

    Args:
        trainer: The Trainer that is setting up.
        module: Its LightningModule.
        to: What is to be done to them, in words for the error: "be swapped".

    Returns:
        By path of the activation module, its sites in the order of the forward: several where one module serves
        several layers.

    Raises:
        NoSiteError: If there is no such activation.
        ValueError: If one is a function in a forward, where there is no module to act on.
        MisconfigurationException: If there is nothing to trace the module with.
    """
    plan = trace_plan(trainer, module, entry=None, num_examples=1, options={"existing": ()})
    if not plan.inserted:
        raise NoSiteError(
            f"{type(module).__name__} has no nonlinearity between its layers that could {to}: {plan.why_skipped}."
        )
    functions = [
        f"{site.function} in {repr(site.owner) if site.owner else 'its own forward'}"
        for site in plan.inserted
        if not site.activation
    ]
    if functions:
        raise ValueError(
            f"The nonlinearities of {type(module).__name__} are to {to}, and some are functions called in a forward, "
            f"not modules: {', '.join(functions)}. Call modules there, such as self.act = nn.ReLU() and self.act(x), "
            "or leave the arm out."
        )
    found: dict[str, list[Site]] = {}
    for site in plan.inserted:
        found.setdefault(site.activation, []).append(site)
    return {path: tuple(sites) for path, sites in found.items()}


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in all places of another, in the mode of training that other was in.

    Args:
        model: Holds the old one, under one or several names; changed in place.
        old: The module that goes.
        new: The one that comes; it may hold the old one.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> replace_module(model, model[1], nn.Tanh())
        >>> model[1]
        Tanh()
    """
    new.train(old.training)
    # Not by named_children, which gives a module once only, though its parent may call it by two names.
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is old and parent is not new
    ]
    for parent, name in places:
        setattr(parent, name, new)
