"""TensorBoard's custom scalars of a monitor: the network as a whole first, then a margin chart a layer."""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import median

from bn_lightning.callbacks._tensorboard import Chart

KINDS = {
    "preactivation": "pre-activations",
    "activation": "activations",
    "output": "outputs",
    "preactivation_gradient": "gradients of pre-activations",
    "activation_gradient": "gradients of activations",
    "output_gradient": "gradients of outputs",
}
"""What each kind of series is called where people read it, in the order of the forward and back."""

# What says how a network as a whole fares, by its name in tags.
OVERALL = {
    "norm": "norm",
    "var": "variance",
    "mean": "mean",
    "saturated": "saturated share",
    "dead": "dead share",
}
# All lines of a run have one colour in TensorBoard; marks and the pointer tell a few of them apart.
MOST_LINES = 8


def is_gradient(kind: str) -> bool:
    """Whether a kind of series is a gradient of the loss."""
    return kind.endswith("_gradient")


class LayerTags:
    """Which layers have had which statistic, and its value in each of them at the last step.

    Attributes:
        count: How many pairs of statistic and layer there are; charts change when it does.
    """

    def __init__(self) -> None:
        self.count = 0
        self._last: dict[str, dict[str, dict[str, float]]] = {}

    def add(self, kind: str, tag: str, values: Mapping[str, float]) -> None:
        """Take in a layer's numbers.

        Args:
            kind: What they are of.
            tag: Last part of the layer's tags.
            values: By name of the statistic; those not in `OVERALL` are passed over.
        """
        names = ("norm",) if is_gradient(kind) else OVERALL
        of_kind = self._last.setdefault(kind, {})
        for name in names:
            layers = of_kind.setdefault(name, {})
            if name in values:
                self.count += tag not in layers
                layers[tag] = values[name]
            elif tag in layers:
                layers[tag] = math.nan

    def of(self, kind: str) -> dict[str, list[str]]:
        """The last parts of the tags of the layers that have had each statistic, in the order of the forward."""
        return {name: sorted(layers) for name, layers in self._last.get(kind, {}).items()}

    def ranges(self) -> dict[str, float]:
        """The scalars that `range_charts` shows, of the last step.

        Returns:
            Least, median and greatest finite value by tag, of statistics with more layers than a chart has lines.
        """
        scalars: dict[str, float] = {}
        for kind, of_kind in self._last.items():
            for name, layers in of_kind.items():
                finite = [value for value in layers.values() if math.isfinite(value)]
                if len(layers) > MOST_LINES and finite:
                    found = {"min": min(finite), "median": median(finite), "max": max(finite)}
                    scalars |= {f"{kind}_layers/{name}_{rank}": value for rank, value in found.items()}
        return scalars


def whole_network(tags: LayerTags, *, prefix: str, suffix: str) -> dict[str, dict[str, Chart]]:
    """Categories of charts of the network as a whole, for each kind that is recorded.

    Args:
        tags: The layers that have each statistic.
        prefix: Of the tags.
        suffix: Of the titles.

    Returns:
        Charts by title by category; a category may be empty.
    """
    categories = {}
    for kind, title in KINDS.items():
        found = tags.of(kind)
        categories[f"{title}, the whole network{suffix}"] = overall_charts(f"{prefix}{kind}", found)
        categories[f"{title}, range over all layers{suffix}"] = range_charts(f"{prefix}{kind}", found)
    return categories


def overall_charts(quantity: str, tags: Mapping[str, Sequence[str]]) -> dict[str, Chart]:
    """A chart of several layers for each statistic: all layers, or eight evenly spread over the depth.

    Args:
        quantity: First part of the tags, up to the statistic: `preactivation`.
        tags: For each statistic of `OVERALL`, the last parts of the tags of the layers that have it.

    Returns:
        Charts by title, of statistics that two layers have or more.
    """
    charts = {}
    for name, title in OVERALL.items():
        layers = tags.get(name, ())
        if len(layers) < 2:
            continue
        chosen = spread(layers, MOST_LINES)
        whole = f"all {len(layers)} layers" if len(chosen) == len(layers) else f"{len(chosen)} of {len(layers)} layers"
        # One pattern a chart, since the page asks the server once for each.
        pattern = f"{re.escape(f'{quantity}_{name}/')}({'|'.join(map(re.escape, chosen))})$"
        charts[f"{title}, {whole}"] = Chart((pattern,))
    return charts


def range_charts(quantity: str, tags: Mapping[str, Sequence[str]]) -> dict[str, Chart]:
    """A margin chart for each statistic: the median layer within the least and the greatest.

    Args:
        quantity: First part of the tags, up to the statistic.
        tags: For each statistic of `OVERALL`, the last parts of the tags of the layers that have it.

    Returns:
        Charts by title, of statistics with more layers than one chart has lines.
    """
    return {
        f"{title}: the median layer, between the least and the greatest": Chart(
            tuple(f"{quantity}_layers/{name}_{rank}" for rank in ("median", "min", "max")), margin=True
        )
        for name, title in OVERALL.items()
        if len(tags.get(name, ())) > MOST_LINES
    }


def spread(items: Sequence[str], most: int) -> list[str]:
    """At most so many items, evenly spread, the first and the last among them.

    Args:
        items: In order.
        most: Two or more.

    Returns:
        The items themselves where there are few enough.

    Example:
        >>> spread("abcdefg", 3)
        ['a', 'd', 'g']
    """
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]
