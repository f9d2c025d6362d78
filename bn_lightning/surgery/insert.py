"""Plan and carry out in one call."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, Unpack

from torch import nn

from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.carried import other_plan, own_plan
from bn_lightning.surgery.plan import CUSTOM_NORM, BiasChoice, InsertionPlan, NormFactory, Placement, SiteChoice
from bn_lightning.surgery.planning import Example, plan_insertion
from bn_lightning.surgery.selection import Selector


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
        PlanMismatchError: If the model carries norms of another plan.

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
        check_same_choices(present, options)
        return present
    plan = plan_insertion(model, args, kwargs, **options)
    return apply_plan(model, plan, norm=None if isinstance(factory, str) else factory)


def check_same_choices(present: InsertionPlan, options: InsertionOptions) -> None:
    """Refuse choices that a plan which a model carries was not made with.

    Args:
        present: The plan that was carried out.
        options: What is asked for now.

    Raises:
        PlanMismatchError: If they differ in placement, norm, its options or the bias, or exclude a site with a norm.
    """
    norm = options.get("norm", "batch")
    asked = (
        norm if isinstance(norm, str) else CUSTOM_NORM,
        options.get("placement", "before"),
        dict(options.get("norm_options") or {}),
        options.get("bias", "freeze"),
    )
    names = [site.name for site in present.inserted]
    patterns = [pattern for pattern in options.get("exclude", ()) if isinstance(pattern, str)]
    excluded = [pattern for pattern in patterns if fnmatch.filter(names, pattern)]
    carried = (present.norm, present.placement, dict(present.norm_options), present.bias)
    if asked != carried or excluded:
        name, placement, given, bias = asked
        words = [f"{option}={value}" for option, value in given.items()]
        words += [f"bias={bias!r}"] if bias != present.bias else []
        raise other_plan(present, ", ".join((name, placement, *words, *(f"without {pattern}" for pattern in excluded))))
