"""Which plan a model carries, as a whole or in its parts."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.graph import CHILD_NAME
from bn_lightning.surgery.norms import InsertedNorms
from bn_lightning.surgery.plan import InsertionPlan

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
    if len({(plan.placement, plan.norm) for plan in plans.values()}) > 1:
        raise PlanMismatchError(
            f"The sub-modules {', '.join(plans)} carry norms of different kinds or placements, which one plan cannot "
            "describe. Take them out with remove_batch_norm and insert into the whole model."
        )
    moved = [plan.under(path) for path, plan in plans.items()]
    return replace(moved[0], sites=tuple(site for plan in moved for site in plan.sites))


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
    if own is None and any(True for _ in containers(model)):
        parts = [path for path, module in model.named_modules() if _has_plan(module)]
        raise PlanMismatchError(
            f"A part of {type(model).__name__} carries inserted norms already: {', '.join(parts) or 'a shared layer'}. "
            "Take them out with remove_batch_norm(part) and insert into the whole model at once."
        )
    return own


def containers(model: nn.Module) -> Iterator[tuple[nn.Module, InsertedNorms]]:
    """Every module of `model` that carries inserted norms, with the container that holds them."""
    for module in list(model.modules()):
        norms = getattr(module, CHILD_NAME, None)
        if isinstance(norms, InsertedNorms):
            yield module, norms
