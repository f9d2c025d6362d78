"""The tables of a run folder: one long table of results, one row per cell, written in one step each."""

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from platform import node
from typing import Any

import pandas as pd

from bn_lightning.errors import RunFolderError

RESULT_COLUMNS = ("study", "arm", "seed", "step", "layer", "quantity", "value")
CELL_COLUMNS = ("study", "arm", "seed", "factors", "label", "status", "seconds", "configuration_hash")


def results_table(rows: Iterable[tuple[Any, ...]]) -> pd.DataFrame:
    """Make the long table: one row per cell, optimizer step, layer and quantity.

    Args:
        rows: Values in the order of `RESULT_COLUMNS`.

    Returns:
        A table with the columns study, arm, seed, step, layer, quantity and value (float64); layer is empty for
        quantities of the whole model.

    Example:
        >>> results_table([("placement", "none", 0, 50, "", "test_accuracy", 0.5)]).value.tolist()
        [0.5]
    """
    table = pd.DataFrame(list(rows), columns=list(RESULT_COLUMNS))
    return _typed(table)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    text = {
        name: table[name].astype(object).fillna("").astype(str).astype(object)
        for name in ("study", "arm", "layer", "quantity")
    }
    numbers = {"seed": table["seed"].astype("int64"), "step": table["step"].astype("int64")}
    return table.assign(**text, **numbers, value=table["value"].astype("float64"))


def load_results(out: str | Path) -> pd.DataFrame:
    """Read the results of a run folder.

    Args:
        out: The folder that `run_study` or the command line wrote to.

    Returns:
        The long table with the columns study, arm, seed, step, layer, quantity and value.

    Raises:
        RunFolderError: If the folder holds no results, or a file that cannot be read as such.
    """
    return read_results(Path(out) / "results.csv")


def read_results(path: Path) -> pd.DataFrame:
    """Read one file of results; values come back to the bit.

    Args:
        path: A CSV file with the columns of `RESULT_COLUMNS`.

    Returns:
        The long table.

    Raises:
        RunFolderError: If the file is missing or is not such a table.
    """
    table = _read_csv(path, RESULT_COLUMNS)
    try:
        # Python's own parser: that of pandas rounds the last bit in some of its versions.
        return _typed(table.assign(value=[float(text) for text in table["value"]]))
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{path} holds values that are no results: {error}. {_WAY_OUT}") from error


def load_cells(out: str | Path) -> pd.DataFrame:
    """Read which cells a run folder holds and how they ended.

    Args:
        out: The run folder.

    Returns:
        One row per cell with the columns study, arm, seed, factors (JSON), label, status, seconds and
        configuration_hash.

    Raises:
        RunFolderError: If the folder holds no such file, or one that cannot be read.
    """
    table = _read_csv(Path(out) / "cells.csv", CELL_COLUMNS)
    names = [name for name in CELL_COLUMNS if name not in ("seed", "seconds")]
    return table.assign(**{name: table[name].astype(object).fillna("").astype(str).astype(object) for name in names})


_TEXT = ("study", "arm", "layer", "quantity", "value", "factors", "label", "status", "configuration_hash")
_WAY_OUT = "Name the folder of a finished comparison, or run the comparison again."


def _read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        # An arm called "none" or "NA" is a name, so only the empty field is a missing value.
        # An arm called "1e-1" is a name too.
        table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(_TEXT, str))
    except FileNotFoundError as error:
        raise RunFolderError(f"There is no {path.name} in {path.parent}. {_WAY_OUT}") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read as a table: {error}. {_WAY_OUT}") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise RunFolderError(f"{path} lacks the columns {', '.join(missing)}. {_WAY_OUT}")
    return table[list(columns)]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, so that a reader finds the old file or the new one but never half of one.

    Args:
        path: Where to.
        table: The table; its index is not written.
    """
    buffer = io.StringIO()
    table.to_csv(buffer, index=False)
    write_text(path, buffer.getvalue())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, so that a reader finds the old one or the new one but never half of one.

    Args:
        path: Where to.
        content: JSON types only.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and move it there; its folder is made if need be.

    Args:
        path: Where to.
        text: What to write.

    Raises:
        RunFolderError: If it cannot be written, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines, which may share their number, write into one run folder.
    part = path.with_name(f".{path.name}.{node()}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error.strerror or error}. What was written before is whole; make room, or "
            "name another place (--out), and run the same again."
        ) from error
    finally:
        part.unlink(missing_ok=True)
