"""Plan and carry out in one call."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, Unpack

from torch import nn

from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.carried import other_plan, own_plan
from bn_lightning.surgery.plan import CUSTOM_NORM, BiasChoice, InsertionPlan, NormFactory, Placement, Site, SiteChoice
from bn_lightning.surgery.planning import Example, check_choices, plan_insertion
from bn_lightning.surgery.selection import Selector, matches


class InsertionOptions(TypedDict, total=False):
    """The options of `plan_insertion`, which explains them."""

    placement: Placement
    norm: str | NormFactory
    norm_options: Mapping[str, Any] | None
    site: SiteChoice
    include: Iterable[Selector] | None
    exclude: Iterable[Selector]
    inputs: bool
    existing: Iterable[str]
    bias: BiasChoice
    more_examples: Iterable[Example]


def insert_batch_norm(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[InsertionOptions],
) -> InsertionPlan:
    """Put a batch norm at every nonlinearity of a model where one belongs.

    `plan_insertion` and `apply_plan` in one; see there for sources and rules. A model that already
    carries the norms of an equal plan is left as it is.

    Args:
        model: Any module that runs on the example; it is changed in place.
        args: Positional arguments of one call, a tuple; a batch of two samples or more.
        kwargs: Keyword arguments of the call.
        **options: Those of `plan_insertion`: placement, norm, norm_options, site, include, exclude, inputs, existing,
            bias and more_examples.

    Returns:
        The plan that was carried out.

    Raises:
        NoSiteError: If there is no nonlinearity, or every one is skipped.
        PlanMismatchError: If the model carries norms of another plan, or of other choices (see `check_same_choices`).

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> plan = insert_batch_norm(model, (torch.randn(16, 8),))
        >>> type(model[0].bn_lightning_norm[0]).__name__, model[0].bn_lightning_norm[0].num_features
        ('BatchNorm1d', 4)
    """
    factory = options.get("norm", "batch")
    present = own_plan(model)
    if present is not None:
        inspect.signature(plan_insertion).bind(model, args, kwargs, **options)
        check_same_choices(model, present, options)
        return present
    plan = plan_insertion(model, args, kwargs, **options)
    return apply_plan(model, plan, norm=None if isinstance(factory, str) else factory)


def check_same_choices(model: nn.Module, present: InsertionPlan, options: InsertionOptions) -> None:
    """Refuse choices that a plan which a model carries was not made with, as far as the plan shows.

    What `existing` and `more_examples` were, and whether `site="affine"` would find branches where the plan has
    none, can only be told by a trace of the model without its norms.

    Args:
        model: The model.
        present: The plan that was carried out on it.
        options: What is asked for now.

    Raises:
        PlanMismatchError: If they differ in placement, norm, its options, the bias, the norms on inputs or on branches,
            or leave out a site with a norm.
        NormOptionError: As for `plan_insertion`.
        UnknownNameError: As for `plan_insertion`.
    """
    norm, placement = options.get("norm", "batch"), options.get("placement", "before")
    given, bias = dict(options.get("norm_options") or {}), options.get("bias", "freeze")
    site, inputs = options.get("site", "nonlinearity"), options.get("inputs", False)
    check_choices(placement, norm, given, site=site, bias=bias)
    name = norm if isinstance(norm, str) else CUSTOM_NORM
    words = [name, placement, *(f"{option}={value}" for option, value in given.items())]
    differing = []
    if bias != present.bias:
        differing.append(f"bias={bias!r}")
    if inputs != any(found.attach == "input" for found in present.sites):
        differing.append(f"inputs={inputs}")
    if site == "nonlinearity" and any(map(_on_branch, present.sites)):
        differing.append(f"site={site!r}")
    for option, selectors in (("include", options.get("include")), ("exclude", options.get("exclude", ()))):
        if selectors is not None:
            chosen = tuple(selectors)
            wrong = [
                found.name
                for found in present.inserted
                if any(matches(model, found, selector) for selector in chosen) == (option == "exclude")
            ]
            differing += [f"without {', '.join(wrong)} ({option})"] if wrong else []
    if (name, placement, given) != (present.norm, present.placement, dict(present.norm_options)) or differing:
        raise other_plan(present, ", ".join((*words, *differing)))


def _on_branch(site: Site) -> bool:
    """Whether a site is a branch of a sum; those of nonlinearities name the function or module called."""
    return site.attach == "producer" and not site.function and not site.activation
