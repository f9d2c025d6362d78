"""Does batch norm's best place depend on the nonlinearity?"""

import dataclasses
from pathlib import Path
from typing import Any

from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.studies._crossed import Cross, Level, Place, crossed_study
from bn_lightning.analysis.study import Budget, Problem, Study


def default_problem(data_dir: str | Path | None = None) -> Problem:
    """The digits network with ReLUs, for 1,000 steps.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    problem = digits_problem(data_dir=data_dir, activation="relu", lr=0.1, weight_std=0.1)
    return dataclasses.replace(problem, budget=Budget(max_steps=1000, eval_every=50))


def study(problem: Problem) -> Study:
    """Eleven nonlinearities, each without batch norm, with it before and with it after: 33 arms.

    The nonlinearities between the model's layers are swapped for those of the arm (`SwapActivations`); they have to
    be modules. Weights and learning rate are the same in all arms but maxout, whose layers get a second piece and so
    twice the parameters: what suits one nonlinearity at this rate need not suit another, so read along the rows. At the
    default size 198 cells of some 6 s each on one busy core: about 10 minutes on two.

    Published, of CaffeNet on ImageNet at 128 pixels with LSUV initialisation, accuracy of one run each
    (ducha-aiki/caffenet-benchmark, Activations.md and batchnorm.md; norms without scale and shift):

    | | without | after |
    | --- | --: | --: |
    | ReLU | .471 | .499 (before: .474) |
    | RReLU | .478 | .500 |
    | very leaky ReLU | .469 | |
    | PReLU | .485 | .503 |
    | ELU | .488 | .498 |
    | SELU | .470 | |
    | maxout, √2 narrower | .482 | .487 |
    | sigmoid | | .475 |
    | tanh | .401 | .448 |
    | none | .389 | .384 |

    Args:
        problem: What to train; its model holds no norms and calls its nonlinearities as modules.

    Returns:
        The study.
    """
    return crossed_study(
        CROSS,
        problem,
        name="placement_activation",
        question="Does it depend on the nonlinearity whether batch norm belongs before or after it?",
        source="ducha-aiki/caffenet-benchmark (batchnorm.md, Activations.md); Mishkin et al. 2017",
        reference="relu_none",
    )


def _swapped(activation: str, place: Place) -> list[Any]:
    from bn_lightning.analysis.model_changes.swap_activations import SwapActivations

    return [SwapActivations(activation, placement="after" if place == "after" else "before")]


_WORDS = {
    "relu": "ReLU",
    "rrelu": "RReLU",
    "leaky_relu": "LeakyReLU 1/3",
    "prelu": "PReLU",
    "elu": "ELU",
    "selu": "SELU",
    "gelu": "GELU",
    "maxout": "Maxout",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "none": "none (linear)",
}

CROSS = Cross(
    factor="activation",
    levels=[Level(name, words, name) for name, words in _WORDS.items()],
    change=_swapped,
    published={
        "relu": {"none": 0.471, "before": 0.474, "after": 0.499},
        "rrelu": {"none": 0.478, "after": 0.500},
        "leaky_relu": {"none": 0.469},
        "prelu": {"none": 0.485, "after": 0.503},
        "elu": {"none": 0.488, "after": 0.498},
        "selu": {"none": 0.470},
        "maxout": {"none": 0.482, "after": 0.487},
        "sigmoid": {"after": 0.475},
        "tanh": {"none": 0.401, "after": 0.448},
        "none": {"none": 0.389, "after": 0.384},
    },
    note="norms without scale and shift, maxout √2 narrower",
)
