"""From a traced forward to the sites of a plan: where a norm would act, and how it would be attached."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from bn_lightning.surgery.plan import Placement, Site, SiteChoice
from bn_lightning.surgery.rules.policy import Policy
from bn_lightning.surgery.tracing.graph import Call, Node, Trace

Attach = Literal["producer", "activation", "shared", "call"]


def find_sites(
    trace: Trace, policy: Policy, *, placement: Placement, site: SiteChoice, inputs: bool
) -> tuple[Site, ...]:
    """Every site of a trace in the order of the forward, each with its decision.

    Args:
        trace: The traced forward.
        policy: The rules, over the same trace.
        placement: "before" or "after" the nonlinearity.
        site: "nonlinearity" for the tensor that the nonlinearity receives, "affine" for the output of each layer
            that reaches it through residual adds.
        inputs: Whether the layers that read the raw inputs get a norm in front of them.

    Returns:
        The sites.
    """
    return tuple(_Sites(trace, policy, placement).found(site=site, inputs=inputs))


class _Sites:
    def __init__(self, trace: Trace, policy: Policy, placement: Placement) -> None:
        self.trace = trace
        self.policy = policy
        self.placement = placement
        self.visits: dict[Call, list[Node]] = {}
        for node in trace.nodes:
            if node.role == "nonlinearity" and node.call is not None:
                self.visits.setdefault(node.call, []).append(node)
        self.calls_of = Counter(call.activation for call in self.visits)
        self.taken: set[str] = set()

    def found(self, *, site: SiteChoice, inputs: bool) -> list[Site]:
        ordered: list[tuple[int, Site]] = []
        if inputs:
            ordered += self._inputs()
        branches: set[str] = set()
        for call, nodes in self._by_producer():
            made = self._of_call(call, nodes)
            summed = site == "affine" and made.decision == "insert" and made.attach != "producer"
            layers = self._branches(nodes) if summed else ()
            if layers:
                ordered += [
                    (nodes[0].index, self._of_branch(layer, nodes)) for layer in layers if layer not in branches
                ]
                branches.update(layers)
                # Its call is still met among the others of its owner, which the plan has to know.
                made = replace(made, decision="skip", reason=f"normalised on its branches, {', '.join(layers)}")
            ordered.append((nodes[0].index, made))
        return [made for _, made in sorted(ordered, key=lambda pair: pair[0])]

    def _by_producer(self) -> Iterator[tuple[Call, list[Node]]]:
        """Each call with its visits; where layers feed calls alone, there is one site for each layer instead."""
        of_layer: dict[str, tuple[Call, list[Node]]] = {}
        groups: list[tuple[Call, list[Node]]] = []
        for call, nodes in self.visits.items():
            producers = [self.policy.producer(node) for node in nodes]
            if self.placement == "after" or None in producers:
                groups.append((call, nodes))
                continue
            for node, layer in zip(nodes, producers, strict=True):
                if layer is not None and layer not in of_layer:
                    of_layer[layer] = (call, [])
                    groups.append(of_layer[layer])
                of_layer[layer or ""][1].append(node)
        yield from groups

    def _of_call(self, call: Call, nodes: list[Node]) -> Site:
        node = nodes[0]
        attach = self._attach(nodes)
        # An activation that is written out reads the layer's output in several places.
        source = self._output_of(node) if attach == "producer" else self.trace.nodes[node.inputs[0]]
        channel_dim, known = _channel_dim(source)
        attachable = (call.owner is not None and node.in_call) or attach == "producer"
        reason = self._skip_reason(call, nodes, attach)
        visits = _visits(nodes)
        return Site(
            name=self._name(call, node.op, attach),
            op=node.op,
            layer=self.policy.layer(node),
            owner=call.owner or "",
            function=call.function,
            activation=call.activation or "",
            call_index=call.index,
            shape=source.shape,
            channels=source.shape[channel_dim] if len(source.shape) > 1 and attachable else 0,
            channel_dim=channel_dim,
            channel_dim_source="traced" if known else "guessed",
            visits=visits,
            attach=attach,
            decision="skip" if reason else "insert",
            reason=reason or self._insert_reason(source, visits),
        )

    def _output_of(self, node: Node) -> Node:
        layer = self.policy.producer(node)
        before = reversed(self.trace.nodes[: node.index])
        return next(made for made in before if made.role == "affine" and made.layer == layer)

    def _skip_reason(self, call: Call, nodes: list[Node], attach: Attach) -> str:
        reason = next((text for text in map(self.policy.skip_reason, nodes) if text), "")
        if reason or attach == "producer":
            return reason
        if call.owner is None:
            return "called outside every module's forward, where nothing can be attached"
        if attach in ("call", "shared") and any(node.call is not None and node.call.checkpointed for node in nodes):
            return (
                f"called inside torch.utils.checkpoint by {call.owner or 'the model'!r}, whose recomputation would not "
                "meet the norm; give it an activation module of its own"
            )
        layers = dict.fromkeys(self.policy.layer(node) for node in nodes)
        if len(layers) > 1:
            return (
                f"passed {len(nodes)} times behind different layers ({', '.join(layers)}), whose statistics one norm "
                "would mix; give each an activation module of its own"
            )
        return ""

    def _of_branch(self, layer: str, nodes: list[Node]) -> Site:
        """A branch of a sum that a nonlinearity receives: the norm goes on the layer, before the sum."""
        outputs = [node for node in self.trace.nodes if node.role == "affine" and node.layer == layer]
        visits = _visits(outputs)
        reason = f"on the output of {layer}, a branch of what {nodes[0].op} receives{_shared(visits)}"
        return self._at_layer(layer, nodes[0].op, layer, "producer", outputs[0], visits, reason)

    def _inputs(self) -> list[tuple[int, Site]]:
        found = []
        for layer, read in self.policy.readers_of_inputs():
            visits = _visits([node for node in self.trace.nodes if node.role == "affine" and node.layer == layer])
            reason = f"the raw input that {layer} reads{_shared(visits)}"
            found.append((read.index, self._at_layer(f"{layer}.input", "input", layer, "input", read, visits, reason)))
        return found

    def _at_layer(
        self, name: str, op: str, layer: str, attach: Literal["producer", "input"], at: Node, visits: int, reason: str
    ) -> Site:
        channel_dim, known = _channel_dim(at)
        return Site(
            name=self._free(name),
            op=op,
            layer=layer,
            owner=layer.rpartition(".")[0],
            function="",
            activation="",
            call_index=0,
            shape=at.shape,
            channels=at.shape[channel_dim],
            channel_dim=channel_dim,
            channel_dim_source="traced" if known else "guessed",
            visits=visits,
            attach=attach,
            decision="insert",
            reason=reason,
        )

    def _branches(self, nodes: list[Node]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer for node in nodes for layer in self.policy.branches(node)))

    def _attach(self, nodes: list[Node]) -> Attach:
        call = nodes[0].call
        producers = {self.policy.producer(node) for node in nodes}
        if self.placement == "before" and len(producers) == 1 and None not in producers:
            return "producer"
        if call is not None and call.activation is not None:
            return "activation" if self.calls_of[call.activation] == 1 else "shared"
        return "call"

    def _name(self, call: Call, op: str, attach: Attach) -> str:
        if call.activation is not None and attach != "shared" and call.activation not in self.taken:
            return self._free(call.activation)
        last = op if call.activation is None else call.activation.rpartition(".")[2]
        return self._free(f"{call.owner}.{last}_{call.index}" if call.owner else f"{last}_{call.index}")

    def _free(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _insert_reason(self, source: Node, visits: int) -> str:
        made_by = source.layer or source.op
        return f"{self.placement} the nonlinearity on the output of {made_by}{_shared(visits)}"


def _visits(nodes: list[Node]) -> int:
    """How often one run passes; examples that were traced together are runs of their own."""
    return max(Counter(node.run for node in nodes).values())


def _shared(visits: int) -> str:
    return f"; passed {visits} times a forward, which share statistics" if visits > 1 else ""


def _channel_dim(source: Node) -> tuple[int, bool]:
    if source.channel_dim is not None:
        return source.channel_dim, True
    # Images, volumes and sequences of torch's convolutions carry channels at axis 1; token and feature
    # tensors, the usual case for three axes and two, at the last.
    return (1 - len(source.shape), False) if len(source.shape) > 3 else (-1, False)
