"""What `bn-lightning measure` can measure of a module: each kind a function from the module to rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bn_lightning.analysis.measure_rows import MeasureRows
from bn_lightning.callbacks._example import Example, run_like
from bn_lightning.errors import NoSiteError
from bn_lightning.probes.covariate_shift import gradient_covariate_shift
from bn_lightning.probes.covariate_shift_activations import ActivationProbe
from bn_lightning.probes.curvature import hessian_eigenvalues, hessian_trace
from bn_lightning.probes.curvature_directions import direction_between, random_direction
from bn_lightning.probes.curvature_hessian import NormMode, norms_in
from bn_lightning.probes.curvature_surface import loss_surface
from bn_lightning.probes.loss_smoothness import loss_smoothness
from bn_lightning.probes.objective import LossFn, Objective
from bn_lightning.surgery.planning import plan_insertion

Kind = Literal["curvature", "smoothness", "surface", "shift", "interpolation"]


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure.

    Attributes:
        loss_fn: ``loss_fn(module, batch)``; None for the module's ``training_step``.
        step_sizes: Along the gradient, in absolute terms, ascending; empty if smoothness is not measured.
        num_eigenvalues: Of the Hessian.
        points: Of each line, and along each side of the surface.
        radius: How far random directions are followed, 1 being as far as the weights are long.
        plateau_fraction: The share of points whose gradient is below this fraction of the largest is written; it
            needs a backward a point. None for no gradients.

    Raises:
        ValueError: If the fraction is not between 0 and 1.
    """

    loss_fn: LossFn | None = None
    step_sizes: Sequence[float] = ()
    num_eigenvalues: int = 3
    points: int = 15
    radius: float = 1.0
    plateau_fraction: float | None = None

    def __post_init__(self) -> None:
        # Here, so that a surface of minutes is not computed first.
        if self.plateau_fraction is not None and not 0 < self.plateau_fraction < 1:
            raise ValueError(
                f"A plateau is below a fraction between 0 and 1 of the largest gradient (--plateau-fraction), got "
                f"{self.plateau_fraction}."
            )


@dataclass
class Measured:
    """A module at a checkpoint, and what it is measured with.

    Attributes:
        module: The module, on its device, in the modes of training.
        batches: The probe set.
        example: A call to find nonlinearities with.
        options: How to measure.
        other: State of another checkpoint of the same module, for shift and interpolation.
        rows: Where numbers go.
        advance: Called after each unit of work, as many as `units` says.
        loss: Mean loss over the probe set, norms in training mode.
        gradient: Its gradient.
    """

    module: Any
    batches: list[Any]
    example: Example
    options: MeasureOptions
    other: Mapping[str, Tensor] | None
    rows: MeasureRows
    advance: Callable[[], None] = lambda: None
    loss: float = float("nan")
    gradient: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def modes(self) -> tuple[NormMode, ...]:
        """Modes of norms that can make a difference."""
        has_norms = any(isinstance(part, _NormBase) for part in self.module.modules())
        return ("train", "eval") if has_norms else ("train",)

    def begin(self) -> None:
        """Measure the loss in each mode, and its gradient: what cannot be measured at all is refused here.

        Raises:
            TypeError: See `Objective`.
            ValueError: See `Objective`; or if the other checkpoint has other parameters.
        """
        objective = Objective(self.module, self.batches, loss_fn=self.options.loss_fn)
        if self.other is not None:
            # Refuses parameters of other names or shapes.
            direction_between(objective.parameters, self._other_parameters())
        for mode in self.modes:
            with objective.guarded(), norms_in(objective.model, mode):
                loss, gradient = objective()
            if mode == "train":
                self.loss, self.gradient = float(loss), gradient
            self.rows.add({f"loss_{mode}": float(loss) if bool(loss.isfinite()) else float("nan")})
        norm = torch.linalg.vector_norm(torch.cat([part.flatten().double() for part in self.gradient.values()]))
        self.rows.add({"gradient_norm_train": float(norm) if bool(norm.isfinite()) else float("nan")})
        self.rows.add({"probe_samples": float(objective.samples)})

    def _other_parameters(self) -> dict[str, Tensor]:
        known = {name: part for name, part in self.module.named_parameters() if part.requires_grad}
        return {name: part.to(known[name]) for name, part in (self.other or {}).items() if name in known}

    def units(self, kind: Kind) -> int:
        """Units of work of a kind.

        Args:
            kind: The kind.

        Returns:
            How often it calls `advance`.
        """
        modes = len(self.modes)
        return {
            "curvature": 2 * modes,
            "smoothness": 2,
            "surface": modes * (1 + self.options.points),
            "shift": 2,
            "interpolation": 1,
        }[kind]

    def measure(self, kind: Kind) -> None:
        """Measure one kind into `rows`.

        Args:
            kind: Which.

        Raises:
            Exception: What the probe raises.
        """
        kinds: dict[Kind, Callable[[], None]] = {
            "curvature": self._curvature,
            "smoothness": self._smoothness,
            "surface": self._surface,
            "shift": self._shift,
            "interpolation": self._interpolation,
        }
        kinds[kind]()

    def _curvature(self) -> None:
        shared: dict[str, Any] = {"loss_fn": self.options.loss_fn}
        for mode in self.modes:
            spectrum = hessian_eigenvalues(
                self.module, self.batches, num_eigenvalues=self.options.num_eigenvalues, norm_mode=mode, **shared
            )
            for rank, (value, residual) in enumerate(zip(spectrum.eigenvalues, spectrum.residuals, strict=True), 1):
                name = f"hessian_eigenvalue_{rank}"
                self.rows.add({f"{name}_{mode}": value, f"{name}_residual_{mode}": residual})
            self.advance()
            trace = hessian_trace(self.module, self.batches, norm_mode=mode, **shared)
            self.rows.add({f"hessian_trace_{mode}": trace.trace, f"hessian_trace_error_{mode}": trace.error})
            self.advance()

    def _smoothness(self) -> None:
        found = loss_smoothness(
            self.module, self.batches, loss_fn=self.options.loss_fn, step_sizes=self.options.step_sizes
        )
        self.rows.add(found.numbers())
        self.advance()
        downhill = {name: -part for name, part in self.gradient.items()}
        etas = np.linspace(0, max(self.options.step_sizes), self.options.points)
        self._line("gradient", downhill, etas.tolist(), "train")
        self.advance()

    def _surface(self) -> None:
        model: nn.Module = getattr(self.module, "_orig_mod", self.module)
        first, second = (random_direction(model, seed=seed) for seed in (0, 1))
        multiples = np.linspace(-self.options.radius, self.options.radius, self.options.points).tolist()
        for mode in self.modes:
            self._line("random", first, multiples, mode)
            self.advance()
            for multiple in multiples:
                row = loss_surface(
                    self.module,
                    self.batches,
                    (first, second),
                    ([multiple], multiples),
                    loss_fn=self.options.loss_fn,
                    gradients=self.options.plateau_fraction is not None,
                    norm_mode=mode,
                )
                self.rows.add_surface("plane", mode, row)
                self.advance()
            if self.options.plateau_fraction is not None:
                share = self.rows.plateau_share("plane", mode, self.options.plateau_fraction)
                self.rows.add({f"plateau_share_{mode}": share})

    def _shift(self) -> None:
        found = gradient_covariate_shift(
            self.module,
            self.batches,
            {name: part.detach() for name, part in self.module.named_parameters()},
            self._other_parameters(),
            loss_fn=self.options.loss_fn,
        )
        for entry in found:
            self.rows.add(entry.numbers(), layer=entry.layer)
        self.advance()
        for layer, numbers in self._activation_shift().items():
            self.rows.add(numbers, layer=layer)
        self.advance()

    def _activation_shift(self) -> dict[str, dict[str, float]]:
        example, module = self.example, self.module
        forward = run_like(example.entry, of_training=True)
        try:
            sites = plan_insertion(module, example.args, example.kwargs, entry=example.entry).sites
            probe = ActivationProbe(module, self.batches, sites=sites, forward=forward)
        except NoSiteError:
            return {}
        before = probe.activations()
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        try:
            module.load_state_dict(dict(self.other or {}), strict=False)
            after = probe.activations()
        finally:
            module.load_state_dict(own, strict=False)
        return probe.shift(before, after).numbers()

    def _interpolation(self) -> None:
        here = {name: part.detach() for name, part in self.module.named_parameters() if part.requires_grad}
        way = direction_between(here, self._other_parameters())
        # Running statistics are the first checkpoint's, and say nothing about points in between.
        self._line("interpolation", way, np.linspace(-0.5, 1.5, 2 * self.options.points - 1).tolist(), "train")
        self.advance()

    def _line(self, name: str, direction: Mapping[str, Tensor], multiples: Sequence[float], mode: NormMode) -> None:
        line = loss_surface(
            self.module,
            self.batches,
            [direction],
            [multiples],
            loss_fn=self.options.loss_fn,
            gradients=True,
            norm_mode=mode,
        )
        self.rows.add_surface(name, mode, line)
