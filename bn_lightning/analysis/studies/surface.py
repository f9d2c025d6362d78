"""What does the loss look like around the initial weights and the solution, and how curved is it in each mode?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.landscape_points import SURFACES, landscape_points
from bn_lightning.analysis.plots.by_arm import plot_by_arm
from bn_lightning.analysis.plots.landscapes import plot_landscape_lines, plot_landscape_planes
from bn_lightning.analysis.plots.note import note_figure
from bn_lightning.analysis.plots.standard import labels_of, metric_figure
from bn_lightning.analysis.studies._measured_digits import measured_digits
from bn_lightning.analysis.studies._one_factor import PLACEMENTS, one_factor_arms
from bn_lightning.analysis.study import Figure, Problem, Study

# Points along each side of a plane; the fewer in runs so short that measuring would outlast them.
SIDE, SHORT_SIDE = 11, 5
SHORT = 100  # optimizer steps
PROBE_SIZE = 300
RECALIBRATION_BATCHES = 50
LINES = {name: SURFACES[name] for name in ("start_line", "end_line", "way")}
PLANES = {name: SURFACES[name] for name in ("start_plane", "end_plane")}
PLATEAUS = {
    "plateau_share": "share below 1/10 of the start's gradient",
    "own_plateau_share": "share below 1/10 of the plane's largest",
}
NOTHING = "No run has a finite loss around its weights, so there is nothing to draw."

default_problem = measured_digits


def study(problem: Problem) -> Study:
    """Train with batch norm nowhere, before and after the nonlinearities, and look at the loss at both ends.

    On 300 samples of the training data: the loss on a random line and plane around the initial weights and around
    the solution, and on the straight way between the two; the share of each plane that is a plateau, where the
    gradient is below a tenth of that at the run's own initial weights, and of the plane's own largest; the largest
    eigenvalue of the Hessian at the end, norms in training and in evaluation mode, with population statistics.
    Directions are filter-normalised, so weights before norms may have any size.

    Source: Im et al. 2016 (VGG and NIN on CIFAR-10: no plateaus with batch norm; shown in pictures, without numbers);
    Li et al. 2018, section 4, for the directions. Nobody has published the eigenvalue in both modes.

    On the embedded digits 18 cells of some 10 s each on one busy core, 2 minutes on two; on MNIST, with 10,000 steps,
    of some 85 s, 13 minutes.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    return Study(
        name="surface",
        question="What does the loss look like around the initial weights and around the solution?",
        source="Im et al. 2016, section 4; Li et al. 2018, section 4",
        problem=problem,
        reference="none",
        arms=one_factor_arms("placement", PLACEMENTS, _callbacks, problem),
        figures=_figures(problem),
    )


def _callbacks(placement: str, max_steps: int) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.analysis.loss_landscape import LossLandscape
    from bn_lightning.callbacks.insertion import BatchNormInsertion
    from bn_lightning.callbacks.recalibration import BatchNormRecalibration

    landscape = LossLandscape(side=SHORT_SIDE if max_steps < SHORT else SIDE, probe_size=PROBE_SIZE)
    if placement == "none":
        return [landscape]
    recalibration = BatchNormRecalibration(num_batches=RECALIBRATION_BATCHES)
    return [BatchNormInsertion(placement=placement), recalibration, landscape]  # type: ignore[arg-type] # an arm's name


def _figures(problem: Problem) -> tuple[Figure, ...]:
    return (
        Figure(
            name="lines",
            caption=(
                "Loss on a random filter-normalised line around the initial weights and around the solution, and on "
                "the straight way between them, norms in training mode: median over seeds, single seeds thin."
            ),
            draw=_draw_lines,
        ),
        Figure(
            name="planes",
            caption=(
                "Loss over two random filter-normalised directions, norms in training mode, of each arm's first seed; "
                "colours mean the same within a row."
            ),
            draw=_draw_planes,
        ),
        Figure(
            name="curvature",
            caption=(
                "Largest eigenvalue of the Hessian at the end, norms in training and in evaluation mode; a marker a "
                "seed, the bar is the median. Without norms there is one mode."
            ),
            draw=_draw_curvature,
        ),
        Figure(
            name="plateaus",
            caption=(
                "Share of the plane where the gradient is below a tenth of that at the run's own initial weights, and "
                "of the largest on the plane itself, which a run that starts on a plateau does not spoil; a marker a "
                "seed, the bar is the median."
            ),
            draw=_draw_plateaus,
        ),
        metric_figure(problem),
    )


def by_kind(results: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Values of the quantities `<measure>_<kind>`, with their kind in a column of its own.

    Args:
        results: The long table.
        measure: What the quantities' names begin with.

    Returns:
        The columns arm, seed, measure, kind and value.
    """
    rows = results[results["quantity"].str.startswith(f"{measure}_")]
    kinds = rows["quantity"].str.removeprefix(f"{measure}_")
    return rows[["arm", "seed", "value"]].assign(measure=measure, kind=kinds).reset_index(drop=True)


def _draw_lines(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    points = landscape_points(results)
    if not np.isfinite(points["loss"]).any():
        return note_figure(NOTHING)
    return plot_landscape_lines(points, LINES, arms=labels_of(study))


def _draw_planes(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    points = landscape_points(results)
    if not np.isfinite(points["loss"]).any():
        return note_figure(NOTHING)
    return plot_landscape_planes(points, PLANES, arms=labels_of(study))


def _draw_curvature(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    values = by_kind(results, "hessian_eigenvalue_1")
    if not np.isfinite(values["value"]).any():
        return note_figure("No run has a finite eigenvalue of the Hessian.")
    modes = {"train": "norms in training mode", "eval": "norms in evaluation mode"}
    words = {"hessian_eigenvalue_1": "largest eigenvalue of the Hessian"}
    return plot_by_arm(values, words, arms=labels_of(study), kinds=modes, log=list(words))


def _draw_plateaus(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    values = pd.concat([by_kind(results, measure) for measure in PLATEAUS], ignore_index=True)
    if not np.isfinite(values["value"]).any():
        return note_figure("No run has a gradient around its weights, so plateaus have no scale.")
    stages = {"start": "around the initial weights", "end": "around the solution"}
    return plot_by_arm(values, PLATEAUS, arms=labels_of(study), kinds=stages)
