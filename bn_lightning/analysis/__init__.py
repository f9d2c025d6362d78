"""Comparisons of training runs with error bars."""

from bn_lightning.analysis.results import load_results
from bn_lightning.analysis.run import run_study
from bn_lightning.analysis.study import Arm, Budget, Figure, Problem, Study

__all__ = [
    "Arm",
    "Budget",
    "Figure",
    "Problem",
    "Study",
    "load_results",
    "run_study",
]
