"""What a report says of the runs behind its tables: where their curves are, which are outdated, who met the target."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pandas as pd

from bn_lightning.analysis.study import Study
from bn_lightning.analysis.targets import metric_curves, times_to_target

TENSORBOARD = "http://localhost:6006/"  # where the command that the report names serves


@dataclass(frozen=True)
class RunLink:
    """Where the curves of one run are.

    Args:
        run: Name of the run in TensorBoard.
        address: Its curves alone, in a TensorBoard on the reader's machine.
    """

    run: str
    address: str


def run_links(cells: pd.DataFrame) -> Iterator[RunLink]:
    """Link every cell to its curves.

    Args:
        cells: One row per cell.

    Yields:
        One link per cell, in the same order.

    Example:
        >>> next(run_links(pd.DataFrame({"arm": ["none"], "seed": [0]})))
        RunLink(run='none/seed_0', address='http://localhost:6006/?runFilter=%5Enone%2Fseed_0%24#timeseries')
    """
    for cell in cells.itertuples():
        run = f"{cell.arm}/seed_{cell.seed}"
        only = quote(f"^{re.escape(run)}$", safe="")
        yield RunLink(run, f"{TENSORBOARD}?runFilter={only}#timeseries")


def outdated_cells(cells: pd.DataFrame) -> Iterator[str]:
    """Say so where cells are of another configuration than the study's, as after an interrupted run with a changed one.

    Args:
        cells: One row per cell.

    Yields:
        One line, or none.
    """
    count = int((cells["status"] == "outdated").sum())
    if count:
        yield (
            f"{count} of {len(cells)} cells are outdated: they were trained with another configuration and not yet "
            "with this one, so none of their results are shown. Run the same again to train them."
        )


def unreached_target(results: pd.DataFrame, study: Study) -> Iterator[str]:
    """Say so where no run at all reached the target, as then no time can be compared.

    Args:
        results: The long table.
        study: The study.

    Yields:
        One sentence, or none.
    """
    problem = study.problem
    if problem.target is None or not (results["quantity"] == problem.monitor).any():
        return
    if times_to_target(results, study)["censored"].all():
        values = metric_curves(results, problem.monitor)["value"]
        values = values[np.isfinite(values)]
        best = values.max() if problem.mode == "max" else values.min()
        yield (
            f"No run reached the target, {problem.monitor} {problem.target:g}; the best value of any run was "
            f"{best:.4g}. Times cannot be compared. Train longer (--max-steps), or fix another target (--target), for "
            "which finished runs are not trained again."
        )
