"""A traced forward as a graph: its operations, who made their inputs, who reads their results."""

from dataclasses import dataclass

CHILD_NAME = "bn_lightning_norm"
"""The name under which inserted norms hang on a module."""


@dataclass(frozen=True)
class Call:
    """Which call of a nonlinearity this is, so that it can be met again without tracing.

    Args:
        owner: Path of the module whose forward makes the call; None outside any forward.
        function: Full name of the torch function; empty where an activation module is called.
        activation: Path of the activation module; None for a function.
        index: How many calls of the same function or module came before in the same forward of `owner`.
    """

    owner: str | None
    function: str
    activation: str | None
    index: int


@dataclass(frozen=True)
class Node:
    """One operation of a traced forward and its first tensor result.

    Args:
        index: Position in the order of execution.
        role: What it means for a norm: a value of `ops.ROLES`, or "input", "parameter", "opaque", "other", or
            "inner" within an activation module, which counts as one operation.
        op: Bare name of the operation, or the lower-case class name of an activation module.
        inputs: Nodes that made its tensor arguments, in order.
        owner: Path of the innermost module running; None outside any forward.
        shape: Shape of the result.
        channel_dim: Channel axis of the result counted from the end; None where unknown.
        layer: Path of the affine layer, for affine operations; else empty.
        call: Identity of the call, for nonlinearities.
        is_floating: Whether the result holds real floating-point numbers.
    """

    index: int
    role: str
    op: str
    inputs: tuple[int, ...]
    owner: str | None
    shape: tuple[int, ...]
    channel_dim: int | None
    layer: str = ""
    call: Call | None = None
    is_floating: bool = True


@dataclass(frozen=True)
class Trace:
    """The operations of one run of a model.

    Args:
        nodes: The operations in order.
        outputs: Nodes whose results the run returned.
        consumers: For each node, those that read its result.
        returned: Pairs of a module's path and a node whose result that module returned.
    """

    nodes: tuple[Node, ...]
    outputs: frozenset[int]
    consumers: dict[int, tuple[int, ...]]
    returned: frozenset[tuple[str, int]]
