"""How much dropout does a network with batch norm still need?"""

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
    """Dropout of 0, 0.2 and 0.5, each without batch norm, with it before and with it after: 9 arms.

    The model's own dropout modules get the probability; a model without any gets them behind its nonlinearities, and
    behind the norm where that comes after (`SetDropout`). At the default size 54 cells of some 6 s each on one busy
    core: about 3 minutes on two.

    Published, of CaffeNet on ImageNet at 128 pixels with dropout on its two hidden fully connected layers, accuracy of
    one run each (ducha-aiki/caffenet-benchmark, batchnorm.md): after, 0.5 .499, 0.2 .527, 0 .513; without norm, 0.5
    .471, 0.2 .494.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    return crossed_study(
        CROSS,
        problem,
        name="placement_dropout",
        question="How much dropout does a network with batch norm need, before or after the nonlinearity?",
        source="ducha-aiki/caffenet-benchmark (batchnorm.md); Ioffe & Szegedy 2015, section 4.2.1",
        reference="p0_none",
    )


def _dropped(p: float, place: Place) -> list[Any]:
    from bn_lightning.analysis.model_changes.dropout import SetDropout

    return [SetDropout(p)]


CROSS = Cross(
    factor="dropout",
    levels=[Level(f"p{p:g}", f"dropout {p:g}", p) for p in (0.0, 0.2, 0.5)],
    change=_dropped,
    published={
        "p0": {"after": 0.513},
        "p0.2": {"none": 0.494, "after": 0.527},
        "p0.5": {"none": 0.471, "after": 0.499},
    },
    note="dropout on the fully connected layers alone, norms without scale and shift",
)
