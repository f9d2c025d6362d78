"""Compare the calls that an owner's forward makes with those that its plan was made from."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from bn_lightning.errors import InsertionWarning
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.tracing.ops import FULL_NAMES, NONLINEARITIES, ROLES, bare_name


class ExpectedCalls:
    """What one owner called in the example; warns once where its forward makes other calls.

    Args:
        path: Path of the owner.
        counts: How many calls one forward made of what has a norm, by full name of the function or path of the
            activation module.
        known: Full names of all functions it called, with or without a norm.
        at_most: Whether several examples were traced, so that one forward may well make fewer calls.
    """

    def __init__(self, path: str, counts: Mapping[str, int], known: Collection[str], *, at_most: bool = False) -> None:
        self.path = path
        # Of clamp and its kind only some uses are sites, so the plan does not say how many calls there were.
        self.counts = {name: count for name, count in counts.items() if _always(NONLINEARITIES.get(name))}
        self.known = frozenset(known)
        self.at_most = at_most
        self.warned = False

    @classmethod
    def of(cls, path: str, sites: Iterable[Site], *, at_most: bool) -> "ExpectedCalls":
        """The calls that the owner at `path` makes among the sites of a plan, inserted or skipped."""
        own = [site for site in sites if site.owner == path]
        counted = {_name(site) for site in own if site.decision == "insert" and site.attach in ("call", "shared")}
        # A layer passed several times is one site, which knows the first of the calls behind it alone.
        counted -= {_name(site) for site in own if site.attach == "producer" and site.visits > 1}
        counts = dict.fromkeys(counted, 0)
        for site in own:
            if _name(site) in counts:
                counts[_name(site)] = max(counts[_name(site)], site.call_index + 1)
        return cls(path, counts, {site.function for site in own}, at_most=at_most)

    def unforeseen(self) -> list[Callable[..., Any]]:
        """The nonlinearities that the example did not call."""
        return [function for name, function in NONLINEARITIES.items() if name not in self.known and _always(function)]

    def compare(self, made: Mapping[Any, int]) -> None:
        """Warn once where a forward made other calls than in the example: norms are matched by order.

        Args:
            made: Number of calls by function, or by path of an activation module.
        """
        for name, planned in self.counts.items():
            found = made.get(NONLINEARITIES.get(name, name), 0)
            if found > planned or (found < planned and not self.at_most):
                self._warn(
                    f"called {name} {found} times, and {planned} times on the example that norms were inserted with. "
                    "Norms are matched to calls by their order, so they may act on others than planned here"
                )

    def meet(self, function: Callable[..., Any]) -> None:
        """Warn once of a nonlinearity that the example did not call.

        Args:
            function: One of `unforeseen`.
        """
        self._warn(
            f"called {FULL_NAMES[function]}, which it did not on the example that norms were inserted with, so this "
            "nonlinearity has no norm"
        )

    def _warn(self, text: str) -> None:
        if not self.warned:
            self.warned = True
            owner = f"of {self.path!r}" if self.path else "of the model"
            warnings.warn(
                f"The forward {owner} {text}. Insert with examples of every path (more_examples), give the calls "
                "activation modules of their own, or exclude them. This is said once.",
                InsertionWarning,
                stacklevel=4,
            )


def _name(site: Site) -> str:
    return site.function or site.activation


def _always(function: Callable[..., Any] | None) -> bool:
    """Whether every call is a site, as those of relu and of activation modules."""
    return function is None or ROLES.get(bare_name(function)) == "nonlinearity"
