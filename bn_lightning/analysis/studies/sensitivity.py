"""How far may the learning rate and the scale of the initial weights be off, with and without batch norm?"""

import functools
from pathlib import Path
from typing import Any

from bn_lightning.analysis.studies._factor_maps import map_figures
from bn_lightning.analysis.studies._relu_digits import relu_digits
from bn_lightning.analysis.study import Arm, Budget, Problem, Study

RATES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Multiples of the module's own learning rate."""
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Multiples of the module's own initial weights."""
NORMS = {"none": "without BN", "before": "BN before"}
RECALIBRATION_BATCHES = 20
DIVERGED = "The population statistics of .* are NaN or infinite"
"""The warning of a run that diverged, which is what the study looks for; its cells are labelled so."""


def default_problem(data_dir: str | Path | None = None) -> Problem:
    """The digits network with ReLUs, weights of He's standard deviation and rate 0.1, for 300 steps.

    A run learned where it ends at an accuracy of 0.5 or more, five times that of guessing.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    return relu_digits(data_dir, Budget(max_steps=300, eval_every=100), target=0.5)


def study(problem: Problem) -> Study:
    """Train over a grid of learning rates and scales of the initial weights, with and without batch norm.

    Ioffe & Szegedy (2015) say in section 3.3 that batch norm makes training resilient to the scale of the parameters,
    BN(Wu) = BN((aW)u), and lets the rate be higher; in section 4.1 the networks start from small Gaussian weights. They
    give no grid. Both factors are multiples of what the module says itself, so the study takes any module. Norms
    stand before the nonlinearities, and population statistics are taken anew before every evaluation.

    2 × 5 × 5 = 50 arms, of 300 steps on the digits: 2 s of one core a cell, 5 minutes for 6 seeds on two.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    arms = tuple(
        Arm(
            name=f"{norm}_w{scale:g}_x{rate:g}",
            label=f"{words}, weights x{scale:g}, rate x{rate:g}",
            factors={"norm": norm, "scale": scale, "rate": rate},
            callbacks=functools.partial(_callbacks, norm, scale, rate),
        )
        for norm, words in NORMS.items()
        for scale in SCALES
        for rate in RATES
    )
    return Study(
        name="sensitivity",
        question="How far may learning rate and initial weights be off, with and without batch norm?",
        source="Ioffe & Szegedy 2015, section 3.3",
        problem=problem,
        reference="none_w1_x1",
        arms=arms,
        figures=map_figures(
            problem,
            x="rate",
            y="scale",
            panel=("norm",),
            panels=NORMS,
            words={"rate": "learning rate, multiple of the model's own", "scale": "initial weights, multiple"},
        ),
    )


def _callbacks(norm: str, scale: float, rate: float) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.analysis.expected_warnings import ExpectedWarnings
    from bn_lightning.analysis.model_changes.scaled_init import ScaledInit
    from bn_lightning.analysis.scaled_learning_rate import ScaledLearningRate
    from bn_lightning.callbacks.insertion import BatchNormInsertion
    from bn_lightning.callbacks.recalibration import BatchNormRecalibration

    changes = [ScaledInit(scale), ScaledLearningRate(rate)]
    if norm == "none":
        return changes
    recalibration = BatchNormRecalibration(num_batches=RECALIBRATION_BATCHES)
    return [ExpectedWarnings(DIVERGED), *changes, BatchNormInsertion(), recalibration]
