"""Tell gates, whose output weighs another branch, from activations."""

from collections.abc import Iterable, Iterator

from bn_lightning.surgery.rules.units import Unit
from bn_lightning.surgery.rules.walk import TRANSPARENT, Walk
from bn_lightning.surgery.tracing import ops
from bn_lightning.surgery.tracing.graph import Node


def gate_reason(walk: Walk, node: Node, unit: Unit | None) -> str:
    """Why a nonlinearity is a gate, or a factor of an activation that cannot be normalised as one.

    Args:
        walk: The trace.
        node: The nonlinearity.
        unit: The written-out activation that it stands for, if any.

    Returns:
        The reason; empty where it is neither.
    """
    end = node if unit is None else walk.nodes[unit.result]
    if unit is None:
        products = list(_factors(walk, node, through=(*TRANSPARENT, "product", "nonlinearity")))
        if products and _is_factor_of_own_input(walk, node, products):
            return f"with the product behind it one activation (x·{node.op}(x)); use its module form to normalise it"
    if _is_gating(walk, node, unit) and any(True for _ in _factors(walk, end, through=(*TRANSPARENT, "product"))):
        return "a gate: its output is multiplied with another branch"
    return ""


def _is_factor_of_own_input(walk: Walk, node: Node, factors: list[int]) -> bool:
    # What the nonlinearity is computed from without a layer in between is the same branch as itself.
    own = {found.index for found in walk.upstream(node, through=(*TRANSPARENT, "product", "other", "nonlinearity"))}
    scaled = ("pass", "join", "product", "other")
    for factor in map(walk.nodes.__getitem__, factors):
        # Another part of the same tensor is another branch, as in x, gate = layer(h).chunk(2).
        above = walk.upstream(factor, through=scaled) if factor.role in scaled else ()
        if own & {factor.index, *(found.index for found in above)}:
            return True
    return False


def _factors(walk: Walk, node: Node, *, through: Iterable[str]) -> Iterator[int]:
    """What the output of `node` is multiplied with, other than by itself and by constants."""
    for found in walk.downstream(node, through=through, single_input=True):
        if found.role == "product":
            for index in walk.data(found):
                if not walk.descends(index, node.index):
                    yield index


def _is_gating(walk: Walk, node: Node, unit: Unit | None) -> bool:
    if unit is not None:
        members = [walk.nodes[member] for member in unit.members]
        # A product of two tensors within makes it SiLU, GELU or one of their kin.
        return any(
            member.op in ops.GATING or (member.role == "product" and len(walk.data(member)) > 1) for member in members
        )
    if node.op in ops.GATING or ops.GATING & set(node.inner):
        return True
    if "tanh" in node.inner and "mul" in node.inner:  # GELU by its tanh formula, in a module
        return True
    # relu6(x + 3) / 6 is the hard sigmoid, in a module or written out.
    shifted = node.op == "relu6" and walk.only_scales(walk.nodes[node.inputs[0]])
    return shifted or (node.op != "relu6" and node.inner == ("relu6",))
