"""What objects of libraries hold where no attribute shows it: in C, behind caches, or in parts of their own making."""

import sys
from array import array
from collections import ChainMap, UserDict, UserList, UserString, defaultdict, deque
from collections.abc import Callable
from datetime import timezone
from io import BytesIO, StringIO
from operator import attrgetter, itemgetter, methodcaller
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import torch

from bn_lightning.analysis.generator_seeds import numpy_seed, torch_seed
from bn_lightning.analysis.pandas_parts import pandas_parts

Parts = tuple[Any, ...]
PICKLED = (
    *(array, bytearray, deque, defaultdict, ChainMap, UserDict, UserList, UserString),
    *(attrgetter, itemgetter, methodcaller, UUID, ZoneInfo, timezone),
)


def way_into(value: Any) -> Callable[[Any], Parts] | None:
    """How to get at the data of an object that shows none of it.

    Args:
        value: Any object.

    Returns:
        A function of the object that returns its parts, the same in every process if the data is; None for objects of
        other kinds, which their attributes and entries tell.

    Example:
        >>> way_into(bytearray(b"ab"))(bytearray(b"ab"))
        ((b'ab',), None)
        >>> way_into([1, 2])
    """
    for kinds, way in _WAYS:
        if isinstance(value, kinds):
            return way
    for module, names, way in _WAYS_OF_LIBRARIES:
        # Whose module is not loaded cannot be the object's, and need not be loaded to know it.
        if module in sys.modules and isinstance(value, tuple(getattr(sys.modules[module], name, ()) for name in names)):
            return way
    return None


def _pickled(value: Any) -> Parts:
    return tuple(value.__reduce_ex__(4)[1:3])


def _buffer(value: BytesIO | StringIO) -> Parts:
    return (value.getvalue(),)


def _view(value: memoryview) -> Parts:
    return value.tobytes(), value.format, value.shape


def _image(value: Any) -> Parts:
    return value.mode, value.size, value.tobytes(), value.getpalette()


def _sparse(value: Any) -> Parts:
    triples = value.tocoo()  # its own arrays may be sorted in passing, and flags say whether they are
    return value.shape, triples.row, triples.col, triples.data


_WAYS: tuple[tuple[Any, Callable[[Any], Parts]], ...] = (
    (PICKLED, _pickled),
    ((BytesIO, StringIO), _buffer),
    (memoryview, _view),
    (torch.Generator, torch_seed),
    ((np.random.Generator, np.random.RandomState, np.random.BitGenerator, np.random.SeedSequence), numpy_seed),
)
_WAYS_OF_LIBRARIES: tuple[tuple[str, tuple[str, ...], Callable[[Any], Parts]], ...] = (
    ("pandas", ("DataFrame", "Series", "Index", "CategoricalDtype", "Interval", "Period"), pandas_parts),
    ("pandas.api.extensions", ("ExtensionArray", "ExtensionDtype"), pandas_parts),
    ("scipy.sparse", ("sparray", "spmatrix"), _sparse),
    ("PIL.Image", ("Image",), _image),
)
