"""Numbers measured while a model trains, as rows of one long table."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

COLUMNS = ("step", "layer", "quantity", "value")


class MeasurementTable:
    """Collects step, layer, quantity and value; a layer of "" is the whole model.

    Example:
        >>> table = MeasurementTable()
        >>> table.add(3, "net.0", {"effective_beta": 1.5})
        >>> table.frame().to_dict("records")
        [{'step': 3, 'layer': 'net.0', 'quantity': 'effective_beta', 'value': 1.5}]
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, str, str, float]] = []

    def add(self, step: int, layer: str, numbers: Mapping[str, float]) -> None:
        """Add a layer's numbers at a step.

        Args:
            step: The optimizer step, from 0.
            layer: The layer's path.
            numbers: Value by quantity.
        """
        self._rows.extend((step, layer, quantity, float(value)) for quantity, value in numbers.items())

    def frame(self) -> "pandas.DataFrame":
        """All rows so far.

        Returns:
            A DataFrame with the columns step, layer, quantity, value.
        """
        import pandas as pd

        return pd.DataFrame(self._rows, columns=list(COLUMNS)).astype({"step": "int64", "value": "float64"})

    def write_csv(self, folders: Iterable[Path], name: str) -> None:
        """Write the table into each folder, whole or not at all.

        Rows of a run that this one resumes, of steps before its first, are kept; all of them if this one measured
        nothing. NaN is an empty field.

        Args:
            folders: Where to.
            name: Of the file.
        """
        import pandas as pd

        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            table, path = self.frame(), folder / name
            if path.exists():
                if table.empty:
                    continue
                earlier = pd.read_csv(path, keep_default_na=False, na_values={"value": [""]})
                table = pd.concat([earlier[earlier["step"] < table["step"].min()], table], ignore_index=True)
            partial = path.with_name(f".{name}.{os.getpid()}")
            table.to_csv(partial, index=False)
            partial.replace(path)
