"""Does batch norm lessen internal covariate shift, and does the answer depend on which of its definitions is meant?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.lines import Line2D

from bn_lightning.analysis.plots.by_arm import plot_by_arm
from bn_lightning.analysis.plots.layers import ACTIVATION_SHIFT, MAX_LAYERS, plot_layers
from bn_lightning.analysis.plots.note import note_figure
from bn_lightning.analysis.plots.standard import figure_of, labels_of, metric_figure
from bn_lightning.analysis.plots.style import REFERENCE_COLOR
from bn_lightning.analysis.studies._measured_digits import measured_digits
from bn_lightning.analysis.studies._one_factor import PLACEMENTS, one_factor_arms
from bn_lightning.analysis.study import Figure, Problem, Study

MEASUREMENTS = 40  # of a run
PROBE_SIZE = 600
GRADIENTS = {"gradient_shift_relative": "‖G − G'‖₂ / ‖G‖₂", "gradient_shift_cosine": "cosine of G and G'"}
NOISE = {"gradient_shift_relative": "gradient_noise_relative", "gradient_shift_cosine": "gradient_noise_cosine"}
SUMMARY = {
    "gradient_shift_relative": "gradient shift\n‖G − G'‖₂ / ‖G‖₂",
    "gradient_shift_cosine": "cosine of G and G'",
    "activation_shift_wasserstein_normalised": "activation shift\nW₁ / std, one step",
    "activation_drift_wasserstein_normalised": "activation drift\nW₁ / std, start to end",
}

default_problem = measured_digits


def study(problem: Problem) -> Study:
    """Train with batch norm nowhere, before and after the nonlinearities, and measure both families of covariate shift.

    40 times a run: how far each layer's gradient moves when the layers before it take their step (same batch, same
    dropout), and how far what each nonlinearity receives on a fixed probe set moves, in one step and since the start.
    The difference between the gradients of two batches at the same weights is the reference line: shift far below it
    is lost in the noise of sampling. All arms have the module's own rate, as the relative gradient shift grows with it.

    Source: Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?", Definition 2.1, figures 2 and 8:
    networks with batch norm have as much gradient shift as those without, or more, and train faster all the same.
    Activation shift is what Ioffe & Szegedy 2015 had in mind (section 2).

    On the embedded digits 18 cells of some 10 s each on one busy core, 2 minutes on two; on MNIST, with 10,000 steps,
    of some 85 s, 13 minutes.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    return Study(
        name="covariate_shift",
        question="Does batch norm lessen internal covariate shift, of gradients and of activations?",
        source="Santurkar et al. 2018, Definition 2.1 and figures 2, 8; Ioffe & Szegedy 2015, section 2",
        problem=problem,
        reference="none",
        arms=one_factor_arms("placement", PLACEMENTS, _callbacks, problem),
        figures=_figures(problem),
    )


def _callbacks(placement: str, max_steps: int) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.callbacks.covariate_shift import CovariateShiftMonitor
    from bn_lightning.callbacks.insertion import BatchNormInsertion

    # Dead layers are counted in the results.
    every = max(5, max_steps // MEASUREMENTS)
    monitor = CovariateShiftMonitor(every_n_steps=every, probe_size=PROBE_SIZE, warn=False, figures=False)
    return [monitor] if placement == "none" else [BatchNormInsertion(placement=placement), monitor]  # type: ignore[arg-type] # an arm's name


def _figures(problem: Problem) -> tuple[Figure, ...]:
    band = "mean over seeds with its 95 % t interval, single seeds thin"
    return (
        Figure(
            name="families",
            caption=(
                "Both families side by side: a marker a run, the median over layers and over the steps measured "
                "(drift: over layers, at the last step measured); the bar is the median of the runs. Dead layers have "
                "no shift, not a shift of 0, and are left out."
            ),
            draw=_draw_families,
        ),
        Figure(
            name="gradient_shift",
            caption=(
                "Shift of each layer's gradient by the step of the layers before it (after Santurkar et al. 2018, "
                f"figure 2): {band}. Dotted: the same between two batches at equal weights, median over arms and seeds."
            ),
            draw=_draw_gradients,
        ),
        Figure(
            name="activation_shift",
            caption=f"Shift of what each nonlinearity receives on a fixed probe set: {band}.",
            draw=_draw_activations,
        ),
        metric_figure(problem),
    )


def shift_by_run(results: pd.DataFrame) -> pd.DataFrame:
    """One number a run and measure: the median over layers and steps, of the drift at its last step.

    Args:
        results: The long table.

    Returns:
        The columns arm, seed, measure and value; NaN where nothing of a run is finite.
    """
    rows = results[results["quantity"].isin(list(SUMMARY))]
    drift = rows["quantity"].str.startswith("activation_drift")
    rows = rows[~drift | (rows["step"] == rows.loc[drift, "step"].max())]
    rows = rows.assign(value=rows["value"].where(np.isfinite(rows["value"])))
    medians = rows.groupby(["arm", "seed", "quantity"], sort=False)["value"].median()
    return medians.reset_index().rename(columns={"quantity": "measure"})


def _draw_families(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    values = shift_by_run(results)
    if not np.isfinite(values["value"]).any():
        return note_figure("No layer has a finite shift: all are dead, or there is none to measure.")
    positive = [name for name in SUMMARY if "cosine" not in name]
    return plot_by_arm(values, SUMMARY, arms=labels_of(study), log=positive)


def _draw_gradients(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    layers = _layers_with(results, list(GRADIENTS))
    if not layers:
        return note_figure("No layer has a finite shift of its gradient: all are dead, or there is only one.")
    grid = plot_layers(results, GRADIENTS, layers=layers, arms=labels_of(study), seeds=False)
    for quantity, row in zip(GRADIENTS, grid, strict=True):
        noise = results[(results["quantity"] == NOISE[quantity]) & np.isfinite(results["value"])]
        for layer, ax in zip(layers, row, strict=True):
            line = noise[noise["layer"] == layer].groupby("step")["value"].median()
            ax.plot(line.index, line, color=REFERENCE_COLOR, ls=(0, (1, 1.5)), lw=1.4, gid="noise")
    figure = figure_of(grid[0][0])
    (legend,) = figure.legends
    handles = [entry for entry in legend.legend_handles if entry is not None]
    dotted = Line2D([], [], color=REFERENCE_COLOR, ls=(0, (1, 1.5)), lw=1.4, label="between two batches")
    legend.remove()
    figure.legend(handles=[*handles, dotted], loc="outside upper left", ncols=len(handles) + 1, frameon=False)
    return figure


def _draw_activations(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    layers = _layers_with(results, list(ACTIVATION_SHIFT))
    if not layers:
        return note_figure("No nonlinearity's input has a finite shift, so there is none to draw.")
    return figure_of(plot_layers(results, ACTIVATION_SHIFT, layers=layers, arms=labels_of(study), seeds=False)[0][0])


def _layers_with(results: pd.DataFrame, quantities: list[str]) -> list[str]:
    """Layers with a finite value of each quantity, thinned evenly to as many as fit on a page."""
    finite = results[np.isfinite(results["value"]) & results["quantity"].isin(quantities)]
    counts = finite.groupby("layer", sort=False)["quantity"].nunique()
    whole = [str(layer) for layer in counts.index[counts == len(quantities)]]
    kept = np.linspace(0, len(whole) - 1, min(len(whole), MAX_LAYERS)).round().astype(int)
    return [whole[place] for place in kept]
