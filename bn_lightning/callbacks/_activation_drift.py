"""How far activations have drifted since training began, also in a run that is resumed."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bn_lightning.callbacks._compat import rank_zero_warn
from bn_lightning.errors import StatisticsWarning
from bn_lightning.functional.covariate_shift import activation_shift
from bn_lightning.functional.sampling import spread_rows
from bn_lightning.probes.covariate_shift_activations import Activations, PreactivationShift

# A start of 3,000 units takes 12 MB of every checkpoint; all values of its probe set would take hundreds.
MAX_VALUES = 1024


class ActivationDrift:
    """Keeps what each nonlinearity received when training began, and compares it with later activations.

    Up to 1,024 values a unit are kept, spread evenly over the probe set, the same ones at every step. A run that is
    resumed on the same probe set goes on from the start of the run before.

    Args:
        batches: The probe set.
        start: What the nonlinearities receive of it now.
        resumed: What `state_dict` returned in the run that is resumed; empty for a new one.

    Example:
        >>> x = torch.randn(100, 3)
        >>> drift = ActivationDrift([x], {"net.0": x})
        >>> again = ActivationDrift([x], {"net.0": x + 2}, drift.state_dict())
        >>> round(again.shift({"net.0": x + 3}).layers["net.0"].wasserstein.mean().item(), 5)
        3.0
    """

    def __init__(self, batches: Sequence[Any], start: Activations, resumed: Mapping[str, Any] | None = None) -> None:
        self._probe = _fingerprint(batches)
        self._start = {layer: _thinned(values) for layer, values in start.items()}
        if not resumed:
            return
        earlier: Mapping[str, Tensor] = resumed["start"]
        shapes = [{layer: values.shape for layer, values in part.items()} for part in (self._start, earlier)]
        if resumed["probe"] == self._probe and shapes[0] == shapes[1]:
            self._start = {layer: values.cpu() for layer, values in earlier.items()}
        else:
            rank_zero_warn(
                "activation_drift is measured from the step of resuming on, not from the start of the first run: the "
                "probe set is another than in the run that is resumed. Give CovariateShiftMonitor(probe=…) a fixed "
                "batch, so that drift goes on.",
                category=StatisticsWarning,
            )

    def shift(self, now: Activations) -> PreactivationShift:
        """Compare the start with activations of the same probe set.

        Args:
            now: The later activations.

        Returns:
            Distances by layer, of the layers in both.
        """
        return PreactivationShift(
            {
                layer: activation_shift(start, _thinned(now[layer]))
                for layer, start in self._start.items()
                if layer in now
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """The start, and which probe set it is of.

        Returns:
            Tensors and strings only.
        """
        return {"probe": self._probe, "start": dict(self._start)}


def _thinned(values: Tensor) -> Tensor:
    return values[spread_rows(len(values), MAX_VALUES)]


def _fingerprint(batches: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in tree_leaves(list(batches)):
        if isinstance(leaf, Tensor):
            digest.update(f"{tuple(leaf.shape)}{leaf.dtype}".encode())
            digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(leaf, str | int | float):
            # Other objects may have a repr with an address, which no two runs share.
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
