"""A study of one's own: which norm, batch, layer, group or RMS, for a sigmoid network on digits?

    bn-lightning compare examples/which_norm.py --jobs 2
    bn-lightning compare examples/which_norm.py --model my.LitNet --data my.DigitsData --monitor val_acc

The command looks for a function `study`, which is handed the problem and gives a Study. Without `--model` the problem
is that of `default_problem`, or the digits of the package where a file has none.
"""

# %%
import dataclasses
import functools
from pathlib import Path
from typing import Any

from bn_lightning.analysis import Arm, Budget, Problem, Study
from bn_lightning.analysis.problems.digits import digits_problem

NORMS = {"none": "without norm", "batch": "batch norm", "layer": "layer norm", "group": "group norm", "rms": "RMS norm"}


# %% What is trained. With `--data-dir` the digits are those of MNIST.
def default_problem(data_dir: str | Path | None = None) -> Problem:
    """The sigmoid network of the package on digits, for 500 steps."""
    problem = digits_problem(data_dir=data_dir)
    return dataclasses.replace(problem, budget=Budget(max_steps=500, eval_every=25), target=0.9)


# %% What is compared. An arm makes its callbacks anew for every run.
def study(problem: Problem) -> Study:
    """Compare norms before the nonlinearities."""
    arms = tuple(
        Arm(name=norm, label=label, factors={"norm": norm}, callbacks=functools.partial(callbacks, norm))
        for norm, label in NORMS.items()
    )
    return Study(
        name="which_norm",
        question="Which norm before the nonlinearities lets the network learn soonest?",
        problem=problem,
        arms=arms,
        reference="none",
    )


def callbacks(norm: str) -> list[Any]:
    """The callbacks of an arm."""
    from bn_lightning.callbacks import BatchNormInsertion, BatchNormRecalibration

    if norm == "none":
        return []
    insertion = BatchNormInsertion(norm=norm, norm_options={"num_groups": 10} if norm == "group" else None)
    return [insertion, *([BatchNormRecalibration(num_batches=20)] if norm == "batch" else [])]
