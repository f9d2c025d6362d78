"""Decide for every batch norm of a model where it can go, with an example."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.surgery.carried import PLAN_ATTRIBUTE, containers
from bn_lightning.surgery.folding.fold_frozen import takes_input_as_it_comes
from bn_lightning.surgery.folding.fold_layers import norm_obstacle
from bn_lightning.surgery.folding.fold_neighbours import Neighbours
from bn_lightning.surgery.folding.fold_plan import Fold, FoldingPlan, KeptNorm
from bn_lightning.surgery.folding.fold_verify import cloned, tensors_of
from bn_lightning.surgery.plan import InsertionPlan, Site
from bn_lightning.surgery.plan_match import host_path
from bn_lightning.surgery.sandbox import preserve_modes
from bn_lightning.surgery.tracing.graph import CHILD_NAME
from bn_lightning.surgery.tracing.trace import trace_calls


def plan_folding(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> FoldingPlan:
    """Run an example through a model in evaluation mode and decide where each batch norm can go.

    A norm goes into the layers that feed it where each of these feeds nothing else, else into the
    layers that it feeds where each of these is fed by nothing else. Operations that commute with a
    scale and a shift per channel may stand between: reshaping, dropout, pooling by averages without
    padding, and pooling by maxima where no scale is negative.

    Source: Ioffe & Szegedy (2015), Algorithm 2, line 11.

    Args:
        model: Any module that runs on the example; left as it is.
        args: Positional arguments of one call, a tuple.
        kwargs: Keyword arguments of the call.

    Returns:
        The plan; its `table` has a row for each norm.

    Raises:
        TypeError: If `args` is not a tuple.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
        >>> plan = plan_folding(model, (torch.randn(2, 3),))
        >>> [(fold.norm, fold.into) for fold in plan.folds], [norm.norm for norm in plan.kept]
        ([('1', ('0',))], ['3'])
    """
    if not isinstance(args, tuple):
        raise TypeError(f"args is the tuple of positional arguments, such as (x,); got {type(args).__name__}.")
    model = getattr(model, "_orig_mod", model)
    with preserve_modes(model):
        model.eval()
        return _plan(model, args, kwargs or {})


def _plan(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FoldingPlan:
    def run() -> Any:
        # A clone is no operation of the model's.
        with torch._C.DisableTorchFunction():
            own_args, own_kwargs = cloned(args, kwargs)
        return tensors_of(model(*own_args, **own_kwargs))

    neighbours = Neighbours(model, trace_calls(model, run), run)
    inserted = {id(norm) for _, norms in containers(model) for norm in norms}
    paths = [path for path, norm in model.named_modules() if isinstance(norm, _BatchNorm) or id(norm) in inserted]
    paths.sort(key=neighbours.first_call)
    reasons = {path: f"it {reason}" for path in paths if (reason := neighbours.obstacle(path))}
    movable = [path for path in paths if path not in reasons]
    folds: list[Fold] = []
    for path in movable:
        found = neighbours.preceding(path)
        if isinstance(found, Fold):
            folds.append(found)
        else:
            reasons[path] = found
    # The last first, as a norm may be fed by another one that goes into the same layer.
    for path in reversed(movable):
        if path in reasons:
            found = neighbours.following(path)
            if isinstance(found, Fold):
                folds.append(found)
                del reasons[path]
            else:
                reasons[path] += f"; {found}"
    sites = _sites(model)
    kept = tuple(
        _kept(model, path, reasons[path], *sites.get(path, (None, False))) for path in paths if path in reasons
    )
    return FoldingPlan(tuple(folds), kept)


def _sites(model: nn.Module) -> dict[str, tuple[Site, bool]]:
    """For every inserted norm, by its path, its site and whether it acts on the output of the nonlinearity."""
    found: dict[str, tuple[Site, bool]] = {}
    for path, module in model.named_modules():
        plan = vars(module).get(PLAN_ATTRIBUTE)
        if isinstance(plan, InsertionPlan):
            numbers: Counter[str] = Counter()
            for site in (plan.under(path) if path else plan).inserted:
                host = f"{host_path(site)}.{CHILD_NAME}".removeprefix(".")
                found[f"{host}.{numbers[host]}"] = (site, plan.placement == "after")
                numbers[host] += 1
    return found


def _kept(model: nn.Module, path: str, reason: str, site: Site | None, after: bool) -> KeptNorm:
    if site is None:
        return KeptNorm(path, reason)
    # One that is handed its input rearranged can only stand there as a fixed scale and shift.
    if norm_obstacle(model.get_submodule(path)) and not takes_input_as_it_comes(model, path, site):
        return KeptNorm(path, reason, "none", site, after)
    return KeptNorm(path, reason, "graph" if site.attach in ("call", "shared") else "beside", site, after)
