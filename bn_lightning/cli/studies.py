"""Commands that train and compare: demo, compare, report."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from bn_lightning.cli.saying import DONE, SOME_FAILED, complain, say

if TYPE_CHECKING:  # jsonargparse follows these when it builds the command that was asked for, and only then
    from bn_lightning.analysis.factories import DataFactory, ModuleFactory
    from bn_lightning.analysis.runner import Run
    from bn_lightning.analysis.study import Study

DEMO_ARMS = ("none", "before", "after")


def demo(
    *,
    data_dir: str | None = None,
    target: float | None = None,
    max_steps: int | None = None,
    seeds: int = 6,
    jobs: int = 2,
    engine: str = "loky",
    address: str | None = None,
    out: str = "bn_lightning_runs",
    redo: bool = False,
    typed: Sequence[str] = (),
) -> int:
    """Train one network with batch norm nowhere, before and after its nonlinearities, and compare.

    The network is the one of the paper's first experiment, on real digits. What is finished is not trained again.

    Args:
        data_dir: Folder with mnist.npz, or to download MNIST into; the embedded digits if not given.
        target: Test accuracy to time, in place of the one fixed beforehand.
        max_steps: Optimizer steps of a run.
        seeds: Number of seeds.
        jobs: Number of processes.
        engine: loky (processes here), dask (a cluster that is running), sequential, or another joblib backend.
        address: Of the Dask scheduler, as tcp://127.0.0.1:8786; its workers need to see the folder of results.
        out: Folder for results.
        redo: Train finished cells again.
        typed: The command as it was typed, for the report.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.prepare import prepare_study

    study = prepare_study("placement", arms=DEMO_ARMS, target=target, max_steps=max_steps, data_dir=data_dir)
    where = {"jobs": jobs, "engine": engine, "address": address}
    return _run(study, seeds=seeds, out=out, redo=redo, typed=typed, where=where)


def compare(
    study: str,
    *,
    arms: str | None = None,
    model: "ModuleFactory | None" = None,
    data: "DataFactory | None" = None,
    monitor: str | None = None,
    mode: Literal["max", "min"] | None = None,
    target: float | None = None,
    max_steps: int | None = None,
    eval_every: int | None = None,
    seeds: int = 6,
    jobs: int = 2,
    engine: str = "loky",
    address: str | None = None,
    out: str = "bn_lightning_runs",
    data_dir: str | None = None,
    rates: list[float] | None = None,
    rate_steps: int | None = None,
    redo: bool = False,
    typed: Sequence[str] = (),
) -> int:
    """Run a study, on digits or on your own model and data.

    Args:
        study: Name of the study, or path of a file of your own that holds one (see README, "A study of your own").
        arms: Names or patterns of the arms to run, with commas between, as --arms=none,before*; by default all.
        model: Import path of a LightningModule; its arguments follow as --model.lr=0.1.
        data: Import path of a LightningDataModule; its arguments follow as --data.batch_size=32.
        monitor: Validation metric that your module logs.
        mode: Whether higher (max, as where nothing is said) or lower (min) values of the monitor are better.
        target: Value of the metric to time.
        max_steps: Optimizer steps of a run.
        eval_every: Optimizer steps between evaluations.
        seeds: Number of seeds.
        jobs: Number of processes.
        engine: loky (processes here), dask (a cluster that is running), sequential, or another joblib backend.
        address: Of the Dask scheduler, as tcp://127.0.0.1:8786; its workers need to see the folder of results.
        out: Folder for results.
        data_dir: Folder with MNIST, in place of the embedded digits.
        rates: Multiples of your model's learning rate, as --rates=[0.1,1,10], of which each arm is given the one that
            does best on a tenth of the training data, held out for this with seeds of its own.
        rate_steps: Optimizer steps of a run that tries a rate; by default as many as of the others.
        redo: Train finished cells again, as after a change in what your code reads from files.
        typed: The command as it was typed, for the report.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.prepare import prepare_study

    chosen = prepare_study(
        study,
        arms=arms,
        model=model,
        data=data,
        monitor=monitor,
        mode=mode,
        target=target,
        max_steps=max_steps,
        eval_every=eval_every,
        data_dir=data_dir,
    )
    where = {"jobs": jobs, "engine": engine, "address": address}
    if rate_steps is not None and rates is None:
        raise ValueError("--rate-steps is the length of runs that try learning rates. Name those by --rates.")
    if rates is not None:
        chosen = _tuned(chosen, rates, max_steps=rate_steps, out=out, redo=redo, where=where)
    return _run(chosen, seeds=seeds, out=out, redo=redo, typed=typed, where=where)


def report(folder: str, *, format: Literal["html", "markdown"] = "html") -> int:
    """Write the report of a run folder again, from its files alone.

    Args:
        folder: The folder that was given as --out.
        format: html, one page that needs no other file, or markdown, which links to the folder's figures.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.console import show_comparison
    from bn_lightning.analysis.publish import publish_folder

    published = publish_folder(folder, form=format)
    show_comparison(published.summary, published.comparisons)
    for line in published.remarks:
        say(line)
    say(f"Report: {published.path}")
    return DONE


def _tuned(
    study: "Study", rates: list[float], *, max_steps: int | None, out: str, redo: bool, where: dict[str, Any]
) -> "Study":
    from pathlib import Path

    from bn_lightning.analysis.console import as_table, show
    from bn_lightning.analysis.tuning import tune_learning_rate

    # Beside the run folder, not in it: TensorBoard shows every log below the folder that it is given.
    folder = Path(out).expanduser().absolute()
    grid_folder = folder.with_name(f"{folder.name}_rates")
    tuned = tune_learning_rate(study, multiples=rates, max_steps=max_steps, out=grid_folder, redo=redo, **where)
    show(as_table(tuned.grid, "Learning rates tried on held-out training data, multiples of the model's own"))
    return tuned.study


def _run(study: "Study", *, seeds: int, out: str, redo: bool, typed: Sequence[str], where: dict[str, Any]) -> int:
    from bn_lightning.analysis.console import show_comparison
    from bn_lightning.analysis.publish import publish
    from bn_lightning.analysis.runner import CellsFailedWarning, execute

    with warnings.catch_warnings():
        # The failed cells are named below.
        warnings.simplefilter("ignore", CellsFailedWarning)
        run = execute(study, seeds=seeds, out=out, redo=redo, command=typed, **where)
    say(f"{run.trained} cells trained, {run.skipped} were finished already.")
    if not run.results.empty:
        published = publish(run.out, study=run.study, results=run.results, cells=run.cells)
        show_comparison(published.summary, published.comparisons)
        for line in published.remarks:
            say(line)
        say(f"Report:  {published.path}\nFigures: {run.out / 'figures'}\n")
        say(f"tensorboard --logdir {_quoted(run.out)}")
    return _say_what_failed(run)


def _say_what_failed(run: "Run") -> int:
    alike: dict[tuple[str, str], list[int]] = {}
    for cell in run.failures:
        alike.setdefault((cell.arm, cell.error), []).append(cell.seed)
    for (arm, error), seeds in alike.items():
        place = run.out / arm / f"seed_{seeds[0]}" / "cell.json"
        which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        complain(f"failed: {arm}, {which}: {error} ({place})")
    return SOME_FAILED if run.failures else DONE


def _quoted(path: Any) -> str:
    import shlex

    return shlex.quote(str(path))
