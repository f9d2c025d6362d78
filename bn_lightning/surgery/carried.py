"""Which plan a model carries, as a whole or in its parts."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.plan import InsertionPlan
from bn_lightning.surgery.running.norms import InsertedNorms
from bn_lightning.surgery.tracing.graph import CHILD_NAME

PLAN_ATTRIBUTE = "_bn_lightning_plan"


def plan_of(model: nn.Module) -> InsertionPlan | None:
    """The plan whose norms a model carries, also where they were inserted into its sub-modules one by one.

    Args:
        model: Any module.

    Returns:
        The plan, with paths from `model` on; None where there are no inserted norms.

    Raises:
        PlanMismatchError: If sub-modules carry norms of different kinds or placements.
    """
    plans = {path: vars(module)[PLAN_ATTRIBUTE] for path, module in model.named_modules() if _has_plan(module)}
    if "" in plans:
        return plans[""]
    if not plans:
        return None
    first, *others = plans.values()
    if any(_kind_of(plan) != _kind_of(first) for plan in others):
        raise PlanMismatchError(
            f"The sub-modules {', '.join(plans)} carry norms of different kinds or placements, which one plan cannot "
            "describe. Take them out with remove_batch_norm and insert into the whole model."
        )
    moved = [plan.under(path) for path, plan in plans.items()]
    several = max(plan.num_examples for plan in moved)
    sites = tuple(site for plan in moved for site in plan.sites)
    return replace(moved[0], sites=sites, model=type(model).__name__, num_examples=several)


def _kind_of(plan: InsertionPlan) -> tuple[object, ...]:
    return plan.placement, plan.norm, dict(plan.norm_options), plan.bias


def _has_plan(module: nn.Module) -> bool:
    return PLAN_ATTRIBUTE in vars(module)


def own_plan(model: nn.Module) -> InsertionPlan | None:
    """The plan that was carried out on this very module.

    Args:
        model: Any module.

    Returns:
        The plan; None where there are no inserted norms.

    Raises:
        PlanMismatchError: If only a part of it carries norms, so that a further insertion would go unnoticed.
    """
    own: InsertionPlan | None = vars(model).get(PLAN_ATTRIBUTE)
    carriers = [] if own is not None else list(containers(model))
    if not carriers:
        return own
    parts = [path for path, module in model.named_modules() if _has_plan(module)]
    if parts:
        raise PlanMismatchError(
            f"A part of {type(model).__name__} carries inserted norms already: {', '.join(parts)}. "
            "Take them out with remove_batch_norm(part) and insert into the whole model at once."
        )
    paths = {module: path or "the model itself" for path, module in model.named_modules()}
    raise PlanMismatchError(
        f"{type(model).__name__} shares modules with another model that norms were inserted into: "
        f"{', '.join(paths[module] for module, _ in carriers)}. One module cannot carry the norms of two plans. Use "
        "that model as it is, or take its norms out with remove_batch_norm(other_model) first."
    )


def other_plan(present: InsertionPlan, asked: str) -> PlanMismatchError:
    """The error for a model that carries another plan than the one asked for.

    Args:
        present: The plan it carries.
        asked: What was asked for, in words.

    Returns:
        The error.
    """
    return PlanMismatchError(
        f"The model already carries norms ({present.norm}, {present.placement}: {len(present.inserted)} sites), and "
        f"others were asked for ({asked}). Take the first out with remove_batch_norm(model)."
    )


def containers(model: nn.Module) -> Iterator[tuple[nn.Module, InsertedNorms]]:
    """Every module of `model` that carries inserted norms, with the container that holds them."""
    for module in list(model.modules()):
        norms = module._modules.get(CHILD_NAME)
        if isinstance(norms, InsertedNorms):
            yield module, norms
