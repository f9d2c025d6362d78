"""An insertion plan: every nonlinearity of a model, and whether, where and why a norm goes there."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from bn_lightning.errors import NoSiteError, PlanMismatchError, UnknownNameError
from bn_lightning.surgery.policy import Policy
from bn_lightning.surgery.trace import Node, Trace, trace_calls

if TYPE_CHECKING:
    from rich.table import Table

Placement = Literal["before", "after"]
NormFactory = Callable[[int], nn.Module]
PLAN_VERSION = 1
NORMS = ("batch",)
CUSTOM_NORM = "custom"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Site:
    """One call of a nonlinearity: where a norm is, or could be, attached.

    Args:
        name: Unique name: the activation module's path, or owner and operation for function calls.
        op: The nonlinearity, such as "relu".
        layer: Path of the affine layer that makes the pre-activation; empty where there is none.
        owner: Path of the module whose forward makes the call.
        function: Full name of the torch function called; empty for an activation module.
        activation: Path of the activation module; empty for a function.
        call_index: How many calls of the same function or module came before in one forward of the owner.
        shape: Shape of the pre-activation in the example.
        channels: Size of its channel axis.
        channel_dim: Its channel axis, counted from the end (-1 is the last).
        channel_dim_source: "traced" through the forward, or "guessed" from the number of axes.
        visits: How often one forward of the model passes this site; more than one shares statistics.
        attach: "producer" (hook on the layer), "activation" (hook on the activation module),
            "shared" (on an activation module called several times) or "call" (in the owner's forward).
        decision: "insert" or "skip".
        reason: Why, in words.
    """

    name: str
    op: str
    layer: str
    owner: str
    function: str
    activation: str
    call_index: int
    shape: tuple[int, ...]
    channels: int
    channel_dim: int
    channel_dim_source: Literal["traced", "guessed"]
    visits: int
    attach: Literal["producer", "activation", "shared", "call"]
    decision: Literal["insert", "skip"]
    reason: str


@dataclass(frozen=True)
class InsertionPlan:
    """What insertion does to a model, decided once and enough to repeat it without data.

    Args:
        placement: "before" or "after" the nonlinearity.
        norm: Name of the norm, or "custom" for one made by a factory.
        entry: The method that was traced: "forward" or, for a LightningModule, "training_step".
        sites: Every nonlinearity in the order of the forward.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> plan = plan_insertion(model, (torch.randn(16, 8),))
        >>> [(site.name, site.layer, site.decision) for site in plan.sites]
        [('1', '0', 'insert')]
        >>> InsertionPlan.from_dict(plan.to_dict()) == plan
        True
    """

    placement: Placement
    norm: str
    entry: str
    sites: tuple[Site, ...]

    @property
    def inserted(self) -> tuple[Site, ...]:
        """The sites that get a norm."""
        return tuple(site for site in self.sites if site.decision == "insert")

    @property
    def skipped(self) -> tuple[Site, ...]:
        """The sites that get none."""
        return tuple(site for site in self.sites if site.decision == "skip")

    @property
    def structure(self) -> tuple[Any, ...]:
        """What the plan makes of a model, whatever example it was found with; equal structures are interchangeable."""
        names = ("name", "attach", "layer", "owner", "function", "activation", "call_index", "channels", "channel_dim")
        sites = tuple((*(getattr(site, name) for name in names), len(site.shape)) for site in self.inserted)
        return (self.placement, self.norm, sites)

    def override(self, pattern: str, decision: Literal["insert", "skip"]) -> "InsertionPlan":
        """A new plan in which every site whose name matches has another decision.

        Args:
            pattern: An fnmatch pattern on `Site.name`, such as "encoder.*".
            decision: "insert" or "skip".

        Returns:
            The changed plan; this one stays as it is.

        Raises:
            UnknownNameError: If no site matches.
            ValueError: If the decision is neither word, or a matching site cannot carry a norm.
        """
        if decision not in ("insert", "skip"):
            raise ValueError(f"A decision is 'insert' or 'skip', not {decision!r}.")
        matching = [site for site in self.sites if fnmatch.fnmatchcase(site.name, pattern)]
        if not matching:
            names = ", ".join(site.name for site in self.sites)
            raise UnknownNameError(f"No site matches {pattern!r}; the plan's sites are: {names}.")
        impossible = [site.name for site in matching if decision == "insert" and site.channels == 0]
        if impossible:
            raise ValueError(f"Nothing can be attached at {', '.join(impossible)}; see the reasons in plan.table().")
        changed = {site.name: replace(site, decision=decision, reason=f"override {pattern!r}") for site in matching}
        return replace(self, sites=tuple(changed.get(site.name, site) for site in self.sites))

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types with a version, as it is kept in checkpoints."""
        sites = [{**asdict(site), "shape": list(site.shape)} for site in self.sites]
        return {
            "version": PLAN_VERSION,
            "placement": self.placement,
            "norm": self.norm,
            "entry": self.entry,
            "sites": sites,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "InsertionPlan":
        """The plan that `to_dict` wrote.

        Args:
            data: The dictionary.

        Returns:
            The plan.

        Raises:
            PlanMismatchError: If it is no plan, or one of a version this release cannot read.
        """
        if data.get("version") != PLAN_VERSION:
            raise PlanMismatchError(
                f"This release reads insertion plans of version {PLAN_VERSION}, and found {data.get('version')!r}; "
                "install the release of bn-lightning that wrote it."
            )
        names = {field.name for field in fields(Site)}
        wrong = [site for site in data.get("sites", ()) if set(site) != names]
        if wrong or not {"placement", "norm", "entry", "sites"} <= set(data):
            raise PlanMismatchError("The insertion plan is incomplete; make it anew with plan_insertion.")
        sites = tuple(Site(**{**site, "shape": tuple(site["shape"])}) for site in data["sites"])
        return InsertionPlan(data["placement"], data["norm"], data["entry"], sites)

    def table(self) -> "Table":
        """The plan as a rich table, one row a site."""
        from rich.table import Table

        title = f"{len(self.inserted)} of {len(self.sites)} sites get a norm ({self.norm}, {self.placement})"
        table = Table("site", "op", "layer", "shape", "channels", "attach", "decision", "reason", title=title)
        for site in self.sites:
            shape = "×".join(str(size) for size in site.shape)
            channels = f"{site.channels} (axis {site.channel_dim}, {site.channel_dim_source})"
            table.add_row(site.name, site.op, site.layer, shape, channels, site.attach, site.decision, site.reason)
        return table


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
    if placement not in ("before", "after"):
        raise UnknownNameError(f"placement is 'before' or 'after' the nonlinearity, not {placement!r}.")
    if isinstance(norm, str) and norm not in NORMS:
        raise UnknownNameError(
            f"No norm is called {norm!r}; the names are {', '.join(NORMS)}, or give a factory channels -> nn.Module."
        )
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
    sites = _sites(model, trace, placement)
    if not sites:
        raise NoSiteError(
            f"No nonlinearity was called when {type(model).__name__}.{entry} ran on the example, so there is no place "
            "for a norm. Check that the example takes the path with the activations in it."
        )
    plan = InsertionPlan(placement, norm if isinstance(norm, str) else CUSTOM_NORM, entry, sites)
    for pattern in exclude:
        plan = plan.override(pattern, "skip")
    return plan


def _sites(model: nn.Module, trace: Trace, placement: Placement) -> tuple[Site, ...]:
    policy = Policy(trace)
    visits: dict[Any, list[Node]] = {}
    for node in trace.nodes:
        if node.role == "nonlinearity" and node.call is not None:
            visits.setdefault(node.call, []).append(node)
    calls_of = Counter(call.activation for call in visits)
    sites: list[Site] = []
    taken: set[str] = set()
    for call, nodes in visits.items():
        node = nodes[0]
        source = trace.nodes[node.inputs[0]]
        reason = next((text for text in map(policy.skip_reason, nodes) if text), "")
        channel_dim, known = _channel_dim(source)
        attach = _attach(policy, nodes, placement, once=call.activation is not None and calls_of[call.activation] == 1)
        if attach == "call" and isinstance(model.get_submodule(call.owner or ""), _CONTAINERS):
            reason = reason or f"called in the container {call.owner!r}, which would run a norm among its children"
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
                channels=source.shape[channel_dim] if len(source.shape) > 1 and call.owner is not None else 0,
                channel_dim=channel_dim,
                channel_dim_source="traced" if known else "guessed",
                visits=len(nodes),
                attach=attach,
                decision="skip" if reason else "insert",
                reason=reason or _insert_reason(source, attach, placement, len(nodes)),
            )
        )
    return tuple(sites)


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
    if placement == "before" and all(policy.producer(node) is not None for node in nodes):
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
