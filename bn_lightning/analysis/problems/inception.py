"""The problem of the paper's second experiment, made small: an Inception-style network reads digits."""

import functools
from pathlib import Path
from typing import Any, Literal

from bn_lightning.analysis.problems.mnist_file import data_folder
from bn_lightning.analysis.study import Budget, Problem

STEPS = 1_000


def inception_problem(
    *,
    data_dir: str | Path | None = None,
    evaluate: Literal["test", "validation"] = "test",
    lr: float = 0.01,
    width: int = 4,
) -> Problem:
    """A small Inception-style network on real digits, batch 60, as a problem; see `Inception` for how it is trained.

    The embedded 8 × 8 digits by default, MNIST's 28 × 28 with a folder. There is no target: fix one by pilot runs.

    Source: Ioffe & Szegedy 2015, section 4.2, on ImageNet with 13.6 million parameters; this one has 31,000.

    Args:
        data_dir: Folder with MNIST; by default the one BN_LIGHTNING_DATA names, else the embedded digits.
        evaluate: The set that curves are of: "test", or "validation" for tuning.
        lr: Initial learning rate.
        width: An eighth of each module's channels.

    Returns:
        The problem, called "digits_inception" or "mnist_inception".
    """
    folder = data_folder(data_dir)
    options: dict[str, Any] = {"lr": lr, "width": width}
    return Problem(
        name="digits_inception" if folder is None else "mnist_inception",
        module=functools.partial(_module, pixels=64 if folder is None else 784, evaluate=evaluate, **options),
        data=functools.partial(_data, data_dir=None if folder is None else str(folder), evaluate=evaluate),
        monitor=f"{evaluate}_accuracy",
        mode="max",
        budget=Budget(max_steps=STEPS, eval_every=20),
        trainer_options={"accelerator": "cpu"},
        options={**options, "evaluate": evaluate, "batch_size": 60},
    )


def _module(**options: Any) -> Any:
    from bn_lightning.analysis.problems.inception_model import Inception

    return Inception(**options)


def _data(**options: Any) -> Any:
    from bn_lightning.analysis.problems.digits_data import DigitsData

    return DigitsData(**options)
