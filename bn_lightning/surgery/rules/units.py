"""Find activations that are written out in several operations, such as `x * torch.sigmoid(x)`.

Such a unit reads the output of one layer, and everything that reads that output belongs to it. So a
norm on the layer reaches all its factors alike, which one inside it would not.
"""

import heapq
from dataclasses import dataclass

from bn_lightning.surgery.rules.walk import Walk
from bn_lightning.surgery.tracing.graph import Node

_ELEMENTWISE = ("nonlinearity", "product", "join", "pass", "other")
_MAX_OPERATIONS = 40


@dataclass(frozen=True)
class Unit:
    """One activation in several operations.

    Args:
        source: The node whose result it reads, an affine operation.
        members: Its operations in order.
        site: The nonlinearity that stands for it, the first of them.
        result: The node that holds its result.
    """

    source: int
    members: tuple[int, ...]
    site: int
    result: int


def find_units(walk: Walk) -> dict[int, Unit]:
    """Every activation that is written out behind a layer.

    Args:
        walk: The trace.

    Returns:
        The unit of each nonlinearity that belongs to one, by its node.
    """
    units: dict[int, Unit] = {}
    for node in walk.nodes:
        if node.role == "affine" and len(walk.readers(node.index)) > 1 and node.index not in walk.outputs:
            unit = _behind(walk, node)
            if unit is not None:
                units |= {member: unit for member in unit.members if walk.nodes[member].role == "nonlinearity"}
    return units


def _behind(walk: Walk, source: Node) -> Unit | None:
    """The operations from `source` to the first one that all paths from it pass, if they read nothing else."""
    waiting = list(walk.readers(source.index))
    heapq.heapify(waiting)
    known = {source.index, *waiting}
    members: list[int] = []
    while waiting and len(members) < _MAX_OPERATIONS:
        # In the order of execution, the last one waiting is where all paths have met.
        node = walk.nodes[heapq.heappop(waiting)]
        own = node.role in _ELEMENTWISE and node.shape == source.shape
        if not own or not known.issuperset(walk.data(node)):
            return None
        members.append(node.index)
        if not waiting:
            sites = [member for member in members if walk.nodes[member].role == "nonlinearity"]
            return Unit(source.index, tuple(members), sites[0], node.index) if sites else None
        if node.index in walk.outputs:
            return None
        for reader in walk.readers(node.index):
            if reader not in known:
                known.add(reader)
                heapq.heappush(waiting, reader)
    return None
