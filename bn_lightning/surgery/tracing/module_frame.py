"""The running forward of a module while it is traced, and whether the module turns out to be one activation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bn_lightning.surgery.tracing import ops
from bn_lightning.surgery.tracing.graph import CHILD_NAME, Node

FIXED = ("parameter", "constant")
"""Roles of what is the same for every example."""


@dataclass
class ModuleFrame:
    """One running forward.

    Args:
        path: The module's path.
        module: The module.
        start: Number of the first node made within.
        inputs: The tensors that it received.
        counts: How many calls it made so far, by function or activation module.
    """

    path: str
    module: nn.Module
    start: int
    inputs: list[Tensor]
    counts: dict[Any, int] = field(default_factory=dict)

    def next_index(self, key: Any) -> int:
        """Count one more call of `key`; how many came before."""
        index = self.counts.get(key, 0)
        self.counts[key] = index + 1
        return index

    def keeps_shape(self, outputs: list[Tensor]) -> bool:
        """Whether one tensor came in and one of the same shape goes out."""
        return len(self.inputs) == len(outputs) == 1 and self.inputs[0].shape == outputs[0].shape

    def is_activation(self, nodes: Sequence[Node], outputs: list[Tensor]) -> bool:
        """Whether the module is one activation: a leaf without parameters (or PReLU) of unchanged shape.

        Norms inserted under it do not count: they ran before the frame was opened, or run after it is closed.

        Args:
            nodes: All nodes so far.
            outputs: The tensors that the module returns.
        """
        plain = isinstance(self.module, nn.PReLU) or not any(True for _ in self.module.parameters(recurse=False))
        leaf = all(name == CHILD_NAME for name, _ in self.module.named_children())
        if not (self.path and plain and leaf and self.keeps_shape(outputs)):
            return False
        # What is computed from constants alone, as an encoding of positions, bends nothing.
        inner = [node for node in nodes[self.start :] if any(nodes[index].role not in FIXED for index in node.inputs)]
        reads = any(index < self.start for node in inner for index in node.inputs)
        return reads and any(node.role == "nonlinearity" or node.op in ops.BENDING for node in inner)


def names_within(module: nn.Module, inner: Sequence[Node], nodes: Sequence[Node]) -> tuple[str, tuple[str, ...]]:
    """What an activation module is called, and what it computes.

    Args:
        module: The module.
        inner: Its operations on data.
        nodes: All nodes so far.

    Returns:
        The name of its one operation or its class, and the names of its operations without those that only shift
        or scale by constants.
    """

    def only_scales(node: Node) -> bool:
        data = [index for index in node.inputs if nodes[index].role not in FIXED]
        return node.role in ("join", "product") and len(data) == 1

    name = inner[0].op if len(inner) == 1 else type(module).__name__.lower()
    return name, tuple(node.op for node in inner if not only_scales(node))
