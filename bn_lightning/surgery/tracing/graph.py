"""A traced forward as a graph: its operations, who made their inputs, who reads their results."""

from dataclasses import dataclass, field

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
        checkpointed: Whether `owner`'s own code makes it inside `torch.utils.checkpoint`, which repeats it in the
            backward pass outside that forward. No part of the identity.
    """

    owner: str | None
    function: str
    activation: str | None
    index: int
    checkpointed: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Node:
    """One operation of a traced forward and its first tensor result.

    Args:
        index: Position in the order of execution.
        role: What it means for a norm: a value of `ops.ROLES`, or "input", "parameter", "constant" (the same for every
            example), "opaque", "other", or "inner" within an activation module, which counts as one operation.
        op: Bare name of the operation, the lower-case class name of an activation module, or what a spelled-out
            activation amounts to (`torch.maximum(x, 0)` is "relu").
        inputs: Nodes that made its tensor arguments, in order.
        owner: Path of the innermost module running; None outside any forward.
        shape: Shape of the result.
        channel_dim: Channel axis of the result counted from the end; None where unknown.
        layer: Path of the affine layer, for affine operations; else empty.
        call: Identity of the call, for nonlinearities.
        is_floating: Whether the result holds real floating-point numbers.
        run: Which of the traced runs it belongs to.
        inner: Bare names of the operations within an activation module, scalings and shifts by constants left out.
        in_call: Whether the nonlinearity is a call whose first argument is the pre-activation, so that a norm can be
            put into the call.
        causal: Whether it is an attention in which no position sees a later one.
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
    run: int = 0
    inner: tuple[str, ...] = ()
    in_call: bool = True
    causal: bool = False


@dataclass(frozen=True)
class Trace:
    """The operations of one or more runs of a model; no operation reads from another run.

    Args:
        nodes: The operations in order.
        outputs: Nodes whose results the runs returned.
        consumers: For each node, those that read its result.
        returned: Pairs of a module's path and a node whose result that module returned.
    """

    nodes: tuple[Node, ...]
    outputs: frozenset[int]
    consumers: dict[int, tuple[int, ...]]
    returned: frozenset[tuple[str, int]]
