"""Which nonlinearities of a model have a pre-activation worth following, and what to call them."""

import difflib
import fnmatch
from collections import Counter
from collections.abc import Sequence

from bn_lightning.errors import UnknownNameError
from bn_lightning.surgery.plan import Site


def monitored_sites(
    sites: Sequence[Site], *, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> tuple[Site, ...]:
    """The sites whose input an affine layer made, gates left out.

    A site that insertion skips, because it is normalised already or is the output head, still has a
    pre-activation and stays.

    Args:
        sites: Sites of a plan made with `placement="before"`, in the order of the forward.
        include: fnmatch patterns on the layer's path; None takes every layer.
        exclude: fnmatch patterns on the layer's path to leave out.

    Returns:
        The sites, in their order.

    Raises:
        UnknownNameError: If a pattern matches no layer.
    """
    found = [site for site in sites if site.layer and site.channels and not site.reason.startswith("a gate")]
    layers = [site.layer for site in found]
    wanted = set(layers) if include is None else matching_layers(include, layers)
    return tuple(site for site in found if site.layer in wanted - matching_layers(exclude or (), layers))


def matching_layers(patterns: str | Sequence[str], layers: Sequence[str]) -> set[str]:
    """The layers that any of the patterns matches.

    Args:
        patterns: One fnmatch pattern, or several.
        layers: Paths of the layers there are.

    Returns:
        The paths.

    Raises:
        UnknownNameError: If a pattern matches none; the message names the near ones.

    Example:
        >>> sorted(matching_layers("net.*", ["stem", "net.0", "net.2"]))
        ['net.0', 'net.2']
    """
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = set(fnmatch.filter(layers, pattern))
        if not found:
            near = difflib.get_close_matches(pattern, layers, n=3) or list(dict.fromkeys(layers))[:10]
            raise UnknownNameError(
                f"No monitored layer matches {pattern!r}; "
                + (f"there are, for instance: {', '.join(near)}." if near else "there is none.")
            )
        matched |= found
    return matched


def site_labels(sites: Sequence[Site]) -> tuple[str, ...]:
    """A unique name for each site: its layer's path, and from a layer's second site on its number.

    A layer has several sites when a module is shared or several nonlinearities read its output.

    Args:
        sites: The sites, in the order of the forward.

    Returns:
        Names such as "fc", "fc-2".
    """
    seen: Counter[str] = Counter()
    labels = []
    for site in sites:
        seen[site.layer] += 1
        labels.append(site.layer if seen[site.layer] == 1 else f"{site.layer}-{seen[site.layer]}")
    return tuple(labels)
