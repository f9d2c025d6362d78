"""Tell output heads and parts of the loss, where the values themselves are meant, from features."""

from collections.abc import Iterator

from bn_lightning.surgery.rules.units import Unit
from bn_lightning.surgery.rules.walk import TRANSPARENT, Walk
from bn_lightning.surgery.tracing import ops
from bn_lightning.surgery.tracing.graph import Node

_HANDED_ON = ("shape", "pass", "loss")
# What a likelihood does with a rate or a scale, and a distance of features does not.
_OF_RATES = frozenset("log log1p log2 log10 xlogy lgamma reciprocal rsqrt".split())


def ending_reason(walk: Walk, node: Node, unit: Unit | None) -> str:
    """Why a nonlinearity ends the network or belongs to its loss.

    Args:
        walk: The trace.
        node: The nonlinearity.
        unit: The written-out activation that it stands for, if any.

    Returns:
        The reason; empty where a layer follows, or where features are compared with one another.
    """
    end = node if unit is None else walk.nodes[unit.result]
    if walk.feeds_layer(end):
        return ""
    if unit is None and _is_saturating(node):
        return "an output head: no affine layer follows"
    following = list(_until_reduced(walk, end))
    if all(found.role in _HANDED_ON or walk.only_scales(found) for found in following):
        if any(not found.shape for found in following):
            return "an output head: part of the loss, reduced to a number with no layer behind it"
        return "an output head: the model's last operation"
    if _is_rate(walk, node, end):
        return "an output head: a rate or a scale of a likelihood, behind which no affine layer follows"
    if _is_compared_with_target(walk, node):
        return "an output head: part of the loss, where a score meets an input that it is not computed from"
    return ""


def _is_saturating(node: Node) -> bool:
    # A product of two tensors within a module makes it unbounded, as in SiLU.
    names = {node.op, *node.inner}
    return bool(names & ops.SATURATING and "mul" not in names) or (node.op != "relu6" and node.inner == ("relu6",))


def _until_reduced(walk: Walk, node: Node) -> Iterator[Node]:
    """What follows a node, up to where it is one number: how such terms of a loss are added says nothing."""
    waiting, seen = [node.index], {node.index}
    while waiting:
        for reader in walk.readers(waiting.pop()):
            if reader not in seen:
                seen.add(reader)
                yield walk.nodes[reader]
                if walk.nodes[reader].shape:
                    waiting.append(reader)


def _is_rate(walk: Walk, node: Node, end: Node) -> bool:
    names = {node.op, *node.inner}
    if "softplus" in names and not names & {"mul", "tanh"}:
        return True
    waiting, seen = [end.index], {end.index}
    while waiting:
        index = waiting.pop()
        for reader in (walk.nodes[reader] for reader in walk.readers(index)):
            shifted = reader.role == "join" and walk.only_scales(reader)
            divides = reader.op == "div" and len(walk.data(reader)) > 1 and reader.inputs[-1] == index
            if shifted or divides or reader.op in _OF_RATES:
                return True
            if reader.index not in seen and (reader.role in ("shape", "pass") or walk.only_scales(reader)):
                seen.add(reader.index)
                waiting.append(reader.index)
    return False


def _is_compared_with_target(walk: Walk, node: Node) -> bool:
    """Whether a layer's output meets, before `node`, an input that is no input of that layer."""
    for found in walk.upstream(node, through=(*TRANSPARENT, "product", "other")):
        operands = walk.data(found)
        if found.role not in ("join", "product") or len(operands) < 2:
            continue
        inputs_of = {index: _raw_inputs(walk, index) for index in operands}
        targets = {source for sources in inputs_of.values() if sources is not None for source in sources}
        scores = [index for index, sources in inputs_of.items() if sources is None]
        if scores and targets and not any(walk.descends(score, target) for score in scores for target in targets):
            return True
    return False


def _raw_inputs(walk: Walk, index: int) -> set[int] | None:
    """The inputs that a node is made of; None where a layer takes part."""
    above = [walk.nodes[index], *walk.upstream(walk.nodes[index], through=None)]
    if any(found.role in ("affine", "matmul") for found in above):
        return None
    return {found.index for found in above if found.role == "input"}
