"""Follow single units on a fixed probe set: what one unit's nonlinearity receives, step by step."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bn_lightning.callbacks._compat import misconfiguration
from bn_lightning.callbacks._loader import to_training_device, training_batches
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.functional.quantiles import percentiles
from bn_lightning.probes.sites import matching_layers
from bn_lightning.surgery.forward import call_model, move_to
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.sandbox import sandbox

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer

Units = Mapping[str, Sequence[int] | Literal["typical"]]
LAST = "last"


def resolve_units(units: Units, sites: Sequence[Site]) -> dict[int, tuple[int, ...]]:
    """The units to follow, by position of the site; an empty tuple stands for the typical one.

    Args:
        units: Unit numbers, or "typical", by fnmatch pattern on the layer's path; "last" is the last
            layer, unless one is called so.
        sites: The monitored sites.

    Returns:
        Positions in `sites` and their units.

    Raises:
        UnknownNameError: If a pattern matches no layer.
        ValueError: If a layer has no such unit.
    """
    layers = [site.layer for site in sites]
    chosen: dict[int, tuple[int, ...]] = {}
    for pattern, wanted in units.items():
        if pattern == LAST and LAST not in layers:
            positions = [len(sites) - 1]
        else:
            matched = matching_layers(pattern, layers)
            positions = [position for position, layer in enumerate(layers) if layer in matched]
        for position in positions:
            site = sites[position]
            numbers = () if wanted == "typical" else tuple(int(number) for number in wanted)
            outside = [number for number in numbers if not 0 <= number < site.channels]
            if outside:
                raise ValueError(
                    f"Layer {site.layer!r} has the units 0 to {site.channels - 1}, so units={{{pattern!r}: …}} cannot "
                    f"follow {', '.join(map(str, outside))}."
                )
            chosen[position] = tuple(dict.fromkeys((*chosen.get(position, ()), *numbers)))
    return chosen


def typical_unit(values: Tensor) -> int:
    """The unit whose median is nearest the median of all units' medians; the first of equals.

    Args:
        values: Pre-activations `[n, units]`.

    Returns:
        Its number.

    Example:
        >>> typical_unit(torch.tensor([[-3.0, 0.1, 5.0], [-3.0, 0.3, 5.0]]))
        1
    """
    medians = [percentiles(column, (50,)).item() for column in values.T]
    middle = statistics.median(medians)
    return min(range(len(medians)), key=lambda unit: abs(medians[unit] - middle))


class UnitFollower:
    """Runs the probe set through a module and takes the percentiles of the units chosen.

    Args:
        units: What `resolve_units` returned; typical units are settled at the first probe.
        entry: "forward" or "training_step".
        percentiles: Percentages between 0 and 100.
        typical: Positions at which the typical unit is followed.

    Attributes:
        units: The units by position of the site.
        batches: The probe set, in batches that are run one by one, as in training.
    """

    def __init__(
        self,
        units: dict[int, tuple[int, ...]],
        *,
        entry: str,
        percentiles: Sequence[float],
        typical: frozenset[int] = frozenset(),
    ) -> None:
        self.units = units
        self.typical = typical
        self.batches: list[Any] = []
        self._entry = entry
        self._percentiles = percentiles
        self._received: dict[int, list[Tensor]] | None = None

    def receive(self, layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        """Copy what the units chosen receive, while a probe runs; for hooks."""
        if self._received is None or index not in self.units:
            return
        rows = activation.detach().movedim(channel_dim, -1).flatten(0, -2)
        units = self.units[index]
        # Indexing by a list copies; while the typical unit is not yet known all are needed.
        self._received.setdefault(index, []).append(rows[:, list(units)] if units else rows.clone())

    def probe(self, trainer: "Trainer", module: "LightningModule") -> dict[int, dict[int, list[float]]]:
        """Percentiles of each unit over the probe set, with the module as it is now.

        The module runs in the modes it is in, so during training batch norm uses the probe batch's own
        statistics. Modes, buffers, gradients, metrics and random state come back, and dropout draws
        the same masks every time.

        Args:
            trainer: The Trainer, for its precision.
            module: The LightningModule.

        Returns:
            Percentiles by position of the site and unit.
        """
        self._received = {}
        try:
            with sandbox(module), no_trace(module), torch.no_grad():
                torch.manual_seed(0)
                with trainer.precision_plugin.train_step_context():
                    for batch in self.batches:
                        self._run(module, batch)
            received = {index: torch.cat(parts) for index, parts in self._received.items()}
        finally:
            self._received = None
        return {index: self._of_units(index, values) for index, values in sorted(received.items())}

    def _run(self, module: "LightningModule", batch: Any) -> None:
        if self._entry == "training_step" and not isinstance(batch, Tensor):
            module.training_step(batch, 0)
        else:
            call_model(module, batch)

    def _of_units(self, index: int, values: Tensor) -> dict[int, list[float]]:
        if not self.units[index]:
            unit = typical_unit(values)
            self.units[index] = (unit,)
            values = values[:, [unit]]
        columns = zip(self.units[index], values.T, strict=True)
        return {unit: percentiles(column, self._percentiles).tolist() for unit, column in columns}


def probe_batches(trainer: "Trainer", module: "LightningModule", probe: Any, num_samples: int) -> list[Any]:
    """The probe set as batches on the module's device: the one given, or training data.

    Args:
        trainer: A Trainer whose training is about to start.
        module: Its module.
        probe: One batch, or None for the first training batches.
        num_samples: Take whole training batches until they hold so many samples.

    Returns:
        The batches.

    Raises:
        MisconfigurationException: If training data are needed and cannot be read a second time.
    """
    if probe is not None:
        return [move_to(probe, module.device)]
    batches: list[Any] = []
    samples = 0
    # The user's hooks that make and move batches may count or keep statistics.
    with no_trace(module), sandbox(module):
        # Every batch holds a sample, so this many are enough whatever their size.
        for batch in training_batches(trainer, num_batches=num_samples):
            batches.append(to_training_device(trainer, module, batch))
            tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
            samples += max((len(tensor) for tensor in tensors), default=1)
            if samples >= num_samples:
                break
    if not batches:
        raise misconfiguration(
            trainer, "There is no training batch to probe single units with; give probe=… to the monitor."
        )
    return batches
