"""Is the loss smoother along the gradient with batch norm, also at equal loss and whatever the weights' size?"""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.plots.matched import plot_matched
from bn_lightning.analysis.plots.note import note_figure
from bn_lightning.analysis.plots.smoothness import plot_smoothness
from bn_lightning.analysis.plots.standard import figure_of, labels_of, metric_figure
from bn_lightning.analysis.plots.style import house_style
from bn_lightning.analysis.studies._measured_digits import measured_digits
from bn_lightning.analysis.studies._one_factor import PLACEMENTS, one_factor_arms
from bn_lightning.analysis.study import Figure, Problem, Study

MEASUREMENTS = 40  # of a run
PROBE_SIZE = 1000  # with few samples the comparison can turn round
BETAS = {"effective_beta": "effective β", "effective_beta_normalised": "effective β, normalised coordinates"}

default_problem = measured_digits


def study(problem: Problem) -> Study:
    """Train with batch norm nowhere, before and after the nonlinearities, and measure the loss along its gradient.

    40 times a run, on a fixed probe set of 1,000 samples, over steps of 1/2, 1, 2 and 4 times the present learning
    rate: the range of the loss, the range of the gradient's change (predictiveness), and effective β, the largest
    change over the distance. β depends on the scale of weights before norms, which changes nothing about the
    network, so it is measured in normalised coordinates too; and on the stage of training, so arms are also compared
    at equal loss.

    Source: Santurkar et al. 2018, section 3.1 and figure 4 (VGG on CIFAR-10): with batch norm all three are smaller
    throughout training.

    On the embedded digits 18 cells of some 13 s each on one busy core, 2 minutes on two; on MNIST, with 10,000 steps,
    of some 85 s, 13 minutes.

    Args:
        problem: What to train; its model holds no norms, and its optimizer one learning rate.

    Returns:
        The study.
    """
    return Study(
        name="smoothness",
        question="Is the loss smoother along the gradient with batch norm?",
        source="Santurkar et al. 2018, section 3.1 and figure 4",
        problem=problem,
        reference="none",
        arms=one_factor_arms("placement", PLACEMENTS, _callbacks, problem),
        figures=_figures(problem),
    )


def _callbacks(placement: str, max_steps: int) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.callbacks.insertion import BatchNormInsertion
    from bn_lightning.callbacks.loss_smoothness import LossSmoothnessMonitor

    # A dead network's NaN is in the results.
    every = max(5, max_steps // MEASUREMENTS)
    monitor = LossSmoothnessMonitor(every_n_steps=every, probe_size=PROBE_SIZE, warn=False, figures=False)
    return [monitor] if placement == "none" else [BatchNormInsertion(placement=placement), monitor]  # type: ignore[arg-type] # an arm's name


def _figures(problem: Problem) -> tuple[Figure, ...]:
    return (
        Figure(
            name="smoothness",
            caption=(
                "Ranges of the loss and of the gradient's change over steps of 1/2 to 4 learning rates along the "
                "gradient, of each arm's first seed, and effective β: mean over seeds with its 95 % t interval, single "
                "seeds thin (after Santurkar et al. 2018, figure 4)."
            ),
            draw=_draw_smoothness,
        ),
        Figure(
            name="beta_at_equal_loss",
            caption=(
                "Effective β against the loss on the probe set, raw and in coordinates in which rescaling weights "
                "before a norm changes nothing: a marker a step and seed, lines join medians over ten bins of the "
                "loss. Only weights before a norm have such coordinates, so they compare stages of one arm, not arms: "
                "without norms both are the same number."
            ),
            draw=_draw_matched,
        ),
        metric_figure(problem),
    )


def _draw_smoothness(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    return figure_of(plot_smoothness(results, arms=labels_of(study))[0])


def _draw_matched(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    there = [name for name in BETAS if (results["quantity"] == name).any()]
    if not there:
        return note_figure("No run has an effective β, so there is nothing to compare.")
    with house_style():
        figure = MatplotlibFigure(figsize=(0.4 + 4.4 * len(there), 3.9), layout="constrained")
        axes = figure.subplots(1, len(there), squeeze=False)[0]
    for ax, name in zip(axes, there, strict=True):
        words = {"xlabel": "loss on the probe set", "ylabel": BETAS[name]}
        plot_matched(results, "smoothness_loss", name, arms=labels_of(study), ax=ax, **words)
        # One for both panels.
        if (legend := ax.get_legend()) is not None:
            legend.remove()
    handles = axes[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    return figure
