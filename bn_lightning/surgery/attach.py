"""Carry an insertion plan out on a model, and take it back."""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bn_lightning.errors import InsertionWarning, NoEffectWarning, NormOptionError, NoSiteError
from bn_lightning.surgery.carried import PLAN_ATTRIBUTE, containers, other_plan, own_plan, plan_of
from bn_lightning.surgery.plan import CUSTOM_NORM, InsertionPlan, NormFactory, Site
from bn_lightning.surgery.plan_match import check_match, host_path
from bn_lightning.surgery.running.expected_calls import ExpectedCalls
from bn_lightning.surgery.running.frames import Action, suspend_in_children
from bn_lightning.surgery.running.hooks import (
    OWN_HOOKS,
    Normalize,
    activation_hook,
    activation_output_hook,
    input_hook,
    producer_hook,
)
from bn_lightning.surgery.running.norm_modules import cancels_bias, is_untouched, make_norm
from bn_lightning.surgery.running.norms import InsertedNorms
from bn_lightning.surgery.running.owner_forward import OwnerForward
from bn_lightning.surgery.running.replicas import REPLICATE_ATTRIBUTE, Replicate
from bn_lightning.surgery.running.symbolic_tracing import STAND_IN_ATTRIBUTE
from bn_lightning.surgery.statistics.identity_norms import is_identity
from bn_lightning.surgery.tracing.graph import CHILD_NAME


def apply_plan(model: nn.Module, plan: InsertionPlan, *, norm: NormFactory | None = None) -> InsertionPlan:
    """Carry a plan out: attach a norm at each of its sites. Needs no data.

    New modules hang under their owner as `<owner>.bn_lightning_norm.<n>`; no original key, type or
    parameter changes. Where a norm that subtracts a mean of each channel (batch, instance) stands directly behind
    a layer, that layer's bias is cancelled (Ioffe & Szegedy 2015, section 3.2), so it is frozen
    (`requires_grad=False`) unless the plan keeps it (`bias="keep"`), never zeroed or deleted.

    The model goes on to work with deepcopy, pickle, `torch.compile`, `torch.export`, `nn.DataParallel` and
    SyncBatchNorm conversion. Gradient checkpointing moves running statistics once a step. `torch.fx.symbolic_trace`
    is refused where norms act on calls within the forward that it traces.

    Args:
        model: The module the plan was made for, or another of the same structure; changed in place.
        plan: The plan.
        norm: The factory that the plan was made with, if it was made with one.

    Returns:
        The plan.

    Raises:
        NoSiteError: If the plan inserts nothing.
        PlanMismatchError: If the model carries another plan, is of another class than the plan's, lacks a module that
            the plan names or has other channels there.
        NormOptionError: If a site has nothing that the norm could reduce, or too few channels for its groups, or the
            factory makes no module or one for several sites.
        ValueError: If the plan needs its factory and got none.

    Example:
        >>> import torch
        >>> from bn_lightning.surgery.planning import plan_insertion
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
        raise other_plan(present, f"{plan.norm}, {plan.placement}")
    if not plan.inserted:
        raise NoSiteError(
            f"The plan inserts no norm. Its sites were skipped: {plan.why_skipped}. Use plan.override to insist."
        )
    if plan.norm == CUSTOM_NORM and norm is None:
        raise ValueError("This plan was made with a norm factory; give the same factory again: apply_plan(..., norm=).")
    check_match(model, plan)
    numbers: dict[str, int] = {}
    try:
        # Counted once: a look through all parameters at each site would make insertion quadratic in the depth.
        holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        for site in plan.inserted:
            numbers[site.name] = _attach(model, plan, site, norm or plan.norm, holders)
        _check_distinct(model)
        _wrap_owners(model, plan, numbers)
        model.__dict__[PLAN_ATTRIBUTE] = plan
    except BaseException:
        detach(model)
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
        >>> from bn_lightning.surgery.insert import insert_batch_norm
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> keys = list(model.state_dict())
        >>> plan = insert_batch_norm(model, (torch.randn(16, 8),))
        >>> remove_batch_norm(model) == plan and list(model.state_dict()) == keys
        True
    """
    model = getattr(model, "_orig_mod", model)
    plan = plan_of(model)
    if plan is None:
        partial = any(True for _ in containers(model))
        found = (
            "is a part of a model that norms were inserted into as a whole; take them out of that one"
            if partial
            else "carries no inserted norms"
        )
        warnings.warn(f"{type(model).__name__} {found}, so none was removed.", NoEffectWarning, stacklevel=2)
        return None
    norms = [norm for _, container in containers(model) for norm in container]
    changed = not all(is_untouched(norm) or is_identity(norm) for norm in norms)
    detach(model)
    if changed:
        warnings.warn(
            f"{len(norms)} trained norms were removed; the model keeps its other weights and now computes another "
            "function than before.",
            InsertionWarning,
            stacklevel=2,
        )
    return plan


def _attach(
    model: nn.Module, plan: InsertionPlan, site: Site, norm: str | NormFactory, holders: Mapping[int, int]
) -> int:
    """Hang the norm of a site under its host, with the hooks that the host needs; the norm's number there."""
    host = model.get_submodule(host_path(site))
    made = make_norm(site, norm, _neighbour(model, site.layer), plan.norm_options)
    made.train(host.training)
    # Its own child: a wrapper that hands attributes on would answer with the norms of what it wraps.
    norms: Any = host._modules.get(CHILD_NAME)
    if norms is None:
        norms = InsertedNorms()
        host._modules[CHILD_NAME] = norms  # add_module takes such an answer for a name that is in use
    if site.attach == "producer":
        host.register_forward_hook(producer_hook)
    elif site.attach == "input":
        host.register_forward_pre_hook(input_hook, with_kwargs=True)
    elif site.attach in ("activation", "shared") and not len(norms):
        host.register_forward_pre_hook(activation_hook)
        host.register_forward_hook(activation_output_hook)
    if site.attach == "producer" and plan.bias == "freeze" and cancels_bias(made):
        norms.froze_bias = _freeze_bias(host, holders)
    return norms.add(made, site, after=plan.placement == "after", kind=plan.norm)


def _check_distinct(model: nn.Module) -> None:
    site_of: dict[nn.Module, str] = {}
    for _, norms in containers(model):
        for slot, norm in zip(norms.slots, norms, strict=True):
            first = site_of.setdefault(norm, slot.site)
            if first != slot.site:
                raise NormOptionError(
                    f"The norm factory gave the sites {first!r} and {slot.site!r} the same {type(norm).__name__}, "
                    "which would mix their statistics; let it make a new one at each call."
                )


def _neighbour(model: nn.Module, layer: str) -> Tensor | None:
    """A parameter of a layer, which is a module or, where its weight is used in a function, that parameter itself."""
    holder, _, name = layer.rpartition(".")
    found = getattr(model.get_submodule(holder), name, None) if layer else None
    own = found.parameters() if isinstance(found, nn.Module) else iter([found] if isinstance(found, Tensor) else [])
    return next(own, next(model.parameters(), None))


def _freeze_bias(layer: nn.Module, holders: Mapping[int, int]) -> bool:
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, nn.Parameter) or not bias.requires_grad:
        return False
    if holders[id(bias)] > 1:  # tied to another layer, where it still counts
        return False
    bias.requires_grad_(False)
    return True


def _wrap_owners(model: nn.Module, plan: InsertionPlan, numbers: Mapping[str, int]) -> None:
    """Count calls in every module that calls a function or a shared activation module with a norm."""
    actions: dict[str, dict[str, dict[int, list[Action]]]] = {}
    for site in plan.inserted:
        if site.attach not in ("call", "shared"):
            continue
        of_owner = actions.setdefault(site.owner, {})
        if site.attach == "call":
            owner = model.get_submodule(site.owner)
            action = Normalize(owner, numbers[site.name], behind=plan.placement == "after")
            of_owner.setdefault(site.function, {})[site.call_index] = [action]
    for path, of_owner in actions.items():
        owner = model.get_submodule(path)
        expected = ExpectedCalls.of(path, plan.sites, at_most=plan.num_examples > 1)
        stand_in = OwnerForward(owner, path, of_owner, expected)
        owner.__dict__["forward"] = owner.__dict__[STAND_IN_ATTRIBUTE] = stand_in
        owner.__dict__[REPLICATE_ATTRIBUTE] = Replicate(owner)
        suspend_in_children(owner)


def detach(model: nn.Module) -> None:
    """Take inserted norms out without a word, with all that was put on the model for them.

    Args:
        model: The module; changed in place.
    """
    for host, norms in containers(model):
        if norms.froze_bias:
            host.get_parameter("bias").requires_grad_(True)
        host.__delattr__(CHILD_NAME)
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [number for number, hook in hooks.items() if hook in OWN_HOOKS]:
                del hooks[number]
                module._forward_hooks_always_called.pop(number, None)
                module._forward_pre_hooks_with_kwargs.pop(number, None)
        vars(module).pop(REPLICATE_ATTRIBUTE, None)
        stand_in = vars(module).pop(STAND_IN_ATTRIBUTE, None)
        if stand_in is not None:
            stand_in.restore()
    for module in model.modules():
        vars(module).pop(PLAN_ATTRIBUTE, None)
