"""Run examples through a model, and plan where norms go."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from torch import nn

from bn_lightning.errors import NoSiteError, UnknownNameError
from bn_lightning.surgery.plan import (
    CUSTOM_NORM,
    NORMS,
    BiasChoice,
    InsertionPlan,
    NormFactory,
    Placement,
    Site,
    SiteChoice,
)
from bn_lightning.surgery.rules.policy import Policy
from bn_lightning.surgery.running.norm_kinds import check_norm
from bn_lightning.surgery.selection import Selector, select
from bn_lightning.surgery.sites import find_sites
from bn_lightning.surgery.tracing.trace import trace_calls

Example = tuple[tuple[Any, ...], Mapping[str, Any]]


def plan_insertion(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    placement: Placement = "before",
    norm: str | NormFactory = "batch",
    norm_options: Mapping[str, Any] | None = None,
    site: SiteChoice = "nonlinearity",
    include: Iterable[Selector] | None = None,
    exclude: Iterable[Selector] = (),
    inputs: bool = False,
    existing: Iterable[str] = NORMS,
    bias: BiasChoice = "freeze",
    entry: str = "forward",
    more_examples: Iterable[Example] = (),
) -> InsertionPlan:
    """Run an example through a model once and decide for every nonlinearity whether a norm belongs there.

    The model runs in the modes it is in, without gradients; modes, buffers, gradients and random
    state are restored. Nothing is attached: `apply_plan` does that.

    Source: Ioffe & Szegedy 2015, section 3.2 puts the norm on the input of the nonlinearity
    (`placement="before"`); Mishkin et al. 2016 found it better after it in some networks. At a residual
    add the input of the nonlinearity is the sum; He et al. 2016 normalise each branch before the
    sum (`site="affine"`).

    Args:
        model: Any module that runs on the example.
        args: Positional arguments of one call, a tuple; a batch of two samples or more.
        kwargs: Keyword arguments of the call.
        placement: "before" or "after" the nonlinearity.
        norm: "batch", "layer", "group", "instance" or "rms", or a factory that makes a norm for a number of channels.
        norm_options: Arguments of a norm that is named, such as `{"momentum": 0.01, "affine": False}`.
        site: "nonlinearity" for the tensor that the nonlinearity receives, "affine" for the output of each layer
            that reaches it through residual adds.
        include: fnmatch patterns of site names, or module types, that alone get norms; None for all.
        exclude: fnmatch patterns of site names, or module types, that are left as they are.
        inputs: Whether the layers that read the raw inputs get a norm in front of them, in place of normalising
            the data beforehand.
        existing: Norms of the model that count as normalising already: a site behind or in front of one is skipped.
        bias: "freeze" the bias of a layer whose mean the norm subtracts, or "keep" training it.
        entry: Name of the method to call.
        more_examples: Further calls, pairs of args and kwargs, where one does not take every path of the model.

    Returns:
        The plan.

    Raises:
        NoSiteError: If the examples met no nonlinearity, or `inputs` no layer that reads a raw input.
        TypeError: If `args` is not a tuple, or `more_examples` holds something else than pairs.
        UnknownNameError: If a choice, a norm or its option does not exist, or a pattern or type matches no site.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3))
        >>> plan_insertion(model, (torch.randn(4, 3, 8, 8),)).inserted[0].channels
        8
    """
    existing = existing if isinstance(existing, str) else frozenset(existing)
    check_choices(placement, norm, norm_options, site=site, existing=existing, bias=bias)
    model = getattr(model, "_orig_mod", model)
    examples = [(args, kwargs or {}), *map(_example, more_examples)]
    wrong = next((type(given).__name__ for given, _ in examples if not isinstance(given, tuple)), None)
    if wrong is not None:
        raise TypeError(f"args is the tuple of positional arguments, such as (x,); got {wrong}.")
    call = model if entry == "forward" else getattr(model, entry)
    try:
        trace = trace_calls(model, *(partial(call, *given, **named) for given, named in examples))
    except Exception as error:
        error.add_note(
            f"This happened while {type(model).__name__}.{entry} ran on the example, to find its activations."
        )
        raise
    # What a factory makes is not known before it is called; it is taken to be a batch norm of some kind.
    policy = Policy(trace, existing=existing, pools_time=norm == "batch" or callable(norm), placement=placement)
    found = find_sites(trace, policy, placement=placement, site=site, inputs=inputs)
    if not found:
        raise NoSiteError(
            f"No nonlinearity was called when {type(model).__name__}.{entry} ran on the example, so there is no place "
            "for a norm. Check that the example takes the path with the activations in it."
        )
    if inputs and not any(candidate.attach == "input" for candidate in found):
        raise NoSiteError(
            f"inputs=True asks for a norm on the raw inputs, and no layer of {type(model).__name__} reads a floating-"
            "point input directly, through reshaping at most. Leave it out."
        )
    sites = select(model, tuple(_possible(candidate, norm) for candidate in found), include=include, exclude=exclude)
    name = norm if isinstance(norm, str) else CUSTOM_NORM
    options, count = dict(norm_options or {}), len(examples)
    return InsertionPlan(placement, name, entry, sites, options, bias, type(model).__name__, count)


def check_choices(
    placement: str,
    norm: str | NormFactory,
    norm_options: Mapping[str, Any] | None = None,
    *,
    site: str = "nonlinearity",
    existing: Iterable[str] = NORMS,
    bias: str = "freeze",
) -> None:
    """Refuse choices that do not exist, before anything is run.

    Args:
        placement: "before" or "after".
        norm: Name of a norm, or a factory.
        norm_options: Arguments of the norm.
        site: "nonlinearity" or "affine".
        existing: Names of norms.
        bias: "freeze" or "keep".

    Raises:
        UnknownNameError: If there is no such placement, norm, option of the norm, site or treatment of the bias.
    """
    if placement not in get_args(Placement):
        raise UnknownNameError(f"placement is 'before' or 'after' the nonlinearity, not {placement!r}.")
    if site not in get_args(SiteChoice):
        raise UnknownNameError(f"site is 'nonlinearity' or 'affine', not {site!r}.")
    if bias not in get_args(BiasChoice):
        raise UnknownNameError(f"bias is 'freeze' or 'keep', not {bias!r}.")
    if placement == "after" and site == "affine":
        raise UnknownNameError(
            "site='affine' puts norms on layers, before the nonlinearity; placement='after' has none."
        )
    unknown = sorted(set(existing) - set(NORMS))
    if unknown:
        raise UnknownNameError(f"existing names norms among {', '.join(NORMS)}, not {', '.join(map(repr, unknown))}.")
    check_norm(norm, norm_options)


def _example(given: Any) -> Example:
    """One of the further examples, whose keyword arguments may be left None."""
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[1], Mapping | None):
        raise TypeError(
            "more_examples holds pairs of args and kwargs, such as [((x,), {})]; got "
            f"{type(given).__name__} among them."
        )
    return given[0], given[1] or {}


def _possible(candidate: Site, norm: str | NormFactory) -> Site:
    if norm == "instance" and len(candidate.shape) < 3 and candidate.decision == "insert":
        return replace(candidate, decision="skip", reason="an instance norm needs axes of space or time")
    return candidate
