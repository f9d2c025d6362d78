"""Which sites a user's include and exclude name: by pattern, or by the type of a module."""

import fnmatch
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from bn_lightning.errors import UnknownNameError
from bn_lightning.surgery.plan import Site

Selector = str | type[nn.Module]


def select(
    model: nn.Module, sites: tuple[Site, ...], *, include: Iterable[Selector] | None, exclude: Iterable[Selector]
) -> tuple[Site, ...]:
    """Skip the sites that were not included, and those that were excluded.

    A pattern selects sites by name, as `InsertionPlan.override` does. A type selects the sites whose
    activation module, layer or any module around these is an instance of it: `nn.Conv2d` those behind
    two-dimensional convolutions, `nn.TransformerEncoderLayer` those within such layers.

    Args:
        model: The model the sites belong to.
        sites: Sites as the rules decided them.
        include: Patterns and types; None includes everything. What the rules skip stays skipped.
        exclude: Patterns and types.

    Returns:
        The sites, in the same order.

    Raises:
        TypeError: If `include` or `exclude` is one string or type instead of several, or holds something else.
        UnknownNameError: If a pattern or type selects no site.

    Example:
        >>> from bn_lightning.surgery.planning import plan_insertion
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> sites = plan_insertion(model, (torch.zeros(2, 4),)).sites
        >>> [site.decision for site in select(model, sites, include=None, exclude=[nn.Tanh])]
        ['insert', 'skip']
    """
    chosen = None if include is None else _selected(model, sites, include, "include")
    unwanted = _selected(model, sites, exclude, "exclude")
    decided = []
    for site in sites:
        if site.name in unwanted:
            decided.append(replace(site, decision="skip", reason=f"excluded by {unwanted[site.name]}"))
        elif chosen is not None and site.name not in chosen and site.decision == "insert":
            decided.append(replace(site, decision="skip", reason="not among the included"))
        else:
            decided.append(site)
    return tuple(decided)


def matches(model: nn.Module, site: Site, selector: Selector) -> bool:
    """Whether a pattern or a type selects a site, as for `select`.

    Args:
        model: The model the site belongs to.
        site: The site.
        selector: An fnmatch pattern, or a module type.

    Returns:
        The answer.
    """
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(site.name, selector)
    paths = {path for path in (site.activation, site.layer, site.owner) if path}
    around = {path.rsplit(".", depth)[0] for path in paths for depth in range(path.count(".") + 1)}
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path in around}
    return any(isinstance(module, selector) for module in modules.values())


def _selected(model: nn.Module, sites: tuple[Site, ...], selectors: Iterable[Selector], option: str) -> dict[str, str]:
    """For each selected site the selector in words."""
    if isinstance(selectors, str | type):
        raise TypeError(f"{option} takes several patterns or module types, such as [{_words(selectors)}].")
    found: dict[str, str] = {}
    for selector in selectors:
        if not isinstance(selector, str | type):
            raise TypeError(
                f"{option} takes patterns of site names and module types, not a {type(selector).__name__} itself."
            )
        matching = [site for site in sites if matches(model, site, selector)]
        if not matching:
            names = ", ".join(site.name for site in sites)
            raise UnknownNameError(f"No site matches {_words(selector)} of {option}; the model's sites are: {names}.")
        for site in matching:
            found.setdefault(site.name, _words(selector))
    return found


def _words(selector: Selector) -> str:
    return repr(selector) if isinstance(selector, str) else selector.__name__
