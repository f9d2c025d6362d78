"""A small residual network on the digits, where batch norm can go on the branches or on the sums."""

import functools
from pathlib import Path
from typing import Any, Literal

from bn_lightning.analysis.problems.mnist_file import data_folder
from bn_lightning.analysis.study import Budget, Problem

BATCH_SIZE = 60


def residual_problem(
    *,
    data_dir: str | Path | None = None,
    evaluate: Literal["test", "validation"] = "test",
    lr: float = 0.02,
    blocks: int = 6,
    width: int = 64,
) -> Problem:
    """A fully connected residual network on real digits, batch 60, 1,000 steps, as a problem.

    Source: He et al. 2016, "Deep residual learning for image recognition", section 3.2, with linear layers in place of
    convolutions.

    Args:
        data_dir: Folder with MNIST; by default the one BN_LIGHTNING_DATA names, else the embedded digits.
        evaluate: The set that curves are of: "test", or "validation" for tuning.
        lr: Learning rate.
        blocks: Number of residual blocks.
        width: Units of each layer.

    Returns:
        The problem, called "residual_digits" or "residual_mnist".
    """
    folder = data_folder(data_dir)
    options: dict[str, Any] = {"lr": lr, "blocks": blocks, "width": width}
    pixels = 64 if folder is None else 784
    return Problem(
        name="residual_digits" if folder is None else "residual_mnist",
        module=functools.partial(_module, pixels=pixels, evaluate=evaluate, **options),
        data=functools.partial(_data, data_dir=None if folder is None else str(folder), evaluate=evaluate),
        monitor=f"{evaluate}_accuracy",
        mode="max",
        target=0.95,
        budget=Budget(max_steps=1000, eval_every=50),
        layer_of_interest=f"net.{blocks + 1}.second",
        trainer_options={"accelerator": "cpu"},
        options={**options, "evaluate": evaluate, "batch_size": BATCH_SIZE},
    )


def _module(**options: Any) -> Any:
    from bn_lightning.analysis.problems.residual_model import ResidualMLP

    return ResidualMLP(**options)


def _data(**options: Any) -> Any:
    from bn_lightning.analysis.problems.digits_data import DigitsData

    return DigitsData(batch_size=BATCH_SIZE, **options)
