"""The long table of a monitor: held compactly while it grows, written into run folders as CSV or Parquet."""

import os
from array import array
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bn_lightning.errors import UnknownNameError

if TYPE_CHECKING:
    import pandas

COLUMNS = ("step", "layer", "quantity", "value")

TableFormat = Literal["csv", "parquet"]


class ActivationTable:
    """Collects step, layer, quantity and value in 24 bytes a row.

    A run of 150 layers has some 2,000 rows a recorded step, so tuples would take gigabytes before it ends.

    Example:
        >>> table = ActivationTable()
        >>> table.add(3, "net.0", "preactivation_mean", 0.5)
        >>> table.frame().to_dict("records")
        [{'step': 3, 'layer': 'net.0', 'quantity': 'preactivation_mean', 'value': 0.5}]
    """

    def __init__(self) -> None:
        self._steps, self._values = array("q"), array("d")
        self._layers, self._quantities = _Words(), _Words()

    def add(self, step: int, layer: str, quantity: str, value: float) -> None:
        """Add a row.

        Args:
            step: The optimizer step.
            layer: The layer's name.
            quantity: What was measured.
            value: The number.
        """
        self._steps.append(step)
        self._layers.append(layer)
        self._quantities.append(quantity)
        self._values.append(value)

    def frame(self) -> "pandas.DataFrame":
        """All rows so far.

        Returns:
            A DataFrame with the columns step, layer, quantity, value.
        """
        import numpy as np
        import pandas as pd

        # Copies, since an array that shares its memory can grow no more.
        return pd.DataFrame(
            {
                "step": np.array(self._steps, dtype="int64"),
                "layer": self._layers.decoded(),
                "quantity": self._quantities.decoded(),
                "value": np.array(self._values, dtype="float64"),
            }
        )


class _Words:
    """A growing column of words, each kept once."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._codes = array("i")

    def append(self, word: str) -> None:
        self._codes.append(self._number.setdefault(word, len(self._number)))

    def decoded(self) -> "pandas.Series":
        import numpy as np
        import pandas as pd

        words = pd.Series(list(self._number), dtype="str")
        return words.take(np.array(self._codes, dtype="int64")).reset_index(drop=True)


def checked_table_format(name: str) -> str:
    """The format itself, once what writes it is known to be installed.

    Args:
        name: What was asked for.

    Returns:
        "csv" or "parquet".

    Raises:
        UnknownNameError: If it is neither.
        ModuleNotFoundError: If nothing that writes Parquet is installed.
    """
    if name not in ("csv", "parquet"):
        raise UnknownNameError(f"There is no table_format {name!r}: write the table as 'csv' or as 'parquet'.")
    if name == "parquet" and not any(map(find_spec, ("pyarrow", "fastparquet"))):
        raise ModuleNotFoundError(
            "table_format='parquet' needs pyarrow or fastparquet, and neither is installed: `pip install pyarrow`, or "
            "take table_format='csv'."
        )
    return name


def write_table(table: "pandas.DataFrame", path: Path) -> None:
    """Write a table, whole or not at all, in the format that the file's ending names.

    Rows of a run that this one resumes, of steps before its first, are kept. NaN is an empty field.

    Args:
        table: Columns step, layer, quantity, value.
        path: Ends with .csv or .parquet; its folder is made.

    Raises:
        OSError: If it cannot be written. Nothing of it is left then, and an earlier file stays as it was.
        ValueError: If the file there is no such table.
    """
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and len(table):
        earlier = _read(path)
        table = pd.concat([earlier[earlier["step"] < table["step"].min()], table], ignore_index=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        else:
            table.to_csv(partial, index=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> "pandas.DataFrame":
    import pandas as pd

    if path.suffix == ".parquet":
        earlier = pd.read_parquet(path)
    else:
        earlier = pd.read_csv(path, keep_default_na=False, na_values={"value": [""]})
    if tuple(earlier.columns) != COLUMNS:
        raise ValueError(f"the file there has the columns {', '.join(earlier.columns)}, not {', '.join(COLUMNS)}")
    return earlier


def write_tables(table: "pandas.DataFrame", folders: Iterable[Path], name: str) -> list[str]:
    """Write a table into several folders; one that refuses does not keep the others from it.

    Args:
        table: Columns step, layer, quantity, value.
        folders: Where to.
        name: Of the file.

    Returns:
        What went wrong, a text for each folder that refused.
    """
    refused = []
    for folder in folders:
        try:
            write_table(table, folder / name)
        except (OSError, ValueError) as error:  # ValueError: what lies there is no such table
            refused.append(f"{folder / name}: {error}")
    return refused


def unwritable(folders: Sequence[Path]) -> list[str]:
    """Which folders can be seen beforehand not to take a file; nothing is made or touched.

    Args:
        folders: They need not exist yet.

    Returns:
        The reason for each that cannot be written to, with its name.
    """
    reasons = []
    for folder in folders:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        if not nearest.is_dir():
            reasons.append(f"{folder}: {nearest} is not a folder")
        elif not os.access(nearest, os.W_OK | os.X_OK):
            reasons.append(f"{folder}: no permission to write in {nearest}")
    return reasons
