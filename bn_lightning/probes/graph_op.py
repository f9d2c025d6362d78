"""Hand a tensor to a Python object from inside a graph that torch.compile has traced, without breaking it.

A compiled graph cannot hold a Python object, so the object is known to it by a number. The operator
that stands for the call writes to a tensor that is handed in with it: a call without any effect would be
taken for dead code and left out.
"""

import itertools
import weakref
from typing import Protocol

import torch
from torch import Tensor


class Reads(Protocol):
    """What can be handed tensors from a graph."""

    def read(self, index: int, activation: Tensor, channel_dim: int) -> None:
        """Take in one activation.

        Args:
            index: Which activation it is.
            activation: The tensor, without gradient history.
            channel_dim: Its channel axis.
        """
        ...


_READERS: weakref.WeakValueDictionary[int, Reads] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def numbered(reader: Reads) -> int:
    """Give an object a number under which graphs find it, for as long as it lives.

    Args:
        reader: The object.

    Returns:
        Its number in this process.
    """
    number = next(_NUMBERS)
    _READERS[number] = reader
    return number


# The ticks lie on the CPU wherever the activation is: so a graph that reads is never captured as a CUDA graph,
# whose replay would run no Python.
@torch.library.custom_op("bn_lightning::read_activation", mutates_args={"ticks"})
def read_in_graph(ticks: Tensor, activation: Tensor, number: int, index: int, channel_dim: int) -> None:
    """Call `read` of the object with this number, in eager code and in compiled graphs alike.

    Args:
        ticks: A one-element int64 tensor on the CPU that counts the calls.
        activation: The tensor, without gradient history.
        number: What `numbered` returned.
        index: Which activation it is.
        channel_dim: Its channel axis.

    Example:
        >>> class Seen:
        ...     def read(self, index, activation, channel_dim):
        ...         self.shape = tuple(activation.shape)
        >>> seen, ticks = Seen(), torch.zeros(1, dtype=torch.int64)
        >>> read_in_graph(ticks, torch.ones(2, 3), numbered(seen), 0, -1)
        >>> seen.shape, ticks.item()
        ((2, 3), 1)
    """
    ticks.add_(1)
    reader = _READERS.get(number)
    if reader is not None:
        reader.read(index, activation, channel_dim)
