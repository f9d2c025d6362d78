"""Where does batch norm belong: nowhere, before the nonlinearity, or after it? And does it need scale and shift?"""

import functools
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.plots import (
    plot_differences,
    plot_percentile_bands,
)
from bn_lightning.analysis.plots.standard import figure_of, labels_of, metric_figure, steps_figures
from bn_lightning.analysis.study import Arm, Figure, Problem, Study
from bn_lightning.analysis.summary import compare

ARMS = {
    "none": "without BN",
    "before": "BN before",
    "after": "BN after",
    "before_plain": "BN before, plain",
    "after_plain": "BN after, plain",
}
"""Labels by arm; "plain" is without scale and shift, γ and β."""
RECALIBRATION_BATCHES = 50  # all of the embedded digits; 3,000 images of MNIST
RECORDINGS = 500  # of a long run; more would fill the disk and show no more
EVERY_N_STEPS = 50  # of a short one
FEW_STEPS = 2 * EVERY_N_STEPS  # below this there are a recording or two, and figures of them show nothing


def study(problem: Problem) -> Study:
    """Compare a model without batch norm with the same one with it before, and after, its nonlinearities.

    Either place comes with scale and shift and, as `before_plain` and `after_plain`, without. Published, of CaffeNet on
    ImageNet at 128 pixels, accuracy and log-loss of one run each (ducha-aiki/caffenet-benchmark, batchnorm.md): without
    .471, 2.36; before .478, 2.33, plain .474, 2.35; after .493, 2.24, plain .499, 2.21. Of GoogLeNet without .619,
    before .603, after .596.

    Population statistics are taken anew before every evaluation. The pre-activations of all layers are recorded, and
    those of one unit of the layer of interest are followed on a fixed probe set. On MNIST with 10,000 steps 30 cells of
    70 s: 18 minutes on two cores.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    return Study(
        name="placement",
        question="Does batch norm speed training up, and does it belong before or after the nonlinearity?",
        source="Ioffe & Szegedy 2015, section 4.1 and figure 1",
        problem=problem,
        reference="none",
        arms=tuple(
            Arm(
                name=name,
                label=label,
                factors={"placement": name.removesuffix("_plain"), "scale_and_shift": name in ("before", "after")},
                callbacks=functools.partial(_callbacks, name, problem),
            )
            for name, label in ARMS.items()
        ),
        figures=_figures(problem),
    )


def _callbacks(arm: str, problem: Problem) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.callbacks.insertion import BatchNormInsertion
    from bn_lightning.callbacks.monitor import ActivationMonitor
    from bn_lightning.callbacks.recalibration import BatchNormRecalibration

    max_steps = problem.budget.max_steps
    monitor = ActivationMonitor(
        every_n_steps=max(EVERY_N_STEPS, max_steps // RECORDINGS),
        units={problem.layer_of_interest or "last": "typical"},
        figures=max_steps >= FEW_STEPS,
    )
    if arm == "none":
        return [monitor]
    place: Any = arm.removesuffix("_plain")
    insertion = BatchNormInsertion(placement=place, norm_options={"affine": False} if arm != place else None)
    return [insertion, BatchNormRecalibration(num_batches=RECALIBRATION_BATCHES), monitor]


def _figures(problem: Problem) -> tuple[Figure, ...]:
    metric = problem.monitor.replace("_", " ")
    percentiles = Figure(
        name="percentiles",
        caption=(
            "What the nonlinearity of one unit receives on a fixed probe set: its 15th, 50th and 85th percentile "
            "over steps (the paper's figure 1 b, c)."
        ),
        draw=_draw_percentiles,
    )
    differences = Figure(
        name="differences",
        caption=(
            f"{metric} at the last step, each arm minus the one without batch norm, in pairs of equal seeds. In one "
            "run each of CaffeNet on ImageNet (ducha-aiki/caffenet-benchmark) accuracy rose by .007 with the norm "
            "before (.003 plain) and by .022 with it after (.028 plain); in GoogLeNet it fell by .016 and .023."
        ),
        draw=_draw_differences,
    )
    return metric_figure(problem), percentiles, *steps_figures(problem), differences


def _draw_percentiles(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    followed = results[results["quantity"].str.contains(r"_unit\d+_p", regex=True)]
    layer = study.problem.layer_of_interest or (followed["layer"].iloc[0] if len(followed) else "last")
    return figure_of(plot_percentile_bands(results, layer=layer, unit="followed", arms=labels_of(study))[0])


def _draw_differences(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    rows = compare(results, cells, study)
    metric = rows[rows["quantity"] == study.problem.monitor]
    return figure_of(
        plot_differences(
            metric,
            reference=study.reference,
            arms=labels_of(study),
            xlabel=f"difference in {study.problem.monitor.replace('_', ' ')} to {study.arm(study.reference).label}",
        )
    )
