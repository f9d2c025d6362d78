"""An insertion plan: every nonlinearity of a model, and whether, where and why a norm goes there."""

import fnmatch
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from bn_lightning.errors import PlanMismatchError, UnknownNameError
from bn_lightning.surgery.plan_format import check_fields, check_sites

if TYPE_CHECKING:
    from rich.table import Table

Placement = Literal["before", "after"]
SiteChoice = Literal["nonlinearity", "affine"]
BiasChoice = Literal["freeze", "keep"]
NormFactory = Callable[[int], nn.Module]
PLAN_VERSION = 2
NORMS = ("batch", "layer", "group", "instance", "rms")
CUSTOM_NORM = "custom"


@dataclass(frozen=True)
class Site:
    """One call of a nonlinearity, or one layer, where a norm is, or could be, attached.

    Args:
        name: Unique name: the activation module's path, owner and operation for function calls, or the layer's path.
        op: The nonlinearity, such as "relu"; "input" for a norm on what a first layer reads.
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
            "shared" (on an activation module called several times), "call" (in the owner's forward)
            or "input" (on what the layer reads).
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
    attach: Literal["producer", "activation", "shared", "call", "input"]
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
        norm_options: The norm's own arguments, such as momentum; JSON types.
        bias: Whether the bias of a layer behind which the norm subtracts a mean is frozen ("freeze") or trained on
            ("keep").
        model: Name of the class that was traced; empty where an older release wrote the plan.
        num_examples: How many examples were traced together.

    Example:
        >>> import torch
        >>> from bn_lightning.surgery.planning import plan_insertion
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
    norm_options: Mapping[str, Any] = field(default_factory=dict)
    bias: BiasChoice = "freeze"
    model: str = ""
    num_examples: int = 1

    @property
    def inserted(self) -> tuple[Site, ...]:
        """The sites that get a norm."""
        return tuple(site for site in self.sites if site.decision == "insert")

    @property
    def skipped(self) -> tuple[Site, ...]:
        """The sites that get none."""
        return tuple(site for site in self.sites if site.decision == "skip")

    @property
    def why_skipped(self) -> str:
        """The reasons of the skipped sites, each once, with how many sites it holds for and the first of them."""
        of_reason: dict[str, list[str]] = {}
        for site in self.skipped:
            of_reason.setdefault(site.reason, []).append(site.name)
        return "; ".join(f"{_few(names)}: {reason}" for reason, names in of_reason.items())

    @property
    def structure(self) -> tuple[Any, ...]:
        """What the plan makes of a model, whatever example it was found with; equal structures are interchangeable."""
        names = ("name", "attach", "layer", "owner", "function", "activation", "call_index", "channels", "channel_dim")
        sites = tuple((*(getattr(site, name) for name in names), len(site.shape)) for site in self.inserted)
        return (self.placement, self.norm, json.dumps(dict(self.norm_options), sort_keys=True), sites)

    def under(self, path: str) -> "InsertionPlan":
        """The same plan for a model that holds this one's model as its sub-module `path`."""

        def moved(site: Site) -> Site:
            paths = {name: f"{path}.{getattr(site, name)}".rstrip(".") for name in ("name", "owner")}
            for name in ("layer", "activation"):
                paths[name] = f"{path}.{getattr(site, name)}" if getattr(site, name) else ""
            return replace(site, **paths)  # type: ignore[arg-type] # all four are strings

        return replace(self, sites=tuple(moved(site) for site in self.sites))

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
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return {"version": PLAN_VERSION, **settings, "norm_options": dict(self.norm_options), "sites": sites}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "InsertionPlan":
        """The plan that `to_dict` wrote, in this release or an earlier one.

        Args:
            data: The dictionary.

        Returns:
            The plan.

        Raises:
            PlanMismatchError: If it is no plan, incomplete or contradicts itself, or one of a version this release
                cannot read.
        """
        version = data.get("version") if isinstance(data, Mapping) else None
        if type(version) is not int or not 1 <= version <= PLAN_VERSION:
            raise PlanMismatchError(
                f"This release reads insertion plans of version 1 to {PLAN_VERSION}, and found {version!r}; "
                "install the release of bn-lightning that wrote it."
            )
        # The first version had no settings but these, and what it lacks has its default.
        settings = {name: data[name] for name in _SETTINGS if name in data}
        needed = _SETTINGS if version == PLAN_VERSION else ("placement", "norm", "entry")
        if not isinstance(data.get("sites"), list | tuple) or not set(needed) <= set(settings):
            raise PlanMismatchError("The insertion plan is incomplete; make it anew with plan_insertion.")
        check_fields(InsertionPlan, settings, "the plan")
        names = {field.name for field in fields(Site)}
        for number, site in enumerate(data["sites"]):
            check_fields(Site, site, f"site {number}")
            if set(site) != names:
                raise PlanMismatchError("The insertion plan is incomplete; make it anew with plan_insertion.")
        sites = tuple(Site(**{**site, "shape": tuple(site["shape"])}) for site in data["sites"])
        check_sites(sites)
        return InsertionPlan(sites=sites, **settings)

    def table(self) -> "Table":
        """The plan as a rich table, one row a site."""
        from rich.table import Table

        options = "".join(f", {name}={value}" for name, value in self.norm_options.items())
        title = f"{len(self.inserted)} of {len(self.sites)} sites get a norm ({self.norm}{options}, {self.placement})"
        table = Table("site", "op", "layer", "shape", "channels", "attach", "decision", "reason", title=title)
        for site in self.sites:
            shape = "×".join(str(size) for size in site.shape)
            channels = f"{site.channels} (axis {site.channel_dim}, {site.channel_dim_source})"
            table.add_row(site.name, site.op, site.layer, shape, channels, site.attach, site.decision, site.reason)
        return table


def _few(names: list[str], most: int = 3) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


_SETTINGS = tuple(field.name for field in fields(InsertionPlan) if field.name != "sites")
