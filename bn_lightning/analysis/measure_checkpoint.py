"""Measure curvature, smoothness, surfaces and shift of a trained module from its checkpoint."""

import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from bn_lightning.analysis.checkpoint_file import read_checkpoint
from bn_lightning.analysis.checkpoint_loading import CheckpointLoader
from bn_lightning.analysis.measure_figures import measure_figures
from bn_lightning.analysis.measure_kinds import Kind, Measured, MeasureOptions
from bn_lightning.analysis.measure_progress import measure_progress
from bn_lightning.analysis.measure_rows import MeasureRows
from bn_lightning.analysis.plots.saving import figure_png
from bn_lightning.analysis.plots.selection import near_names
from bn_lightning.analysis.training import namespace_of_module, quiet_lightning, recorded_warnings
from bn_lightning.callbacks.offline import LoadOnceBuilt
from bn_lightning.callbacks.offline_probe import ProbeAtTrainStart
from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.loss_smoothness_steps import steps_along_gradient
from bn_lightning.surgery.sandbox import preserve_random_state

KINDS: tuple[Kind, ...] = get_args(Kind)
OF_TWO: tuple[Kind, ...] = ("shift", "interpolation")
MULTIPLES = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class MeasuredCheckpoint:
    """What was measured of a checkpoint.

    Attributes:
        table: The long table: study, arm, seed, step, layer, quantity, value.
        points: Points of lines and surfaces: arm, surface, norm_mode, first, second, loss, gradient_norm.
        out: The folder with `measurements.csv`, `surfaces.csv` and `figures/`.
        figures: The pictures written.
        failures: Why a kind could not be measured, by kind.
    """

    table: pd.DataFrame
    points: pd.DataFrame
    out: Path
    figures: tuple[Path, ...]
    failures: Mapping[str, str]


# A module that is made draws its first weights.
@preserve_random_state()
def measure_checkpoint(
    checkpoint: str | Path,
    *,
    model: Callable[[], Any],
    data: Callable[[], Any],
    which: Sequence[str] | None = None,
    other: str | Path | None = None,
    out: str | Path | None = None,
    probe_size: int = 1000,
    learning_rate: float | None = None,
    step_sizes: Sequence[float] | None = None,
    options: MeasureOptions | None = None,
    progress: bool = False,
    trust: bool = False,
) -> MeasuredCheckpoint:
    """Measure a checkpoint on training data of a data module; neither changes.

    - "curvature": largest eigenvalues and trace of the Hessian, with batch norms in training and in evaluation mode.
    - "smoothness": loss range, gradient predictiveness and effective β along the gradient, over 1/2 to 4 learning
      rates, that of the checkpoint's optimizer (Santurkar et al., 2018, section 3.1), and the loss on the way.
    - "surface": the loss along one random filter-normalised direction, and over two (Li et al., 2018), in both modes.
    - "shift", between this checkpoint and another: gradient covariate shift as if the way from here to there were
      one step (Santurkar et al., Definition 2.1), and the shift of pre-activations.
    - "interpolation": the loss on the straight way to the other and past it (Im et al., 2016), norms in training mode.

    Dropout draws the same masks at every point. Layers stay in the modes that the module's own training begins with.
    A model without batch norm has one mode. A loss that is not finite is kept as NaN.

    Args:
        checkpoint: The file, written by Lightning, with or without inserted norms.
        model: Makes the LightningModule.
        data: Makes the LightningDataModule.
        which: The kinds; by default all that one checkpoint, or two, are enough for.
        other: Another checkpoint of the same model.
        out: Folder for tables and figures; by default ``<name>.measurements`` beside the checkpoint.
        probe_size: Samples of the training data, in whole batches; norms see one batch at a time.
        learning_rate: Of the steps along the gradient, in place of the checkpoint's.
        step_sizes: Steps along the gradient in absolute terms, in place of multiples of the learning rate.
        options: Further ones.
        progress: Show progress on the terminal.
        trust: Whether to read checkpoints with pickled objects, which can run code.

    Returns:
        Tables, pictures, and what failed.

    Raises:
        RunFolderError: If a file cannot be read.
        PlanMismatchError: If the checkpoint is of another model.
        UnknownNameError: If there is no such kind, or the two checkpoints differ in parameters.
        TypeError: If `model` makes no LightningModule, `data` no LightningDataModule, or the loss is none.
        ValueError: If a kind needs another checkpoint, there is no learning rate or no batch, or nothing is trained.
        KeyboardInterrupt: On Ctrl-C; what was measured is written by then, and the message says where.
    """
    source = Path(checkpoint)
    folder = source.with_name(f"{source.stem}.measurements") if out is None else Path(out)
    kinds = _kinds(which, has_other=other is not None)
    if probe_size < 2:
        raise ValueError(f"A probe set needs two samples or more, got probe_size={probe_size} (--probe-size).")
    saved = read_checkpoint(source, trust=trust)
    second = None if other is None else read_checkpoint(Path(other), trust=trust)["state_dict"]
    options = options or MeasureOptions()
    if "smoothness" in kinds:
        options = replace(options, step_sizes=_step_sizes(saved, source, learning_rate, step_sizes))
    module = model()
    namespace = namespace_of_module(module)  # which says so if it is no LightningModule
    rows = MeasureRows(source.stem, max(0, int(saved.get("global_step", 0))))
    session = _Session(kinds, options, second, rows, folder, progress)
    callback = ProbeAtTrainStart(session, probe_size=probe_size)
    _run(namespace, module, data(), [LoadOnceBuilt(CheckpointLoader(saved, source)), callback])
    if not callback.called:
        raise ValueError(f"There is nothing to measure {type(module).__name__} on: the training data hold no batch.")
    figures = _draw(rows, folder)
    if callback.interrupt is not None:
        kept = ", ".join(session.finished) or "nothing"
        raise KeyboardInterrupt(f"Interrupted. Measured until then: {kept}; kept in {folder}.") from callback.interrupt
    return MeasuredCheckpoint(rows.table(), rows.points(), folder, figures, session.failures)


def _kinds(which: Sequence[str] | None, *, has_other: bool) -> tuple[Kind, ...]:
    if which is None:
        return KINDS if has_other else tuple(kind for kind in KINDS if kind not in OF_TWO)
    for name in which:
        if name not in KINDS:
            raise UnknownNameError(f"There is no measurement {name!r} (--which): there are {near_names(name, KINDS)}.")
    asked = [kind for kind in KINDS if kind in which]
    if missing := [kind for kind in asked if kind in OF_TWO and not has_other]:
        raise ValueError(f"{' and '.join(missing)} compare two checkpoints: name the other one too (--and).")
    if not asked:
        raise ValueError(f"Nothing is to be measured: name one or more of {', '.join(KINDS)} (--which).")
    return tuple(asked)


def _step_sizes(
    saved: Mapping[str, Any], source: Path, learning_rate: float | None, step_sizes: Sequence[float] | None
) -> tuple[float, ...]:
    if step_sizes is None and learning_rate is None:
        states = saved.get("optimizer_states") or ()
        groups = [group for state in states for group in state.get("param_groups", ())]
        # Schedules may end at 0, a rate that has no multiples.
        rates = {rate for group in groups if (rate := float(group.get("lr", 0))) != 0}
        if len(rates) != 1:
            found = f"{len(rates)} learning rates ({', '.join(f'{rate:g}' for rate in sorted(rates))})" * bool(rates)
            raise ValueError(
                f"Smoothness takes steps of multiples of the learning rate, and {source} holds {found or 'none'}. Give "
                "one (--learning-rate), or steps in absolute terms (--step-sizes), or leave smoothness out (--which)."
            )
        learning_rate = rates.pop()
    return steps_along_gradient(step_sizes=step_sizes, multiples=MULTIPLES, learning_rate=learning_rate)


@dataclass
class _Session:
    """Measures kind by kind within a Trainer, and writes the tables after each."""

    kinds: Sequence[Kind]
    options: MeasureOptions
    other: Mapping[str, Any] | None
    rows: MeasureRows
    folder: Path
    progress: bool
    finished: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def __call__(self, module: Any, batches: list[Any], example: Any) -> None:
        measured = Measured(module, batches, example, self.options, self.other, self.rows)
        measured.begin()
        with measure_progress({kind: measured.units(kind) for kind in self.kinds}, shown=self.progress) as advance:
            for kind in self.kinds:
                measured.advance = lambda kind=kind: advance(kind)  # type: ignore[misc] # mypy infers no default
                try:
                    measured.measure(kind)
                    self.finished.append(kind)
                except Exception as error:
                    # The other kinds may need less: a loss without second derivative has a gradient.
                    self.failures[kind] = f"{type(error).__name__}: {error}"
                self.rows.write(self.folder)


def _run(namespace: Any, module: Any, data: Any, callbacks: list[Any]) -> None:
    if not hasattr(data, "prepare_data"):
        raise TypeError(
            f"The training data come from a LightningDataModule, but data() made a {type(data).__qualname__}. Put its "
            "loader into the train_dataloader of a LightningDataModule."
        )
    silent: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    handler = signal.getsignal(signal.SIGINT)
    with recorded_warnings() as caught, quiet_lightning():
        trainer = namespace.Trainer(devices=1, max_epochs=1, callbacks=callbacks, **silent)
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            # Lightning ignores further Ctrl-C and exits the whole process.
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
    for warning in caught:
        # Lightning's own advice is about a training that does not take place.
        if warning.category.__module__.startswith("bn_lightning."):
            warnings.warn(warning.message, warning.category, stacklevel=3)


def _draw(rows: MeasureRows, folder: Path) -> tuple[Path, ...]:
    written = []
    for name, figure in measure_figures(rows.table(), rows.points()).items():
        path = folder / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(figure_png(figure))
        written.append(path)
    return tuple(written)
