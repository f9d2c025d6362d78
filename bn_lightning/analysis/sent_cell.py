"""A cell on its way to another process, which must hold the same versions of the user's modules."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import cloudpickle

from bn_lightning.analysis.cell import Cell, Outcome, run_cell
from bn_lightning.analysis.own_code import check_same_code, own_code, own_folders
from bn_lightning.analysis.worker_process import WorkerError


@dataclass(frozen=True)
class SentCell:
    """A cell, pickled by value where it must be.

    Args:
        pickled: The cell.
        code: What the user's modules do where it comes from.
        folders: Where they were imported from.
        parent: Process that hands out cells, see `run_cell`.
    """

    pickled: bytes
    code: Mapping[str, str]
    folders: tuple[str, ...]
    parent: int


def sent(cells: Iterable[Cell], *, parent: int) -> Iterator[SentCell]:
    """Make cells ready for other processes.

    Args:
        cells: What to run.
        parent: Process that hands them out.

    Yields:
        One by one.
    """
    code, folders = own_code(), own_folders()
    for cell in cells:
        yield SentCell(cloudpickle.dumps(cell), code, folders, parent)


def run_sent(sent_cell: SentCell) -> Outcome:
    """Load a cell in the process that is to train it, and run it.

    Args:
        sent_cell: The cell.

    Returns:
        How it ended.

    Raises:
        WorkerError: If it cannot be loaded here, or this process holds another version of a module of the user's.
    """
    for folder in (os.getcwd(), *sent_cell.folders):
        # A command, unlike `python -m`, does not look into the folder that it is called from.
        if folder not in sys.path and os.path.isdir(folder):
            sys.path.append(folder)
    try:
        cell: Cell = cloudpickle.loads(sent_cell.pickled)
    except Exception as error:
        raise WorkerError(
            f"A worker, in {os.getcwd()}, could not load a cell ({type(error).__name__}: {error}). Let it start where "
            "your modules can be imported, in their folder or with PYTHONPATH, and with the same packages."
        ) from error
    check_same_code(sent_cell.code)
    return run_cell(cell, parent=sent_cell.parent)
