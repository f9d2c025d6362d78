"""Find the sites of a model with an example, and plan where norms go."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from torch import nn

from bn_lightning.errors import NoSiteError, UnknownNameError
from bn_lightning.surgery.graph import Call, Node, Trace
from bn_lightning.surgery.plan import CUSTOM_NORM, NORMS, InsertionPlan, NormFactory, Placement, Site
from bn_lightning.surgery.policy import Policy
from bn_lightning.surgery.trace import trace_calls


def plan_insertion(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    placement: Placement = "before",
    norm: str | NormFactory = "batch",
    exclude: Iterable[str] = (),
    entry: str = "forward",
) -> InsertionPlan:
    """Run an example through a model once and decide for every nonlinearity whether a norm belongs there.

    The model runs in the modes it is in, without gradients; modes, buffers, gradients and random
    state are restored. Nothing is attached: `apply_plan` does that.

    Source: Ioffe & Szegedy 2015, section 3.2 puts the norm on the input of the nonlinearity
    (`placement="before"`); Mishkin et al. 2016 found it better after it in some networks.

    Args:
        model: Any module that runs on the example.
        args: Positional arguments of one call, a tuple; a batch of two samples or more.
        kwargs: Keyword arguments of the call.
        placement: "before" or "after" the nonlinearity.
        norm: "batch", or a factory that makes a norm for a number of channels.
        exclude: fnmatch patterns of sites to leave as they are.
        entry: Name of the method to call.

    Returns:
        The plan.

    Raises:
        NoSiteError: If the example met no nonlinearity.
        TypeError: If `args` is not a tuple.
        UnknownNameError: If the placement or norm does not exist, or a pattern matches no site.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3))
        >>> plan_insertion(model, (torch.randn(4, 3, 8, 8),)).inserted[0].channels
        8
    """
    check_choices(placement, norm)
    if not isinstance(args, tuple):
        raise TypeError(f"args is the tuple of positional arguments, such as (x,); got {type(args).__name__}.")
    model = getattr(model, "_orig_mod", model)
    call = model if entry == "forward" else getattr(model, entry)
    try:
        trace = trace_calls(model, lambda: call(*args, **(kwargs or {})))
    except Exception as error:
        error.add_note(
            f"This happened while {type(model).__name__}.{entry} ran on the example, to find its activations."
        )
        raise
    sites = _sites(trace, placement)
    if not sites:
        raise NoSiteError(
            f"No nonlinearity was called when {type(model).__name__}.{entry} ran on the example, so there is no place "
            "for a norm. Check that the example takes the path with the activations in it."
        )
    plan = InsertionPlan(placement, norm if isinstance(norm, str) else CUSTOM_NORM, entry, sites)
    for pattern in exclude:
        plan = plan.override(pattern, "skip")
    return plan


def check_choices(placement: str, norm: str | NormFactory) -> None:
    """Refuse a placement or a norm that does not exist.

    Args:
        placement: "before" or "after".
        norm: Name of a norm, or a factory.

    Raises:
        UnknownNameError: If there is no such placement, or no norm of that name.
    """
    if placement not in ("before", "after"):
        raise UnknownNameError(f"placement is 'before' or 'after' the nonlinearity, not {placement!r}.")
    if isinstance(norm, str) and norm not in NORMS:
        raise UnknownNameError(
            f"No norm is called {norm!r}; the names are {', '.join(NORMS)}, or give a factory channels -> nn.Module."
        )


def _sites(trace: Trace, placement: Placement) -> tuple[Site, ...]:
    policy = Policy(trace)
    visits: dict[Call, list[Node]] = {}
    for node in trace.nodes:
        if node.role == "nonlinearity" and node.call is not None:
            visits.setdefault(node.call, []).append(node)
    calls_of = Counter(call.activation for call in visits)
    sites: list[Site] = []
    taken: set[str] = set()
    for call, nodes in _by_producer(visits, policy, placement):
        node = nodes[0]
        source = trace.nodes[node.inputs[0]]
        reason = next((text for text in map(policy.skip_reason, nodes) if text), "")
        channel_dim, known = _channel_dim(source)
        attach = _attach(policy, nodes, placement, once=call.activation is not None and calls_of[call.activation] == 1)
        if not _attachable(call, attach):
            reason = reason or "called outside every module's forward, where nothing can be attached"
        layers = dict.fromkeys(policy.layer(visited) for visited in nodes)
        if len(layers) > 1 and attach != "producer":
            reason = reason or (
                f"passed {len(nodes)} times behind different layers ({', '.join(layers)}), whose statistics one norm "
                "would mix; give each an activation module of its own"
            )
        name = _name(call.owner, call.activation, node.op, call.index, attach, taken)
        sites.append(
            Site(
                name=name,
                op=node.op,
                layer=policy.layer(node),
                owner=call.owner or "",
                function=call.function,
                activation=call.activation or "",
                call_index=call.index,
                shape=source.shape,
                channels=source.shape[channel_dim] if len(source.shape) > 1 and _attachable(call, attach) else 0,
                channel_dim=channel_dim,
                channel_dim_source="traced" if known else "guessed",
                visits=len(nodes),
                attach=attach,
                decision="skip" if reason else "insert",
                reason=reason or _insert_reason(source, attach, placement, len(nodes)),
            )
        )
    return tuple(sites)


def _by_producer(
    visits: dict[Call, list[Node]], policy: Policy, placement: Placement
) -> Iterator[tuple[Call, list[Node]]]:
    """Each call with its visits; one that different layers feed, each alone, is a site for each of these layers."""
    for call, nodes in visits.items():
        producers = [policy.producer(node) for node in nodes]
        if placement == "before" and None not in producers and len(set(producers)) > 1:
            for layer in dict.fromkeys(producers):
                yield call, [node for node, producer in zip(nodes, producers, strict=True) if producer == layer]
        else:
            yield call, nodes


def _attachable(call: Call, attach: str) -> bool:
    return call.owner is not None or attach == "producer"


def _channel_dim(source: Node) -> tuple[int, bool]:
    if source.channel_dim is not None:
        return source.channel_dim, True
    # Images, volumes and sequences of torch's convolutions carry channels at axis 1; token and feature
    # tensors, the usual case for three axes and two, at the last.
    return (1 - len(source.shape), False) if len(source.shape) > 3 else (-1, False)


def _attach(
    policy: Policy, nodes: list[Node], placement: Placement, *, once: bool
) -> Literal["producer", "activation", "shared", "call"]:
    call = nodes[0].call
    producers = {policy.producer(node) for node in nodes}
    if placement == "before" and len(producers) == 1 and None not in producers:
        return "producer"
    if call is not None and call.activation is not None:
        return "activation" if once else "shared"
    return "call"


def _name(owner: str | None, activation: str | None, op: str, index: int, attach: str, taken: set[str]) -> str:
    if activation is not None and attach != "shared" and activation not in taken:
        name = activation
    else:
        last = op if activation is None else activation.rpartition(".")[2]
        name = f"{owner}.{last}_{index}" if owner else f"{last}_{index}"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _insert_reason(source: Node, attach: str, placement: Placement, visits: int) -> str:
    reason = f"{placement} the nonlinearity on the output of {source.layer or source.op}"
    if visits > 1:
        reason += f"; passed {visits} times a forward, which share statistics"
    return reason
