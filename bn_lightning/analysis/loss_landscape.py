"""Measure the loss around the initial weights, around the solution and between them, and its curvature there."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from bn_lightning.analysis.landscape_points import point_quantities
from bn_lightning.callbacks._compat import rank_zero_warn
from bn_lightning.callbacks._probe_monitor import ProbeMonitor
from bn_lightning.errors import StatisticsWarning
from bn_lightning.probes.curvature import hessian_eigenvalues
from bn_lightning.probes.curvature_directions import direction_between, random_direction
from bn_lightning.probes.curvature_hessian import NormMode
from bn_lightning.probes.curvature_surface import Surface, loss_surface
from bn_lightning.probes.objective import trainable_parameters
from bn_lightning.schedule import Schedule

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer

PLATEAU = 0.1  # of the gradient's norm at the initial weights, and of the largest on the plane


class LossLandscape(ProbeMonitor):
    """Measures lines and planes at the start and at the end of a training, and curvature at the end.

    Directions are random and filter-normalised, 1 being as long as each filter. Recorded, for the whole model:

    ==========================================  ================================================================
    `loss_on_<surface>_<mode>(<a>[,<b>])`       the loss at a point, see `SURFACES`; <mode> is that of the norms
    `plateau_share_start`, `_end`               share of the plane's points where ‖g‖₂ is below a tenth of that
                                                at the run's own initial weights; norms in training mode
    `own_plateau_share_start`, `_end`           the same below a tenth of the plane's own largest ‖g‖₂, a scale
                                                that a flat start does not spoil
    `hessian_eigenvalue_1_train`, `_eval`       largest eigenvalue of the Hessian at the end, loss per squared
                                                parameter unit
    ==========================================  ================================================================

    In evaluation mode, which only models with batch norm have, the line around the solution and the eigenvalue are
    measured: at the start running statistics mean nothing, and on the way they are those of neither end. Put it behind
    callbacks that recalibrate at the end. Training is the same to the bit with it and without.

    Source: Li et al. 2018 (directions); Im et al. 2016, "An empirical analysis of the optimization of deep network loss
    surfaces" (surfaces at several stages, plateaus).

    Args:
        side: Points along each side of a plane, an odd number, so that the centre is one; lines have two to three
            times as many.
        probe_size: Samples of the training data, in whole batches.

    Raises:
        ValueError: If the number of points is even or below 3.

    Warns:
        StatisticsWarning: If an eigenvalue cannot be computed.
    """

    def __init__(self, *, side: int, probe_size: int) -> None:
        if side < 3 or side % 2 == 0:
            raise ValueError(f"A plane has an odd number of points a side, 3 or more, not {side}.")
        self.side = side
        super().__init__(
            "loss_landscape",
            Schedule(every_n_steps=0, steps=(0,)),
            loss_fn=None,
            probe=None,
            probe_size=probe_size,
            warn=True,
            figures=False,
            name="",
        )

    def _begin(self, name: str) -> None:
        super()._begin(name)
        self._batches: list[Any] = []
        self._initial: dict[str, Tensor] = {}
        self._reference = math.nan

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Collect the probe set, and measure around the initial weights."""
        self._batches = self._probe_batches(trainer, pl_module)
        # Of all: what is frozen now may be set free in the middle.
        self._initial = {name: part.detach().clone() for name, part in pl_module.named_parameters()}
        with self._guarded(trainer, pl_module):
            plane = self._around(pl_module, "start", 0, ("train",))
        assert plane.gradient_norms is not None  # noqa: S101 - they were asked for
        self._reference = float(plane.gradient_norms[self.side // 2, self.side // 2])
        self._add_plateau("start", 0, plane)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Measure around the solution and on the way there, and write the file."""
        step = trainer.global_step
        has_norms = any(isinstance(part, _NormBase) for part in pl_module.modules())
        modes: tuple[NormMode, ...] = ("train", "eval") if has_norms else ("train",)
        with self._guarded(trainer, pl_module):
            self._add_plateau("end", step, self._around(pl_module, "end", step, modes))
            trained = trainable_parameters(pl_module)
            initial = {name: self._initial[name] for name in trained}
            way = direction_between(initial, trained)
            # Sixths of the range, so that both ends of the way are among the points.
            multiples = np.linspace(-0.25, 1.25, 3 * self.side - 2).tolist()
            options: dict[str, Any] = {"origin": initial, "norm_mode": "train"}
            self._points("way", "train", step, loss_surface(pl_module, self._batches, [way], [multiples], **options))
            self._table.add(
                step, "", {f"hessian_eigenvalue_1_{mode}": self._eigenvalue(pl_module, mode) for mode in modes}
            )
        super().on_train_end(trainer, pl_module)

    def _around(self, module: Any, stage: str, step: int, modes: Sequence[NormMode]) -> Surface:
        first, second = (random_direction(module, seed=seed) for seed in (0, 1))
        sides = np.linspace(-1, 1, self.side).tolist()
        for mode in modes:
            multiples = np.linspace(-1, 1, 2 * self.side - 1).tolist()
            line = loss_surface(module, self._batches, [first], [multiples], norm_mode=mode)
            self._points(f"{stage}_line", mode, step, line)
        plane = loss_surface(module, self._batches, (first, second), (sides, sides), gradients=True, norm_mode="train")
        self._points(f"{stage}_plane", "train", step, plane)
        return plane

    def _points(self, surface: str, mode: str, step: int, found: Surface) -> None:
        self._table.add(step, "", dict(point_quantities(surface, mode, found.coordinates, found.losses)))

    def _add_plateau(self, stage: str, step: int, plane: Surface) -> None:
        usable = math.isfinite(self._reference) and self._reference > 0
        share = plane.plateau_share(PLATEAU, self._reference) if usable else math.nan
        shares = {f"plateau_share_{stage}": share, f"own_plateau_share_{stage}": plane.plateau_share(PLATEAU)}
        self._table.add(step, "", shares)

    def _eigenvalue(self, module: Any, mode: NormMode) -> float:
        try:
            return hessian_eigenvalues(module, self._batches, norm_mode=mode, tolerance=1e-3).eigenvalues[0]
        except RuntimeError as error:
            rank_zero_warn(
                f"The largest eigenvalue of the Hessian, norms in {mode} mode, is left out as NaN: {error}",
                category=StatisticsWarning,
            )
            return math.nan

    def _release(self) -> None:
        self._batches = []
        self._initial = {}
