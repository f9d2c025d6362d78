"""How deep may a network be, at which learning rates, with and without batch norm?"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bn_lightning.analysis.module_options import takes_options
from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.studies import sensitivity
from bn_lightning.analysis.studies._factor_maps import map_figures
from bn_lightning.analysis.study import Arm, Budget, Problem, Study

DEPTHS = (3, 7, 15, 30)
"""Hidden layers."""
RATES = (0.1, 1.0, 10.0, 100.0)
"""Multiples of the module's own learning rate."""
ACTIVATIONS = {"sigmoid": "sigmoid", "relu": "ReLU"}
NORMS = sensitivity.NORMS
OWN = "own"
"""What a module has that cannot be told which depth, or nonlinearity, to have."""


def default_problem(data_dir: str | Path | None = None) -> Problem:
    """A digits network of any depth, its weights scaled by each layer's inputs, at rate 0.1 for 300 steps.

    Each layer's weights have the standard deviation gain/√inputs, so what is asked is not whether a fixed one suits the
    depth. A run learned where it ends at an accuracy of 0.5 or more, five times that of guessing.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    problem = digits_problem(data_dir=data_dir, lr=0.1)
    return dataclasses.replace(
        problem,
        module=functools.partial(problem.module, weight_std=None),
        budget=Budget(max_steps=300, eval_every=100),
        target=0.5,
        options={"lr": 0.1, "weight_std": "gain/√inputs", "evaluate": "test", "batch_size": 60},
    )


def study(problem: Problem) -> Study:
    """Train over a grid of depths and learning rates, for two nonlinearities, with and without batch norm.

    Ioffe & Szegedy (2015) say in sections 1 and 3.3 that batch norm keeps deep networks out of saturation and gradients
    from vanishing; Bjorck et al. (2018) find that without it large updates make activations explode with depth. Depth
    and nonlinearity are options of the module, `depth` and `activation`; of a module that takes no such argument the
    own one is trained, at every rate. Norms stand before the nonlinearities, and population statistics are taken anew
    before every evaluation.

    2 × 2 × 4 × 4 = 64 arms, of 300 steps on the digits: 1.5 to 14 s of one core a cell, 20 minutes for 6 seeds on two.
    8 arms for a module of one depth and nonlinearity.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    depths: Sequence[int | str] = DEPTHS if takes_options(problem.module, "depth") else (OWN,)
    activations = ACTIVATIONS if takes_options(problem.module, "activation") else {OWN: "own nonlinearity"}
    panels = {
        f"{norm}_{activation}": f"{kind}, {words}" if activation != OWN else words
        for activation, kind in {**ACTIVATIONS, OWN: ""}.items()
        for norm, words in NORMS.items()
    }
    arms = tuple(
        Arm(
            name=f"{norm}_{activation}_d{depth}_x{rate:g}",
            label=f"{panels[f'{norm}_{activation}']}, depth {depth}, rate x{rate:g}",
            factors={"norm": norm, "activation": activation, "depth": depth, "rate": rate},
            options={
                **({} if depth == OWN else {"depth": depth}),
                **({} if activation == OWN else {"activation": activation}),
            },
            callbacks=functools.partial(_callbacks, norm, rate),
        )
        for norm in NORMS
        for activation in activations
        for depth in depths
        for rate in RATES
    )
    return Study(
        name="depth",
        question="How deep may a network be, at which learning rates, with and without batch norm?",
        source="Ioffe & Szegedy 2015, sections 1 and 3.3; Bjorck et al. 2018",
        problem=problem,
        # The shallowest, at its own rate; with ReLUs, as plain layers of sigmoids learn nothing there.
        reference=f"none_{list(activations)[-1]}_d{depths[0]}_x1",
        arms=arms,
        figures=map_figures(
            problem,
            x="rate",
            y="depth",
            panel=("norm", "activation"),
            panels=panels,
            words={"rate": "learning rate, multiple of the model's own", "depth": "hidden layers"},
        ),
    )


def _callbacks(norm: str, rate: float) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.analysis.expected_warnings import ExpectedWarnings
    from bn_lightning.analysis.scaled_learning_rate import ScaledLearningRate
    from bn_lightning.callbacks.insertion import BatchNormInsertion
    from bn_lightning.callbacks.recalibration import BatchNormRecalibration

    if norm == "none":
        return [ScaledLearningRate(rate)]
    recalibration = BatchNormRecalibration(num_batches=sensitivity.RECALIBRATION_BATCHES)
    quiet = ExpectedWarnings(sensitivity.DIVERGED)
    return [quiet, ScaledLearningRate(rate), BatchNormInsertion(), recalibration]
