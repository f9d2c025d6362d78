"""Whether a plan fits a model: its class, the modules it names, the channels of its layers."""

from torch import nn

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.plan import InsertionPlan, Site
from bn_lightning.surgery.tracing.ops import NONLINEARITIES

_SIZES = {"producer": ("out_features", "out_channels"), "input": ("in_features", "in_channels")}


def host_path(site: Site) -> str:
    """Path of the module under which the norm of a site hangs.

    Args:
        site: The site.

    Returns:
        The path; empty for the model itself.
    """
    if site.attach in ("producer", "input"):
        return site.layer
    return site.owner if site.attach == "call" else site.activation


def check_match(model: nn.Module, plan: InsertionPlan) -> None:
    """Refuse a plan that was made for a model of another class or structure.

    Args:
        model: The model.
        plan: The plan.

    Raises:
        PlanMismatchError: If the class differs (subclasses fit), a module is missing, a function is not known, or a
            layer that hands its output to a norm, or reads a norm's, has another number of channels.
    """
    name = type(model).__name__
    if plan.model and plan.model not in {kind.__name__ for kind in type(model).__mro__}:
        raise PlanMismatchError(
            f"The plan was made for {plan.model}, and this model is {name}. Make one with plan_insertion; if the "
            f"class was only renamed, change the plan: dataclasses.replace(plan, model={name!r})."
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = sorted({path for site in plan.inserted for path in (host_path(site), site.owner)} - modules.keys())
    if missing:
        raise PlanMismatchError(
            f"The plan names modules that {name} does not have: {', '.join(missing)}. "
            "Plans fit only models of the structure they were made for; make one with plan_insertion."
        )
    unknown = sorted({site.function for site in plan.inserted if site.attach == "call"} - NONLINEARITIES.keys())
    if unknown:
        raise PlanMismatchError(
            f"The plan puts norms on calls of {', '.join(unknown)}, which this release or its torch does not know as "
            "nonlinearities. Make a plan with plan_insertion."
        )
    for site in plan.inserted:
        found = _channels(modules.get(site.layer), site)
        if found is not None and found != site.channels:
            raise PlanMismatchError(
                f"The plan has {site.channels} channels at {site.name!r}, and the layer {site.layer!r} of this {name} "
                f"has {found}. Make a plan for this model with plan_insertion."
            )


def _channels(layer: nn.Module | None, site: Site) -> int | None:
    """What a layer says of its channels; None where nothing is said, or the site's may well differ."""
    for name in _SIZES.get(site.attach, ()):
        size = getattr(layer, name, None)
        if isinstance(size, int):
            return size
    return None
