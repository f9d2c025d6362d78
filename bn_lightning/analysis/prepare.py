"""Settle what a study trains and for how long, before anything runs."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from bn_lightning.analysis.catalog import default_problem, find_study
from bn_lightning.analysis.study import Budget, Problem, Study

Factory = Callable[..., Any]
OWN_STEPS = 1000  # of a user's own model, unless max_steps says otherwise


def prepare_study(
    study: str | Path | Study,
    *,
    arms: str | Iterable[str] | None = None,
    model: Factory | None = None,
    data: Factory | None = None,
    monitor: str | None = None,
    mode: Literal["max", "min"] | None = None,
    target: float | None = None,
    max_steps: int | None = None,
    eval_every: int | None = None,
    data_dir: str | Path | None = None,
    trainer_options: Mapping[str, Any] | None = None,
) -> Study:
    """The study with the problem and budget that were asked for.

    Args:
        study: A study, or the name or file of one.
        arms: The arms to run, see `Study.only`; by default all.
        model: Makes a LightningModule, in place of the study's; needs `data` and `monitor` too.
        data: Makes a LightningDataModule.
        monitor: Validation metric to compare by.
        mode: Whether higher ("max", as where nothing is said) or lower values of `monitor` are better.
        target: Value whose first passage is timed.
        max_steps: Optimizer steps of a run.
        eval_every: Optimizer steps between evaluations.
        data_dir: Folder with MNIST, for a study by name on the package's own digits.
        trainer_options: Further arguments for the Trainer.

    Returns:
        The study to run.

    Raises:
        UnknownNameError: If there is no study of that name, or no such arm.
        TypeError: If model or data are not called to make something.
        ValueError: If options are missing or contradict each other.
    """
    own = model is not None or data is not None
    if mode is not None and monitor is None:
        raise ValueError(
            f"mode (--mode) {mode!r} says which way a metric of yours is better, but none is named. Name it by monitor "
            "(--monitor), or leave mode out: a study knows the way of its own metric."
        )
    if data_dir is not None and (own or isinstance(study, Study)):
        raise ValueError("data_dir (--data-dir) names a folder for the package's own digits; this problem has its own.")
    if own:
        problem = own_problem(model, data, monitor=monitor, mode=mode or "max")
    else:
        problem = study.problem if isinstance(study, Study) else default_problem(study, data_dir=data_dir)
        if monitor is not None:
            # Another metric than the one that the problem's target was fixed for.
            problem = dataclasses.replace(problem, monitor=monitor, mode=mode or "max", target=None)
    if target is not None:
        problem = dataclasses.replace(problem, target=target)
    problem = dataclasses.replace(
        problem,
        budget=_budget(problem.budget, max_steps, eval_every),
        trainer_options={**problem.trainer_options, **(trainer_options or {})},
    )
    chosen = study if isinstance(study, Study) else find_study(study, problem=problem)
    if not isinstance(study, Study) and chosen.problem != problem:
        fields = (field.name for field in dataclasses.fields(Problem))
        other = [name for name in fields if getattr(chosen.problem, name) != getattr(problem, name)]
        raise ValueError(
            f"study(problem) of {study} gave a Study of another problem than it was handed; other are: "
            f"{', '.join(other)}. Hand the problem on as it is, problem=problem, and settle what is trained in a "
            "function default_problem of the file, or by what is given for a run (model, target, max_steps and so on)."
        )
    chosen = dataclasses.replace(chosen, problem=problem)
    chosen = chosen if arms is None else chosen.only(arms)
    _check_options(chosen)
    return chosen


def own_problem(
    model: Factory | None, data: Factory | None, *, monitor: str | None, mode: Literal["max", "min"] = "max"
) -> Problem:
    """A problem made of a user's own module and data.

    Args:
        model: Makes a LightningModule.
        data: Makes a LightningDataModule.
        monitor: Validation metric to compare by.
        mode: Whether higher or lower is better.

    Returns:
        The problem, named after the module, with 1,000 steps.

    Raises:
        TypeError: If model or data is an object and not what makes one.
        ValueError: If one of the three is missing.
    """
    missing = [name for name, value in (("model", model), ("data", data), ("monitor", monitor)) if value is None]
    if model is None or data is None or monitor is None:
        raise ValueError(
            f"A problem of your own needs model, data and monitor; missing: {', '.join(missing)}. model and data make "
            "a LightningModule and a LightningDataModule, monitor is a validation metric that the module logs."
        )
    for name, factory in (("model", model), ("data", data)):
        # A LightningModule is callable too, but calling it runs its forward.
        if not callable(factory) or (hasattr(factory, "prepare_data") and not isinstance(factory, type)):
            raise TypeError(
                f"{name} is called once for every cell, so that each starts afresh, but a "
                f"{type(factory).__qualname__} was given. Pass its class, or a function: {name}=lambda: ..."
            )
    budget = Budget(max_steps=OWN_STEPS)
    return Problem(name=_name_of(model), module=model, data=data, monitor=monitor, mode=mode, budget=budget)


def _name_of(factory: Any) -> str:
    """Name of the class that a factory makes, or of the function that it is."""
    while hasattr(factory, "func"):
        # The command line hands over a partial of a helper, with the class among its arguments.
        classes = [argument for argument in factory.args if isinstance(argument, type)]
        factory = classes[0] if classes else factory.func
    name = getattr(factory, "__qualname__", type(factory).__qualname__)
    return str(name).rpartition(".<locals>.")[2].replace("<lambda>", "lambda")


def _budget(budget: Budget, max_steps: int | None, eval_every: int | None) -> Budget:
    steps = budget.max_steps if max_steps is None else max_steps
    every = budget.eval_every if eval_every is None else eval_every
    if eval_every is None and steps > 0 and steps % every:
        # The last evaluation must fall on the last step; keep about the spacing.
        every = min(every, steps)
        every = next((n for n in range(every, every // 5, -1) if steps % n == 0), every)
    return Budget(max_steps=steps, eval_every=every, seeds=budget.seeds)


def _check_options(study: Study) -> None:
    for arm in study.arms:
        try:
            signature = inspect.signature(study.problem.module)
        except ValueError:  # some callables tell nothing of their arguments before they are called
            continue
        try:
            signature.bind(**arm.options)
        except TypeError as error:
            asked = ", ".join(f"{name}={value!r}" for name, value in arm.options.items()) or "no arguments"
            raise ValueError(
                f"Arm {arm.name!r} makes the model of problem {study.problem.name!r} with {asked}, which it does not "
                f"take: {error}. Give a model that does, for instance by lambda, or leave the arm out."
            ) from error
