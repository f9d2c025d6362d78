"""The one call: settle a study, run its cells, write its report, return its table."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bn_lightning.analysis.prepare import prepare_study
from bn_lightning.analysis.publish import publish
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.study import Study


def run_study(
    study: str | Path | Study,
    *,
    arms: str | Iterable[str] | None = None,
    model: Callable[..., Any] | None = None,
    data: Callable[..., Any] | None = None,
    monitor: str | None = None,
    mode: Literal["max", "min"] | None = None,
    target: float | None = None,
    max_steps: int | None = None,
    eval_every: int | None = None,
    seeds: int | Iterable[int] | None = None,
    jobs: int = 1,
    engine: str = "loky",
    address: str | None = None,
    out: str | Path = "bn_lightning_runs",
    data_dir: str | Path | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    redo: bool = False,
    progress: bool = True,
    report: bool = True,
) -> pd.DataFrame:
    """Train every arm of a study with every seed, and return one long table of what was measured.

    One seed means the same initial weights and the same order of the data in every arm. Each cell, one arm with one
    seed, builds module and data anew, runs on one thread with the Trainer of the module's own namespace, and writes its
    files when it is finished. Cells that are finished with the same configuration are not trained again. Warns of cells
    that failed (CellsFailedWarning) and of what the package itself warned of inside the cells.

    Args:
        study: A study, the name of one of the package's own, or the path of a file of your own, ending in `.py`, see
            `find_study`.
        arms: Names or fnmatch patterns of the arms to run, see `Study.only`; by default all.
        model: Makes a LightningModule, in place of the study's; needs `data` and `monitor` too.
        data: Makes a LightningDataModule, in place of the study's.
        monitor: Validation metric to compare by, as the module logs it.
        mode: Whether higher ("max", as where nothing is said) or lower values of `monitor` are better.
        target: Value of the metric whose first passage is timed; fix it before the runs.
        max_steps: Optimizer steps of a run.
        eval_every: Optimizer steps between evaluations; step 0, before any training, is evaluated too.
        seeds: How many seeds, 0 … n - 1, or which ones; 6 in the package's own studies.
        jobs: Number of processes; one trains in this process.
        engine: "loky" (processes on this machine), "dask" (a cluster that is running, whose workers see `out` under the
            same path), "sequential", or another backend that was registered with joblib, such as Ray's.
        address: Of the Dask scheduler, such as "tcp://127.0.0.1:8786".
        out: The run folder; made if need be.
        data_dir: Folder with MNIST, in place of the embedded digits.
        trainer_options: Further arguments for the Trainer, such as `{"accelerator": "gpu"}`. With several devices, as
            `{"accelerator": "gpu", "devices": 2, "strategy": "ddp"}`, torchrun starts a process for each in every cell;
            what is recorded is what the first one logs, so log with `sync_dist=True`.
        redo: Train finished cells again.
        progress: Show a progress bar over cells.
        report: Write `report.html` and `figures/` into the run folder.

    Returns:
        The table with the columns study, arm, seed, step, layer, quantity and value; steps are optimizer steps from 0.

    Raises:
        UnknownNameError: If there is no such study, arm or engine.
        ClusterError: If the Dask cluster cannot be reached or used.
        RunFolderError: If the run folder belongs to another study, or a data file cannot be read.
        TypeError: If model or data are objects and not what makes them.
        ValueError: If options are missing or contradict each other.
        StudyInterrupted: On Ctrl-C, after the finished cells were gathered; a KeyboardInterrupt.

    Example:
        ::

            results = run_study("placement", seeds=2, max_steps=200, out="runs/first_look")
    """
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
        trainer_options=trainer_options,
    )
    run = execute(chosen, seeds=seeds, jobs=jobs, engine=engine, address=address, out=out, redo=redo, progress=progress)
    if report and not run.results.empty:
        publish(run.out, study=run.study, results=run.results, cells=run.cells)
    return run.results
