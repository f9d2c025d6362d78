"""In a residual network, does batch norm belong on the sum or on each branch?"""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.plots.layers import plot_over_depth
from bn_lightning.analysis.plots.standard import figure_of, labels_of, standard_figures
from bn_lightning.analysis.problems.residual import residual_problem
from bn_lightning.analysis.studies._one_factor import one_factor_arms
from bn_lightning.analysis.study import Figure, Problem, Study

SITES = {
    "none": "without BN",
    "sum": "BN on the sum",
    "branch": "BN on each branch",
    "both": "BN on branches and sum",
}
RECALIBRATION_BATCHES = 50
RECORDINGS = 20  # of what the nonlinearities receive, in a whole run
_SPREAD = "preactivation_var"


def default_problem(data_dir: str | Path | None = None) -> Problem:
    """A fully connected network of six residual blocks on the digits, for 1,000 steps.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    return residual_problem(data_dir=data_dir)


def study(problem: Problem) -> Study:
    """Compare batch norm on what a nonlinearity receives, also where that is a sum, with batch norm on the branches.

    Ioffe & Szegedy (2015, section 3.2) normalise Wu + b rather than u, because u, the output of another nonlinearity,
    changes its shape in training and Wu + b is "more Gaussian". The sum of a residual block holds both: u by the skip,
    Wu + b by the branch. He et al. (2016) normalise each branch before the sum, so the skip stays an identity and the
    variance of the sums grows with depth. Arms: none, `sum` (`BatchNormInsertion()`), `branch`
    (`BatchNormInsertion(site="affine")`) and both. In a model without additions the last three are one.

    Recorded besides the metric: the variance of what every nonlinearity receives. Neither paper compares the two sites,
    so there is no published number to hold the result against. At the default size 24 cells of some 16 s each on one
    busy core: about 4 minutes on two.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    bare = Study(
        name="site",
        question="In a residual network, does batch norm belong on the sum or on each branch?",
        source="Ioffe & Szegedy 2015, section 3.2; He et al. 2016, section 3.4",
        problem=problem,
        reference="none",
        arms=one_factor_arms("site", SITES, _callbacks, problem),
    )
    depth = Figure(
        name="variance_over_depth",
        caption="Variance over samples and units of what each nonlinearity receives, named by the layer before it, at "
        "the last recording, in the order of the forward: mean over seeds.",
        draw=_draw_depth,
    )
    return dataclasses.replace(bare, figures=(*standard_figures(bare), depth))


def _callbacks(site: str, max_steps: int) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.analysis.model_changes.norms_on_branches_and_sums import NormsOnBranchesAndSums
    from bn_lightning.callbacks.insertion import BatchNormInsertion
    from bn_lightning.callbacks.monitor import ActivationMonitor
    from bn_lightning.callbacks.recalibration import BatchNormRecalibration

    monitor = ActivationMonitor(every_n_steps=max(1, max_steps // RECORDINGS), warn=False, figures=False)
    if site == "none":
        return [monitor]
    if site == "both":
        norms: Any = NormsOnBranchesAndSums()
    else:
        norms = BatchNormInsertion(site="affine" if site == "branch" else "nonlinearity")
    return [norms, BatchNormRecalibration(num_batches=RECALIBRATION_BATCHES), monitor]


def last_recorded(results: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """The rows of a quantity at the last step at which each run recorded it.

    Args:
        results: The long table.
        quantity: Its name.

    Returns:
        Those rows.
    """
    rows = results[results["quantity"] == quantity]
    last = rows.groupby(["arm", "seed"])["step"].transform("max")
    return rows[rows["step"] == last]


def _draw_depth(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    rows = last_recorded(results, _SPREAD)
    axes = plot_over_depth(rows, {_SPREAD: "variance of pre-activations"}, arms=labels_of(study))
    return figure_of(axes[0])
