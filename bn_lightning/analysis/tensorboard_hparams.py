"""Rows of TensorBoard's HPARAMS table: in what a cell differs from the others, beside its metric."""

from collections.abc import Mapping
from typing import Any

from bn_lightning.analysis.study import Arm, Problem

Hparams = dict[str, str | float | bool]


def cell_hparams(problem: Problem, arm: Arm, *, seed: int, module: Any) -> Hparams:
    """What a cell is told apart by, as TensorBoard can show it.

    Args:
        problem: What is trained.
        arm: The arm.
        seed: The seed.
        module: The LightningModule, whose saved hyperparameters are shown too.

    Returns:
        Problem, arm and seed, the arm's factors and options, and the module's hyperparameters; what is no number,
        truth value or text is shown in words. Where names collide, the arm's own values are the ones shown.

    Example:
        >>> from types import SimpleNamespace
        >>> from bn_lightning.analysis.study import Budget
        >>> problem = Problem(name="tiny", module=object, data=object, monitor="loss", budget=Budget(max_steps=50))
        >>> arm = Arm(name="before", factors={"placement": "before"})
        >>> cell_hparams(problem, arm, seed=3, module=SimpleNamespace(hparams={"lr": 0.1}))
        {'lr': 0.1, 'placement': 'before', 'problem': 'tiny', 'arm': 'before', 'seed': 3}
    """
    saved = dict(getattr(module, "hparams", {}))
    own = {"problem": problem.name, "arm": arm.name, "seed": seed}
    every = {**saved, **arm.options, **arm.factors, **own}
    return {str(name): value if isinstance(value, str | int | float) else str(value) for name, value in every.items()}


def log_hparams(trainer: Any, hparams: Mapping[str, str | float | bool], *, metric: str) -> None:
    """Write a run's row of the HPARAMS table into its TensorBoard log.

    The table takes the metric's last value from the run's own scalars, so no value is written here. Lightning's
    `log_hyperparams` would write one at step 0. Runs without a TensorBoard logger are left alone.

    Args:
        trainer: A Trainer.
        hparams: Plain values by name.
        metric: Tag of the scalar that the table shows.
    """
    writer = getattr(getattr(trainer.logger, "experiment", None), "_get_file_writer", None)
    if writer is None or not trainer.is_global_zero:
        return
    from torch.utils.tensorboard.summary import hparams as summaries

    for summary in summaries(dict(hparams), {metric: 0.0}):
        writer().add_summary(summary)
