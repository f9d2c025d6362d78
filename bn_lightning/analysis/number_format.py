"""A column of a results table as text that can be compared by eye: one unit of precision, no false zeros."""

import math
import re
from dataclasses import dataclass
from numbers import Real

import numpy as np
import pandas as pd

MISSING = "–"
_P_VALUE = re.compile(r"(^|[^a-z])p($|[^a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class TextTable:
    """A table ready to be shown.

    Args:
        headers: The columns' names, in words.
        numeric: Which columns hold numbers, to be aligned to the right.
        rows: Text of every cell, row by row.
    """

    headers: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


def table_text(table: pd.DataFrame) -> TextTable:
    """Write out every column of a table; its index is left out.

    Args:
        table: Any table.

    Returns:
        Headers (underscores become spaces) and cells as text. Neighbouring columns low and high become one called
        interval, and `x_min` and `x_max` one called `x range`.

    Example:
        >>> table_text(pd.DataFrame({"arm": ["none"], "median_steps": [1137.5], "p": [0.00001]})).rows
        (('none', '1,138', '< 0.0001'),)
    """
    names = [str(name).replace("_", " ") for name in table.columns]
    columns = [table.iloc[:, place].tolist() for place in range(table.shape[1])]
    headers: list[str] = []
    numeric: list[bool] = []
    texts: list[list[str]] = []
    place = 0
    while place < len(names):
        ends = _ends(names[place : place + 2])
        values = columns[place] + columns[place + 1] if ends else columns[place]
        if ends == "interval" and place:
            # With as many decimals as the estimate before it.
            values = values + columns[place - 1]
        written = column_text(values, name=names[place])
        if ends:
            count = len(table)
            written = [_pair(low, high) for low, high in zip(written[:count], written[count : 2 * count], strict=True)]
        headers.append(ends or names[place])
        numeric.append(any(_is_number(value) and not _is_missing(value) for value in values))
        texts.append(written)
        place += 2 if ends else 1
    return TextTable(tuple(headers), tuple(numeric), tuple(zip(*texts, strict=True)))


def _ends(names: list[str]) -> str | None:
    """What two neighbouring columns bound together, if they do."""
    if names == ["low", "high"]:
        return "interval"
    first, last = (names[0], names[-1]) if len(names) == 2 else ("", "")
    paired = first.endswith(" min") and last == first.removesuffix("min") + "max"
    return first.removesuffix("min") + "range" if paired else None


def _pair(low: str, high: str) -> str:
    return MISSING if low == high == MISSING else f"[{low}, {high}]"


def column_text(values: list[object], *, name: str = "") -> list[str]:
    """Write out one column.

    Whole numbers get thousands separators. Others get four significant digits; where the column spans less than two
    decades they share the number of decimals, so that the points stand below each other. Seconds get one
    decimal, below ten two. Columns named p (or p value, Holm p, …) get two significant digits, and "< 0.0001" below
    that.

    Args:
        values: Numbers, truth values, text or missing values.
        name: The column's name.

    Returns:
        One text per value; a missing value is a dash.

    Example:
        >>> column_text([0.9512, 0.97, None]), column_text([1.5, 12345.6]), column_text([50, 1500.0])
        (['0.9512', '0.9700', '–'], ['1.500', '12,346'], ['50', '1,500'])
    """
    numbers = [float(value) for value in values if _is_number(value) and math.isfinite(value)]  # type: ignore[arg-type] # a number, as _is_number says
    if _P_VALUE.search(name):
        return [_p_text(value) if _is_number(value) else _text(value) for value in values]
    decimals = _decimals_of_seconds(numbers) if "seconds" in name else _shared_decimals(numbers)
    return [_number_text(float(value), decimals) if _is_number(value) else _text(value) for value in values]  # type: ignore[arg-type] # a number, as _is_number says


def _decimals_of_seconds(numbers: list[float]) -> int:
    return 1 if max(numbers, default=0.0) >= 10 else 2


def _shared_decimals(numbers: list[float]) -> int | None:
    if all(number.is_integer() and abs(number) < 1e15 for number in numbers):
        return 0
    sizes = [abs(number) for number in numbers if number]
    if max(sizes) / min(sizes) >= 100:
        return None
    decimals = 3 - math.floor(math.log10(max(sizes)))
    return decimals if 0 <= decimals <= 6 else None


def _number_text(value: float, decimals: int | None) -> str:
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif value and not 1e-4 <= abs(value) < 1e6:
        text = f"{value:.2e}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.4g}"
    return text.replace("-", "−") if "e" not in text else text.replace("-", "−", 1 if value < 0 else 0)


def _p_text(value: object) -> str:
    number = float(value)  # type: ignore[arg-type] # a number, as _is_number says
    if math.isnan(number):
        return MISSING
    return "< 0.0001" if number < 1e-4 else f"{number:.2g}"


def _is_number(value: object) -> bool:
    return isinstance(value, Real | np.floating | np.integer) and not isinstance(value, bool | np.bool_)


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _text(value: object) -> str:
    if _is_missing(value):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return str(value)
