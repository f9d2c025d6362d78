"""The single units that a monitor follows, found by the user's patterns in the layers there are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from bn_lightning.callbacks._activation_monitor.monitored_layers import MonitoredLayers
from bn_lightning.callbacks._activation_monitor.settings import MonitorSettings
from bn_lightning.callbacks._compat import misconfiguration
from bn_lightning.callbacks._units import UnitFollower, Units, resolve_units
from bn_lightning.errors import UnknownNameError
from bn_lightning.surgery.plan import Site

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


def follow_units(
    settings: MonitorSettings,
    trainer: "Trainer",
    module: "LightningModule",
    found: MonitoredLayers,
    labels: Sequence[str],
    before: Mapping[str, Sequence[int]],
    *,
    lenient: bool,
) -> UnitFollower | None:
    """What follows the units that the user named.

    Args:
        settings: Which units, and on which probe set.
        trainer: The Trainer.
        module: Its LightningModule.
        found: The layers there are.
        labels: Their names.
        before: Typical units by name of the layer, where they were chosen earlier.
        lenient: Pass over units that there are not: layers may have gone.

    Returns:
        The follower; None if `lenient` and there is none of the units.

    Raises:
        MisconfigurationException: If the probe would run a training_step that steps optimizers.
        UnknownNameError: If a pattern matches no layer, unless `lenient`.
        ValueError: If a layer has no such unit, unless `lenient`.
    """
    is_stepped = found.entry == "training_step" and not isinstance(settings.probe, Tensor)
    if is_stepped and not module.automatic_optimization:
        raise misconfiguration(
            trainer,
            "ActivationMonitor(units=…) would run a training_step that steps its optimizers itself on the probe "
            "set. Set example_input_array on the LightningModule, so that its forward is run instead.",
        )
    if not found.sites and not lenient:
        raise UnknownNameError(
            f"units={settings.units!r} follows units of nonlinearities, and none was found in "
            f"{type(module).__name__}.{found.entry} whose pre-activation an affine layer makes."
        )
    units = cast(Units, settings.units)  # checked into this form
    chosen = _remaining(units, found.sites) if lenient else resolve_units(units, found.sites)
    if lenient and not chosen:
        return None
    typical = frozenset(index for index, numbers in chosen.items() if not numbers)
    for index in typical:
        chosen[index] = tuple(before.get(labels[index], ()))
    return UnitFollower(chosen, entry=found.entry, percentiles=settings.percentiles, typical=typical)


def _remaining(units: Units, sites: Sequence[Site]) -> dict[int, tuple[int, ...]]:
    chosen: dict[int, tuple[int, ...]] = {}
    for pattern, wanted in units.items():
        try:
            resolved = resolve_units({pattern: wanted}, sites) if sites else {}
        except ValueError:  # no layer matches any more, or what matches has fewer units now
            continue
        for index, numbers in resolved.items():
            chosen[index] = tuple(dict.fromkeys((*chosen.get(index, ()), *numbers)))
    return chosen
