"""A model of the zoo with its labels: where a norm belongs, decided by reading the model.

Labels follow the rules of insertion with placement "before" and name a site by the affine layer that
makes its pre-activation, so they hold whatever a site is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

# One word of the reason, by rule; a reason may be worded freely around it.
NORMALISED = "normal"
HEAD = "head"
GATE = "gate"
RECURRENT = "recurrent"
NO_AFFINE = "affine"
CAUSAL = "causal"

Site = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """One model, its examples and its labels.

    `inserted` holds (layer path, operation) of every site that gets a norm, in order of the forward; a
    site passed several times in one forward is listed once. Where a sum, a concatenation or a weight
    used away from its module leaves several layers to choose from, "|" separates them, and a path may be
    empty where the weight belongs to no layer. Operations carry torch's function names, or a module's class
    in lower case where its forward is several functions; "|" separates two names for one thing. `skipped`
    holds (operation, word of the reason) and is a set: the turns of a loop are one entry, and "|" separates
    words of which either will do. Operations that are never sites, such as softmax, attention and the cells
    of nn.LSTM, are in neither.
    """

    name: str
    make: Callable[[], nn.Module]
    args: Callable[[int], tuple[Any, ...]]
    inserted: tuple[Site, ...]
    channels: tuple[int, ...]
    skipped: tuple[Site, ...] = ()
    kwargs: Callable[[int], dict[str, Any]] = lambda batch: {}
    handwritten: bool = False
    """The operation is spelt out in arithmetic: a label gives what it amounts to, a plan may name one of its parts."""
    random: bool = False
    """Draws random numbers in train mode, so two runs agree only from the same random state."""
    few_values: bool = False
    """A site has two values a channel or fewer in the example: a norm there warns and uses running statistics."""
    fullgraph: bool = True
    """torch.compile(fullgraph=True) captures the model as it is."""
    exportable: bool = True
    """torch.export exports the model as it is."""

    def build(self) -> nn.Module:
        """The model with the same weights each time, leaving the caller's random state alone."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make()


def inputs(*shapes: tuple[int, ...]) -> Callable[[int], tuple[Any, ...]]:
    """Normal tensors of the given shapes behind the batch axis, the same for each batch size."""

    def example(batch: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(batch)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)

    return example


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Every tensor of what a model returns, in whatever container."""
    if hasattr(output, "__dataclass_fields__") and not isinstance(output, dict):
        output = vars(output)
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def integers(high: int, *shapes: tuple[int, ...]) -> Callable[[int], tuple[Any, ...]]:
    """Tensors of whole numbers below `high`, the same for each batch size."""

    def example(batch: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(batch)
        return tuple(torch.randint(0, high, (batch, *shape), generator=generator) for shape in shapes)

    return example
