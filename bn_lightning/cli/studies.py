"""Commands that train and compare: demo, compare, report."""

import warnings
from typing import TYPE_CHECKING, Any, Literal

from bn_lightning.cli.saying import DONE, SOME_FAILED, complain, say

if TYPE_CHECKING:  # jsonargparse follows these when it builds the command that was asked for, and only then
    from bn_lightning.analysis.factories import DataFactory, ModuleFactory
    from bn_lightning.analysis.runner import Run
    from bn_lightning.analysis.study import Study


def demo(
    *,
    data_dir: str | None = None,
    target: float | None = None,
    max_steps: int | None = None,
    seeds: int = 6,
    jobs: int = 2,
    engine: str = "loky",
    out: str = "bn_lightning_runs",
    redo: bool = False,
) -> int:
    """Train one network with batch norm nowhere, before and after its nonlinearities, and compare.

    The network is the one of the paper's first experiment, on real digits. What is finished is not trained again.

    Args:
        data_dir: Folder with mnist.npz, or to download MNIST into; the embedded digits if not given.
        target: Test accuracy to time, in place of the one fixed beforehand.
        max_steps: Optimizer steps of a run.
        seeds: Number of seeds.
        jobs: Number of processes.
        engine: How processes are run, a joblib backend.
        out: Folder for results.
        redo: Train finished cells again.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.prepare import prepare_study

    study = prepare_study("placement", target=target, max_steps=max_steps, data_dir=data_dir)
    return _run(study, seeds=seeds, jobs=jobs, engine=engine, out=out, redo=redo)


def compare(
    study: str,
    *,
    model: "ModuleFactory | None" = None,
    data: "DataFactory | None" = None,
    monitor: str | None = None,
    mode: Literal["max", "min"] = "max",
    target: float | None = None,
    max_steps: int | None = None,
    eval_every: int | None = None,
    seeds: int = 6,
    jobs: int = 2,
    engine: str = "loky",
    out: str = "bn_lightning_runs",
    data_dir: str | None = None,
    redo: bool = False,
) -> int:
    """Run a study, on digits or on your own model and data.

    Args:
        study: Name of the study.
        model: Import path of a LightningModule; its arguments follow as --model.lr=0.1.
        data: Import path of a LightningDataModule; its arguments follow as --data.batch_size=32.
        monitor: Validation metric that your module logs.
        mode: Whether higher or lower is better.
        target: Value of the metric to time.
        max_steps: Optimizer steps of a run.
        eval_every: Optimizer steps between evaluations.
        seeds: Number of seeds.
        jobs: Number of processes.
        engine: How processes are run, a joblib backend.
        out: Folder for results.
        data_dir: Folder with MNIST, in place of the embedded digits.
        redo: Train finished cells again.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.prepare import prepare_study

    chosen = prepare_study(
        study,
        model=model,
        data=data,
        monitor=monitor,
        mode=mode,
        target=target,
        max_steps=max_steps,
        eval_every=eval_every,
        data_dir=data_dir,
    )
    return _run(chosen, seeds=seeds, jobs=jobs, engine=engine, out=out, redo=redo)


def report(folder: str) -> int:
    """Write the report of a run folder again, from its files alone.

    Args:
        folder: The folder that was given as --out.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.console import show_comparison
    from bn_lightning.analysis.publish import publish_folder

    published = publish_folder(folder)
    show_comparison(published.summary, published.comparisons)
    say(f"Report: {published.path}")
    return DONE


def _run(study: "Study", *, seeds: int, jobs: int, engine: str, out: str, redo: bool) -> int:
    from bn_lightning.analysis.console import show_comparison
    from bn_lightning.analysis.publish import publish
    from bn_lightning.analysis.runner import CellsFailedWarning, execute

    with warnings.catch_warnings():
        # The failed cells are named below.
        warnings.simplefilter("ignore", CellsFailedWarning)
        run = execute(study, seeds=seeds, jobs=jobs, engine=engine, out=out, redo=redo)
    say(f"{run.trained} cells trained, {run.skipped} were finished already.")
    if not run.results.empty:
        published = publish(run.out, study=run.study, results=run.results, cells=run.cells)
        show_comparison(published.summary, published.comparisons)
        say(f"Report:  {published.path}\nFigures: {run.out / 'figures'}\n")
        say(f"tensorboard --logdir {_quoted(run.out)}")
    return _say_what_failed(run)


def _say_what_failed(run: "Run") -> int:
    for cell in run.failures:
        place = run.out / cell.arm / f"seed_{cell.seed}" / "cell.json"
        complain(f"failed: {cell.arm}, seed {cell.seed}: {cell.error} ({place})")
    return SOME_FAILED if run.failures else DONE


def _quoted(path: Any) -> str:
    import shlex

    return shlex.quote(str(path))
