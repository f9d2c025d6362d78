"""The command measure: curvature, smoothness, surfaces and shift of a checkpoint."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bn_lightning.cli.saying import DONE, SOME_FAILED, complain, say

if TYPE_CHECKING:  # jsonargparse follows these when it builds the command that was asked for, and only then
    from bn_lightning.analysis.factories import DataFactory, ModuleFactory


def measure(
    checkpoint: str,
    *,
    model: "ModuleFactory",
    data: "DataFactory",
    which: str | None = None,
    and_: str | None = None,
    out: str | None = None,
    probe_size: int = 1000,
    learning_rate: float | None = None,
    step_sizes: list[float] | None = None,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    num_eigenvalues: int = 3,
    points: int = 15,
    radius: float = 1.0,
    plateau_fraction: float | None = None,
    trust: bool = False,
) -> int:
    """Measure how curved, how smooth and how far from another checkpoint a trained module is; neither file changes.

    Args:
        checkpoint: File written by Lightning, with or without inserted norms.
        model: Import path of its LightningModule; its arguments follow as --model.lr=0.1.
        data: Import path of a LightningDataModule; its training data are the probe set.
        which: Of curvature, smoothness, surface, shift and interpolation, with commas between; by default all.
        and_: Another checkpoint of the same model, for shift and interpolation.
        out: Folder for measurements.csv, surfaces.csv and figures; by default <name>.measurements beside the file.
        probe_size: Samples to measure on, in whole training batches.
        learning_rate: Of the steps along the gradient, in place of the checkpoint's.
        step_sizes: Steps along the gradient in absolute terms, as --step-sizes=[0.01,0.1].
        loss_fn: Import path of a function of module and batch, in place of training_step.
        num_eigenvalues: Of the Hessian.
        points: Of each line, and along each side of the surface.
        radius: How far random directions are followed, in lengths of the weights.
        plateau_fraction: Write the share of the surface whose gradient is below this fraction of the largest.
        trust: Read checkpoints with pickled objects too, which can run code.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.measure_checkpoint import measure_checkpoint
    from bn_lightning.analysis.measure_console import show_measurements
    from bn_lightning.analysis.measure_kinds import MeasureOptions

    done = measure_checkpoint(
        checkpoint,
        model=model,
        data=data,
        which=None if which is None else [name.strip() for name in which.split(",") if name.strip()],
        other=and_,
        out=out,
        probe_size=probe_size,
        learning_rate=learning_rate,
        step_sizes=step_sizes,
        options=MeasureOptions(
            loss_fn=loss_fn,
            num_eigenvalues=num_eigenvalues,
            points=points,
            radius=radius,
            plateau_fraction=plateau_fraction,
        ),
        progress=sys.stderr.isatty(),
        trust=trust,
    )
    show_measurements(done.table)
    say(f"Tables: {done.out / 'measurements.csv'}")
    if done.figures:
        say(f"Figures: {done.out / 'figures'}")
    for kind, reason in done.failures.items():
        complain(f"failed: {kind}: {reason}")
    return SOME_FAILED if done.failures else DONE
