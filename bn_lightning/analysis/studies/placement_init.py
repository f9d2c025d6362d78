"""Does batch norm make the initialisation of the weights matter less?"""

from pathlib import Path
from typing import Any

from bn_lightning.analysis.studies import placement_activation
from bn_lightning.analysis.studies._crossed import Cross, Level, Place, crossed_study
from bn_lightning.analysis.study import Problem, Study


def default_problem(data_dir: str | Path | None = None) -> Problem:
    """The digits network with ReLUs, for 1,000 steps, as in `placement_activation`.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    return placement_activation.default_problem(data_dir=data_dir)


def study(problem: Problem) -> Study:
    """Four initialisations, each without batch norm, with it before and with it after: 12 arms.

    All linear and convolutional layers are drawn anew (`Initialise`): Gaussian with standard deviation 0.01, Kaiming's,
    orthogonal, and LSUV, scaled before the norms come. With one seed the three places start from the same weights.
    At the default size 72 cells of some 6 s each on one busy core: about 4 minutes on two.

    Published, of CaffeNet on ImageNet at 128 pixels, accuracy of one run each (ducha-aiki/caffenet-benchmark,
    batchnorm.md): without norm LSUV .471; before, with scale and shift, LSUV .478, orthogonal .482; after LSUV .499,
    orthogonal .500. Of GoogLeNet the other way round: without .619; before LSUV .603,
    orthogonal .607; after LSUV .596, orthogonal .584.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    return crossed_study(
        CROSS,
        problem,
        name="placement_init",
        question="Does batch norm make the initialisation matter less, and does its best place depend on it?",
        source="ducha-aiki/caffenet-benchmark (batchnorm.md); Mishkin & Matas 2016",
        reference="kaiming_none",
    )


def _initialised(scheme: str, place: Place) -> list[Any]:
    from bn_lightning.analysis.model_changes.initialisation import Initialise

    return [Initialise(scheme)]


_WORDS = {"gaussian": "Gaussian, std 0.01", "kaiming": "Kaiming", "orthogonal": "orthogonal", "lsuv": "LSUV"}

CROSS = Cross(
    factor="initialisation",
    levels=[Level(name, words, name) for name, words in _WORDS.items()],
    change=_initialised,
    published={
        "orthogonal": {"before": 0.482, "after": 0.500},
        "lsuv": {"none": 0.471, "before": 0.478, "after": 0.499},
    },
    note="scale and shift before alone; GoogLeNet reverses it: none .619, before .603 and .607, after .596 and .584",
)
