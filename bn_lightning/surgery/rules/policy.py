"""Decide for each nonlinearity of a trace whether a norm belongs there, with a reason in words."""

from collections.abc import Collection
from typing import Literal

from bn_lightning.surgery.plan import NORMS
from bn_lightning.surgery.rules.causality import Causality
from bn_lightning.surgery.rules.endings import ending_reason
from bn_lightning.surgery.rules.gates import gate_reason
from bn_lightning.surgery.rules.producers import Producers
from bn_lightning.surgery.rules.recurrence import Recurrence
from bn_lightning.surgery.rules.units import Unit, find_units
from bn_lightning.surgery.rules.walk import TRANSPARENT, Walk
from bn_lightning.surgery.tracing.graph import Node, Trace

_WEIGHED = (*TRANSPARENT, "product", "matmul", "other")


class Policy:
    """Answers questions about the nonlinearities of one trace.

    Args:
        trace: The traced forward.
        pools_time: Whether the norm's statistics pool over a time axis, as those of batch norm do.
        existing: Which norms that the model has already count as normalising: some of "batch", "layer", "group",
            "instance" and "rms".
        placement: Whether the norm goes "before" or "after" the nonlinearity.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        pools_time: bool = True,
        existing: Collection[str] = NORMS,
        placement: Literal["before", "after"] = "before",
    ) -> None:
        self._walk = Walk(trace)
        self._units = find_units(self._walk)
        self._producers = Producers(trace, self._walk, self._units)
        self._recurrence = Recurrence(self._walk)
        self._causality = Causality(self._walk) if pools_time else None
        self._counted = frozenset(f"{kind}_norm" for kind in existing)
        self._placement = placement
        # A norm that does not count is no more than another operation on the way.
        self._norm_above = self._walk.nearest_above(self._is_counted, through=(*TRANSPARENT, "product", "norm"))
        uncounted = ("norm",) if set(NORMS) - set(existing) else ()
        self._layer_above = self._walk.nearest_above(_is_affine, through=(*_WEIGHED, "loss", *uncounted))

    def skip_reason(self, node: Node) -> str:
        """Why no norm belongs at `node`, or an empty string where one does.

        Args:
            node: A nonlinearity of the trace.

        Returns:
            The reason.
        """
        if node.op == "glu":
            return "a gate: its input is content and gate in one tensor"
        unit = self._unit_normalised_at(node)
        for reason in (
            self._within_a_unit(node),
            self._normalised(node),
            self._no_affine(node),
            gate_reason(self._walk, node, unit),
            ending_reason(self._walk, node, unit),
            self._recurrence.reason(node),
            self._causality.reason(node) if self._causality else "",
            self._without_channels(node),
            self._channels_lost(node),
            self._unreachable(node),
        ):
            if reason:
                return reason
        return ""

    def layer(self, node: Node) -> str:
        """Path of the affine layer that makes the input of `node`, through norms and pass-through operations."""
        for found in self._walk.upstream(node, through=(*_WEIGHED, "norm")):
            if found.role == "affine":
                return found.layer
        return ""

    def producer(self, node: Node) -> str | None:
        """Path of the layer whose output goes straight to `node` and nowhere else, or None.

        An activation that is written out, such as `x * torch.sigmoid(x)`, counts as one reader; the first of its
        nonlinearities stands for it.
        """
        return self._producers.behind(node)

    def branches(self, node: Node) -> tuple[str, ...]:
        """Paths of the layers that feed `node` through adds, concatenations and operations of shape.

        Args:
            node: A nonlinearity.

        Returns:
            The last layer of each branch, in the order of the forward, where a hook on its output would do.
        """
        return self._producers.branches(node)

    def readers_of_inputs(self) -> tuple[tuple[str, Node], ...]:
        """The layers that read the example itself, through operations of shape at most.

        Returns:
            Pairs of a layer's path and the node that it reads; the channel axis of that node is the one that the
            layer mixes. A layer that also reads something else is left out.
        """
        return self._producers.of_inputs()

    def _unit_normalised_at(self, node: Node) -> Unit | None:
        """The written-out activation that `node` stands for, where a norm can go on its layer."""
        unit = self._units.get(node.index)
        if unit is None or unit.site != node.index or self._placement == "after" or self.producer(node) is None:
            return None
        return unit

    def _within_a_unit(self, node: Node) -> str:
        unit = self._units.get(node.index)
        if unit is None or unit.site == node.index:
            return ""
        site = self._walk.nodes[unit.site]
        if self._unit_normalised_at(site) is None:
            return ""
        layer = self._walk.nodes[unit.source].layer
        return f"one activation with the {site.op} before it, whose site is on the layer {layer!r}"

    def _is_counted(self, node: Node) -> bool:
        return node.role == "norm" and node.op in self._counted

    def _normalised(self, node: Node) -> str:
        above = self._norm_above[node.index]
        if above is not None:
            found = self._walk.nodes[above]
            return f"already normalised by {found.op} in {found.owner or 'the model'!r}"
        unit = self._unit_normalised_at(node)
        end = node if unit is None else self._walk.nodes[unit.result]
        for found in self._walk.downstream(end, through=("shape", "pass", "norm")):
            if self._is_counted(found):
                return f"normalised right after by {found.op} in {found.owner or 'the model'!r}"
        return ""

    def _no_affine(self, node: Node) -> str:
        if self._layer_above[node.index] is not None:
            return ""
        return "no affine layer between it and the input or the previous nonlinearity"

    def _without_channels(self, node: Node) -> str:
        source = self._walk.nodes[node.inputs[0]]
        if source.is_floating and len(source.shape) > 1:
            return ""
        return f"its input of shape {source.shape} has no batch and channel axes of real numbers"

    def _channels_lost(self, node: Node) -> str:
        """Whether an operation picked one channel or reduced them, so that any other axis would be taken for theirs."""
        source = self._walk.nodes[node.inputs[0]]
        if source.channel_dim is not None or self.producer(node) is not None:
            return ""
        for found in [source, *self._walk.upstream(source, through=("shape", "pass", "join", "product", "other"))]:
            before = self._walk.nodes[found.inputs[0]] if found.role == "shape" and found.inputs else None
            if before is None or found.channel_dim is not None or before.channel_dim is None:
                continue
            if before.shape[before.channel_dim] > 1:
                return (
                    f"{found.op} picked one of the channels or reduced them before it, so that no axis holds channels"
                )
        return ""

    def _unreachable(self, node: Node) -> str:
        if node.in_call or (self._placement == "before" and self.producer(node) is not None):
            return ""
        return (
            f"{node.op} is spelled with other functions, so that its input is not the first argument of one call, and "
            "no layer feeds it alone; call the function or module of that name on it to have it normalised"
        )


def _is_affine(node: Node) -> bool:
    return node.role == "affine"
