"""What pandas' objects hold: names, types and values, but not how they are laid out in memory."""

from typing import Any


def pandas_parts(value: Any) -> tuple[Any, ...]:
    """What an object of pandas holds.

    Args:
        value: A DataFrame, Series, Index, array, dtype, Interval or Period.

    Returns:
        Names, types, and values as pandas hashes them; values of objects, whose hash may be their address, themselves.

    Example:
        >>> import pandas as pd
        >>> pandas_parts(pd.Series([[1], "a"], name="s"))
        ('s', ..., 'object', [[1], 'a'])
    """
    import pandas as pd  # loaded, as there is an object of it

    if isinstance(value, pd.DataFrame):
        columns = [_values(value.iloc[:, place]) for place in range(value.shape[1])]
        return value.columns, value.index, columns
    if isinstance(value, pd.Series):
        return value.name, value.index, *_values(value)
    if isinstance(value, pd.MultiIndex):
        return tuple(value.get_level_values(level) for level in range(value.nlevels))
    if isinstance(value, pd.Index):
        return value.name, *_values(value)
    if isinstance(value, pd.CategoricalDtype):
        return value.categories, value.ordered
    if isinstance(value, pd.api.extensions.ExtensionArray):
        return _values(pd.Series(value))
    return (repr(value),)


def _values(column: Any) -> tuple[Any, ...]:
    """Type and values of a Series or an Index."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.dtype, column.array.codes
    words = column.dtype != object or pd.api.types.infer_dtype(column, skipna=True) == "string"
    try:
        hashes = pd.util.hash_pandas_object(column, index=False).to_numpy() if words else None
    except TypeError:  # lists of Arrow's
        hashes = None
    return str(column.dtype), column.tolist() if hashes is None else hashes
