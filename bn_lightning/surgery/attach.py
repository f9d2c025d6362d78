"""Carry an insertion plan out on a model, and take it back."""

import fnmatch
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.errors import InsertionWarning, NoEffectWarning, NoSiteError, PlanMismatchError
from bn_lightning.surgery.carried import PLAN_ATTRIBUTE, containers, own_plan, plan_of
from bn_lightning.surgery.frames import Action, OwnerForward, suspend_in_children
from bn_lightning.surgery.graph import CHILD_NAME
from bn_lightning.surgery.hooks import (
    OWN_HOOKS,
    Normalize,
    activation_hook,
    activation_output_hook,
    producer_hook,
)
from bn_lightning.surgery.norms import InsertedNorms, is_untouched, make_norm
from bn_lightning.surgery.plan import CUSTOM_NORM, InsertionPlan, NormFactory, Placement, Site
from bn_lightning.surgery.planning import plan_insertion

_STAND_IN_ATTRIBUTE = "_bn_lightning_forward"


def insert_batch_norm(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    placement: Placement = "before",
    norm: str | NormFactory = "batch",
    exclude: Iterable[str] = (),
) -> InsertionPlan:
    """Put a batch norm at every nonlinearity of a model where one belongs.

    `plan_insertion` and `apply_plan` in one; see there for sources and rules. A model that already
    carries the norms of an equal plan is left as it is.

    Args:
        model: Any module that runs on the example; it is changed in place.
        args: Positional arguments of one call, a tuple; a batch of two samples or more.
        kwargs: Keyword arguments of the call.
        placement: "before" or "after" the nonlinearity.
        norm: "batch", or a factory that makes a norm for a number of channels.
        exclude: fnmatch patterns of sites to leave as they are.

    Returns:
        The plan that was carried out.

    Raises:
        NoSiteError: If there is no nonlinearity, or every one is skipped.
        PlanMismatchError: If the model carries norms of another plan.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> plan = insert_batch_norm(model, (torch.randn(16, 8),))
        >>> type(model[0].bn_lightning_norm[0]).__name__, model[0].bn_lightning_norm[0].num_features
        ('BatchNorm1d', 4)
    """
    present = own_plan(model)
    if present is not None:
        name = norm if isinstance(norm, str) else CUSTOM_NORM
        excluded = [pattern for pattern in exclude if fnmatch.filter([site.name for site in present.inserted], pattern)]
        if (present.placement, present.norm) != (placement, name) or excluded:
            raise _other_plan(present, ", ".join((name, placement, *(f"without {pattern}" for pattern in excluded))))
        return present
    plan = plan_insertion(model, args, kwargs, placement=placement, norm=norm, exclude=exclude)
    return apply_plan(model, plan, norm=None if isinstance(norm, str) else norm)


def apply_plan(model: nn.Module, plan: InsertionPlan, *, norm: NormFactory | None = None) -> InsertionPlan:
    """Carry a plan out: attach a norm at each of its sites. Needs no data.

    New modules hang under their owner as `<owner>.bn_lightning_norm.<n>`; no original key, type or
    parameter changes. Where a batch norm stands directly behind a layer, that layer's bias is
    cancelled by the subtracted mean (Ioffe & Szegedy 2015, section 3.2), so it is frozen
    (`requires_grad=False`), never zeroed or deleted.

    Args:
        model: The module the plan was made for, or another of the same structure; changed in place.
        plan: The plan.
        norm: The factory that the plan was made with, if it was made with one.

    Returns:
        The plan.

    Raises:
        NoSiteError: If the plan inserts nothing.
        PlanMismatchError: If the model carries another plan or lacks a module that the plan names.
        ValueError: If the plan needs its factory and got none.

    Example:
        >>> import torch
        >>> make = lambda: torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> plan = plan_insertion(make(), (torch.randn(16, 8),))
        >>> fresh = make()
        >>> sorted(set(apply_plan(fresh, plan) and fresh.state_dict()) - set(make().state_dict()))[0]
        '0.bn_lightning_norm.0.bias'
    """
    model = getattr(model, "_orig_mod", model)
    present = own_plan(model)
    if present is not None and present.structure == plan.structure:
        return present
    if present is not None:
        raise _other_plan(present, f"{plan.norm}, {plan.placement}")
    if not plan.inserted:
        reasons = "; ".join(f"{site.name}: {site.reason}" for site in plan.skipped)
        raise NoSiteError(f"The plan inserts no norm. Its sites were skipped: {reasons}. Use plan.override to insist.")
    if plan.norm == CUSTOM_NORM and norm is None:
        raise ValueError("This plan was made with a norm factory; give the same factory again: apply_plan(..., norm=).")
    _check_paths(model, plan)
    try:
        for site in plan.inserted:
            _attach(model, plan, site, norm or plan.norm)
        _wrap_owners(model, plan)
        model.__dict__[PLAN_ATTRIBUTE] = plan
    except BaseException:
        _detach(model)
        raise
    return plan


def remove_batch_norm(model: nn.Module) -> InsertionPlan | None:
    """Take inserted norms back out, with their hooks, and unfreeze the biases that insertion froze.

    Right after insertion this gives back the original keys and outputs to the bit. Trained weights
    are kept, so after training the model computes another function, and a warning says so.

    Args:
        model: The module; changed in place.

    Returns:
        The plan that had been carried out; None (and a NoEffectWarning) where there was none.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> keys = list(model.state_dict())
        >>> plan = insert_batch_norm(model, (torch.randn(16, 8),))
        >>> remove_batch_norm(model) == plan and list(model.state_dict()) == keys
        True
    """
    model = getattr(model, "_orig_mod", model)
    plan = plan_of(model)
    if plan is None:
        warnings.warn(f"{type(model).__name__} carries no inserted norms, so none was removed.", NoEffectWarning, 2)
        return None
    norms = [norm for _, container in containers(model) for norm in container]
    changed = not all(is_untouched(norm) for norm in norms)
    _detach(model)
    if changed:
        warnings.warn(
            f"{len(norms)} trained norms were removed; the model keeps its other weights and now computes another "
            "function than before.",
            InsertionWarning,
            stacklevel=2,
        )
    return plan


def _attach(model: nn.Module, plan: InsertionPlan, site: Site, norm: str | NormFactory) -> None:
    host = model.get_submodule(_host_path(site))
    # A layer is a module or, where its weight is used in a function, that parameter itself.
    near = (value for name, value in model.named_parameters() if f"{name}.".startswith(f"{site.layer}."))
    neighbour = next(near, next(model.parameters(), None))
    made = make_norm(site, norm, neighbour)
    made.train(host.training)
    norms = getattr(host, CHILD_NAME, None)
    if norms is None:
        norms = InsertedNorms()
        host.add_module(CHILD_NAME, norms)
        if site.attach == "producer":
            host.register_forward_hook(producer_hook)
        elif site.attach in ("activation", "shared"):
            host.register_forward_pre_hook(activation_hook)
            host.register_forward_hook(activation_output_hook)
    norms.add(made, site, after=plan.placement == "after")
    if site.attach == "producer" and isinstance(made, _BatchNorm):
        norms.froze_bias = _freeze_bias(model, host)


def _freeze_bias(model: nn.Module, layer: nn.Module) -> bool:
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, nn.Parameter) or not bias.requires_grad:
        return False
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    if holders[id(bias)] > 1:  # tied to another layer, where it still counts
        return False
    bias.requires_grad_(False)
    return True


def _wrap_owners(model: nn.Module, plan: InsertionPlan) -> None:
    """Count calls in every module that calls a function or a shared activation module with a norm."""
    actions: dict[str, dict[str, dict[int, list[Action]]]] = {}
    numbers: Counter[str] = Counter()
    for site in plan.inserted:
        if site.attach not in ("call", "shared"):
            continue
        of_owner = actions.setdefault(site.owner, {})
        if site.attach == "call":
            norms = model.get_submodule(f"{site.owner}.{CHILD_NAME}" if site.owner else CHILD_NAME)
            assert isinstance(norms, InsertedNorms)  # noqa: S101 - put there by _attach
            action = Normalize(norms, numbers[site.owner])
            numbers[site.owner] += 1
            of_owner.setdefault(site.function, {})[site.call_index] = [action]
    for path, of_owner in actions.items():
        owner = model.get_submodule(path)
        planned = Counter(site.function for site in plan.sites if site.owner == path and site.function in of_owner)
        stand_in = OwnerForward(owner, path, of_owner, planned)
        owner.__dict__["forward"] = owner.__dict__[_STAND_IN_ATTRIBUTE] = stand_in
        suspend_in_children(owner)


def _detach(model: nn.Module) -> None:
    for host, norms in containers(model):
        if norms.froze_bias:
            host.get_parameter("bias").requires_grad_(True)
        host.__delattr__(CHILD_NAME)
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [number for number, hook in hooks.items() if hook in OWN_HOOKS]:
                del hooks[number]
                module._forward_hooks_always_called.pop(number, None)
        stand_in = vars(module).pop(_STAND_IN_ATTRIBUTE, None)
        if stand_in is not None:
            stand_in.restore()
    for module in model.modules():
        vars(module).pop(PLAN_ATTRIBUTE, None)


def _host_path(site: Site) -> str:
    if site.attach == "producer":
        return site.layer
    return site.owner if site.attach == "call" else site.activation


def _check_paths(model: nn.Module, plan: InsertionPlan) -> None:
    paths = {module for module, _ in model.named_modules(remove_duplicate=False)}
    missing = sorted({path for site in plan.inserted for path in (_host_path(site), site.owner)} - paths)
    if missing:
        raise PlanMismatchError(
            f"The plan names modules that {type(model).__name__} does not have: {', '.join(missing)}. "
            "Plans fit only models of the structure they were made for; make one with plan_insertion."
        )


def _other_plan(present: InsertionPlan, asked: str) -> PlanMismatchError:
    return PlanMismatchError(
        f"The model already carries norms ({present.norm}, {present.placement}: {len(present.inserted)} sites), and "
        f"others were asked for ({asked}). Take the first out with remove_batch_norm(model)."
    )
