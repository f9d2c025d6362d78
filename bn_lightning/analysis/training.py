"""Train one arm with one seed in this process, and give back its curve."""

import dataclasses
import importlib
import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bn_lightning.analysis.recorder import CurveRecorder, seed_all
from bn_lightning.analysis.study import Arm, Problem
from bn_lightning.analysis.tensorboard_hparams import cell_hparams, log_hparams
from bn_lightning.callbacks._compat import LightningModule, namespace_of
from bn_lightning.surgery.sandbox import preserve_random_state

Row = tuple[int, str, str, float]  # step, layer, quantity, value


@dataclass(frozen=True)
class Training:
    """What came of one run.

    Args:
        rows: Step, layer, quantity and value of everything recorded.
        diverged_at: Optimizer step at which weights that are not finite were found, or None.
        warnings: Class and text of every distinct warning.
    """

    rows: tuple[Row, ...]
    diverged_at: int | None
    warnings: tuple[tuple[str, str], ...]


def train(problem: Problem, arm: Arm, *, seed: int, folder: Path) -> Training:
    """Train `arm` on `problem` with the Trainer of the module's own namespace.

    Module and data are built anew right after seeding, the module first, so one seed means the same initial weights and
    the same order of the data in every arm. Runs on one intra-op thread. TensorBoard logs go to `folder`; no
    checkpoints are written. The random state and the number of threads of the process are restored.

    Args:
        problem: What is trained.
        arm: Callbacks and options.
        seed: Seed of weights and data order.
        folder: Where the logs go.

    Returns:
        The curve, and the rows of every callback that offers a `table()`.

    Raises:
        RuntimeError: If the run ended without an evaluation at the last step of its budget, and did not diverge.
        ValueError: If a scheduler waits for a metric that is not evaluated as often as an epoch ends.
        KeyboardInterrupt: On Ctrl-C, which Lightning would turn into an exit of the process.
    """
    with recorded_warnings() as caught, quiet_lightning(), preserve_random_state(), _one_thread():
        seed_all(seed)
        if arm.budget is not None:
            problem = dataclasses.replace(problem, budget=arm.budget)
        module = problem.module(**arm.options)
        data = problem.data()
        recorder = CurveRecorder(seed=seed, monitor=problem.monitor, max_steps=problem.budget.max_steps)
        callbacks = arm.callbacks()
        trainer = _trainer(namespace_of_module(module), problem, [recorder, *callbacks], folder)
        log_hparams(trainer, cell_hparams(problem, arm, seed=seed, module=module), metric=problem.monitor)
        _fit(trainer, module, data)
        recorder.check_last_step(trainer)
    rows = list(recorder.rows)
    for callback in callbacks:
        if callable(getattr(callback, "table", None)):
            table = callback.table()[["step", "layer", "quantity", "value"]]
            rows += list(table.itertuples(index=False, name=None))
    distinct = dict.fromkeys((warning.category.__name__, str(warning.message)) for warning in caught)
    return Training(tuple(rows), recorder.diverged_at, tuple(distinct))


def namespace_of_module(module: Any) -> Any:
    """The Lightning package, `pytorch_lightning` or `lightning.pytorch`, that a module's class comes from.

    Args:
        module: A LightningModule.

    Returns:
        The imported package.

    Raises:
        TypeError: If it is no LightningModule.
    """
    if isinstance(module, LightningModule):
        return namespace_of(module)
    raise TypeError(
        f"The model of a study is a LightningModule, but its factory made a {type(module).__qualname__}. Wrap it in a "
        "LightningModule with training_step, validation_step and configure_optimizers."
    )


def _trainer(namespace: Any, problem: Problem, callbacks: list[Any], folder: Path) -> Any:
    loggers = importlib.import_module(namespace.__name__ + ".loggers")
    options: dict[str, Any] = {
        "max_steps": problem.budget.max_steps,
        "max_epochs": -1,
        # Lightning counts batches here, and a budget counts optimizer steps; the recorder sees to the last one.
        "val_check_interval": problem.budget.eval_every * problem.trainer_options.get("accumulate_grad_batches", 1),
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": -1,  # the whole evaluation before training: step 0 of the curve
        "log_every_n_steps": problem.budget.eval_every,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "devices": 1,  # Lightning's default is all GPUs, in processes that would each run the whole study
        # TensorBoard shows the run as <arm>/seed_<k>.
        "logger": loggers.TensorBoardLogger(
            folder.parent.parent, name=folder.parent.name, version=folder.name, default_hp_metric=False
        ),
    }
    asked = {**options, **problem.trainer_options}
    if asked["devices"] == "auto":
        asked["devices"] = 1
    return namespace.Trainer(callbacks=callbacks, **asked)


def _fit(trainer: Any, module: Any, data: Any) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        # Lightning ignores further Ctrl-C and exits the whole process; a study has finished cells to report first.
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
    except Exception as error:
        # Evaluations of a study are spaced by steps, where a module of its own is evaluated at the end of each epoch.
        if "ReduceLROnPlateau conditioned on metric" not in str(error):
            raise
        raise ValueError(
            f"The scheduler ReduceLROnPlateau of {type(module).__name__} takes a metric at the end of every epoch, and "
            f"an epoch of {trainer.num_training_batches} batches ends before the first evaluation. Evaluate as often "
            f"as an epoch ends: eval_every={trainer.num_training_batches} (--eval-every), or fewer steps where "
            f"gradients accumulate. Lightning says: {error}"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence the lines that Lightning logs at the start of every fit."""
    names = ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric", "lightning_utilities")
    loggers = [logging.getLogger(name) for name in names]
    loggers += [
        logger
        for name, logger in logging.Logger.manager.loggerDict.items()
        # These set a level of their own, so their parent's does not count.
        if isinstance(logger, logging.Logger) and name.startswith(names) and logger.level
    ]
    levels = [(logger, logger.level) for logger in dict.fromkeys(loggers)]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


@contextmanager
def recorded_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Record warnings in place of showing them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield caught
