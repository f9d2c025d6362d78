"""Measure the smoothness of the loss during training, on a schedule, into every logger."""

import fnmatch
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from bn_lightning.callbacks._compat import LightningModule, Trainer, misconfiguration
from bn_lightning.callbacks._measure_figures import smoothness_figures
from bn_lightning.callbacks._probe_monitor import ProbeMonitor
from bn_lightning.probes.loss_smoothness import NORMALISED_LENGTHS, LossSmoothness, loss_smoothness
from bn_lightning.probes.loss_smoothness_steps import sign_of, steps_along_gradient
from bn_lightning.probes.objective import LossFn
from bn_lightning.probes.scale_invariance import Blocks, scale_invariant_blocks
from bn_lightning.probes.trainable import trainable_parameters
from bn_lightning.schedule import Schedule

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class LossSmoothnessMonitor(ProbeMonitor):
    """Measures at due optimizer steps how loss and gradient change along the gradient.

    At a due step t (counted from 0) a fixed probe set is evaluated at θ_t and at points along its gradient, before the
    step is taken. Training is the same to the bit with the monitor and without: weights, buffers, gradients,
    logged metrics and random state. State that a ``training_step`` keeps in plain attributes is beyond its reach, and
    so are metrics in a dict and frozen parameters that it writes to in place, as those of a teacher.

    What is written:

    ========================================================  ===================================================
    `smoothness/smoothness_loss`                              loss at θ_t, mean over the probe set
    `smoothness/smoothness_gradient_norm`                     ‖g‖₂ there
    `smoothness/loss_range_min`, `_max`                       lowest and highest loss at the points
    `smoothness/gradient_predictiveness_min`, `_max`          smallest and largest ‖g(θ + d) − g‖₂
    `smoothness/effective_beta`                               max ‖g(θ + d) − g‖₂ / ‖d‖₂
    `smoothness/effective_beta_normalised`                    the same in coordinates in which rescaling weights
                                                              before a norm changes nothing
    ========================================================  ===================================================

    `table()` holds the same, with an empty layer; at the end of fit it is written as `loss_smoothness.csv` to each
    logger's folder, and every TensorBoardLogger gets a figure. Several monitors of one Trainer have names: tags begin
    with `<name>.` and the file is `loss_smoothness-<name>.csv`. β depends on the size of the probe set and on the stage
    of training: compare runs with one probe set, at matched loss. In distributed training each rank measures on its own
    probe set, and rank zero's numbers are written; sharded parameters are not supported.

    Source: Santurkar et al. (2018), "How Does Batch Normalization Help Optimization?", section 3.1 and figure 4; see
    `loss_smoothness` for the definitions and the cost.

    Args:
        every_n_steps: Measure every so many optimizer steps; 0 turns this off.
        dense_until: Measure every step before this one too.
        steps: Measure these steps too.
        every_n_epochs: Measure the first step of epochs 0, n, 2n, … too; 0 turns this off.
        step_sizes: η in absolute terms. Without them `multiples` of the optimizer's present learning rate are taken.
        multiples: Of the learning rate.
        max_step_size: Larger steps are taken at this size; 0.4 in the paper.
        direction: "descent" for θ − ηg, "ascent" for θ + ηg.
        normalised: Whether to measure β in normalised coordinates too, with blocks found at the first due
            step (`scale_invariant_blocks`), or the blocks themselves: paths of parameters that are rescaled together.
        normalised_lengths: Distances of the points there.
        parameters: fnmatch patterns on the parameters' paths: those to move, where several optimizers share the module.
        loss_fn: ``loss_fn(module, batch)``, for a module with manual optimization; by default its ``training_step``.
        probe: The probe set: a batch as the training loader yields. None takes the first batches of
            the training data, once, without touching the Trainer's own iterators; they are drawn with a seed of their
            own, so they are the same in all runs on the same data.
        probe_size: How many samples of the training data to probe with, in whole batches; norms see one at a time.
        warn: Whether to warn of gradients of exactly 0, non-finite ones, and rates of 0.
        figures: Draw a figure at the end of fit, if there is a TensorBoardLogger.
        name: Tells several monitors of one Trainer apart; letters, digits, "_" and "-". Of several without a name the
            second is called "2", and so on.

    Raises:
        ValueError: If an argument is out of range; at a due step, if the loss is not one number.
        TypeError: At a due step, if the loss is none.
        UnknownNameError: At a due step, if a pattern or block matches nothing.
        MisconfigurationException: Of the Trainer's namespace, if the module optimizes manually and there is no
            `loss_fn`, two monitors have one name, or at the first due step if there is no single learning rate to take
            multiples of.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from bn_lightning.callbacks.loss_smoothness import LossSmoothnessMonitor
        >>> monitor = LossSmoothnessMonitor(every_n_steps=100, max_step_size=0.4)
        >>> trainer = Trainer(callbacks=[monitor], logger=False, accelerator="cpu")
        >>> monitor.table().columns.tolist()
        ['step', 'layer', 'quantity', 'value']
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 50,
        dense_until: int = 0,
        steps: Collection[int] = (),
        every_n_epochs: int = 0,
        step_sizes: Sequence[float] | None = None,
        multiples: Sequence[float] = (0.5, 1, 2, 4),
        max_step_size: float | None = None,
        direction: Literal["descent", "ascent"] = "descent",
        normalised: bool | Blocks = True,
        normalised_lengths: Sequence[float] = NORMALISED_LENGTHS,
        parameters: str | Sequence[str] | None = None,
        loss_fn: LossFn | None = None,
        probe: Any = None,
        probe_size: int = 1000,
        warn: bool = True,
        figures: bool = True,
        name: str = "",
    ) -> None:
        sign_of(direction)
        # Bad sizes are refused here rather than hours into a run, whatever the rate will be.
        steps_along_gradient(step_sizes=step_sizes, multiples=multiples, learning_rate=1.0, max_step_size=max_step_size)
        self.step_sizes = step_sizes
        self.multiples = tuple(multiples)
        self.max_step_size = max_step_size
        self.direction: Literal["descent", "ascent"] = direction
        self.normalised = normalised
        self.normalised_lengths = tuple(normalised_lengths)
        self.parameters = parameters
        schedule = Schedule(every_n_steps, dense_until, tuple(steps), every_n_epochs)
        super().__init__(
            "loss_smoothness",
            schedule,
            loss_fn=loss_fn,
            probe=probe,
            probe_size=probe_size,
            warn=warn,
            figures=figures,
            name=name,
        )

    def _begin(self, name: str) -> None:
        super()._begin(name)
        self._batches: list[Any] = []
        self._blocks: Blocks | None = None
        self._trained: tuple[str, ...] = ()

    def _figures(self, table: "pandas.DataFrame") -> "dict[str, Figure]":
        return smoothness_figures(table)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Collect the probe set, once: the training data are there by now."""
        self._batches = self._probe_batches(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Measure if the coming optimizer step is due."""
        step = trainer.global_step
        if not self._begins_due_step(trainer, batch_idx):
            return
        rate = self._learning_rate(trainer, pl_module) if self.step_sizes is None else None
        if rate == 0:
            self._warn_once(
                "rate",
                f"Loss smoothness is not measured at step {step}: the learning rate is 0, so its multiples are no "
                "steps. Give step_sizes= in absolute terms to measure there too.",
            )
            return
        found = self._measure(trainer, pl_module, rate)
        if found.state:
            self._warn_once(
                "state",
                f"The network is {found.state} at step {step}: its gradient on the probe set is exactly 0. Its "
                "smoothness is NaN, not perfect.",
            )
        numbers = found.numbers()
        self._table.add(step, "", numbers)
        self._write(trainer, {f"smoothness/{name}": value for name, value in numbers.items()}, step)

    def _measure(self, trainer: "Trainer", pl_module: "LightningModule", rate: float | None) -> LossSmoothness:
        with self._guarded(trainer, pl_module):
            trained = tuple(trainable_parameters(pl_module, self.parameters))
            # Layers that are frozen or set free in the middle are others' blocks from then on.
            if self.normalised is True and (self._blocks is None or trained != self._trained):
                self._trained = trained
                self._blocks = scale_invariant_blocks(
                    pl_module, self._batches, loss_fn=self.loss_fn, parameters=self.parameters
                )
            return loss_smoothness(
                pl_module,
                self._batches,
                loss_fn=self.loss_fn,
                step_sizes=self.step_sizes,
                multiples=self.multiples,
                learning_rate=rate,
                max_step_size=self.max_step_size,
                direction=self.direction,
                parameters=self.parameters,
                normalised=self.normalised if self._blocks is None else self._blocks,
                normalised_lengths=self.normalised_lengths,
            )

    def _learning_rate(self, trainer: "Trainer", pl_module: "LightningModule") -> float:
        """The one rate at which the parameters to move are trained."""
        patterns = [self.parameters] if isinstance(self.parameters, str) else self.parameters
        moved = {
            id(part)
            for name, part in pl_module.named_parameters()
            if patterns is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        }
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = {
            float(group["lr"])
            for group in groups
            if "lr" in group and not moved.isdisjoint(id(part) for part in group["params"])
        }
        if len(rates) != 1:
            found = f"the rates {', '.join(map(str, sorted(rates)))}" if rates else "none"
            raise misconfiguration(
                trainer,
                "LossSmoothnessMonitor takes its steps as multiples of the learning rate of the parameters it moves, "
                f"and found {found}. Give step_sizes= in absolute terms, or choose the parameters of one rate with "
                "parameters=.",
            )
        return rates.pop()

    def _release(self) -> None:
        self._batches = []
