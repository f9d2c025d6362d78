"""One number of each run, arm by arm: a marker a seed and a bar at the median, a panel a measure."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bn_lightning.analysis.plots.selection import Arms, arm_labels
from bn_lightning.analysis.plots.style import CHARACTERS_PER_INCH, REFERENCE_COLOR, arm_styles, house_style

PANEL_WIDTH, PANEL_HEIGHT = 3.1, 3.3  # inches
GAP, SPREAD = 0.3, 0.16  # of the distance between two arms: between two kinds, and among the seeds of one


def plot_by_arm(
    values: pd.DataFrame,
    panels: Mapping[str, str],
    *,
    arms: Arms = None,
    kinds: Mapping[str, str] | None = None,
    log: Collection[str] = (),
) -> Figure:
    """Draw one number of each run, by arm; of two kinds, such as norms in either mode, one is filled and one hollow.

    A value that is not finite has no marker; how many an arm lacks stands below its name. Seeds are set apart sideways,
    in their order.

    Args:
        values: One row a number, with the columns arm, seed, measure and value, and with `kinds` also kind.
        panels: Words for the vertical axis by measure; a measure without a finite value is left out.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        kinds: One or two kinds, name → words.
        log: Measures with a logarithmic axis, where all of their finite values are positive.

    Returns:
        The figure.

    Raises:
        ValueError: If no measure has a finite value.

    Example:
        >>> values = pd.DataFrame({"arm": ["none", "before"], "seed": 0, "measure": "shift", "value": [1.0, 0.1]})
        >>> plot_by_arm(values, {"shift": "shift of activations"}, log=["shift"]).axes[0].get_yscale()
        'log'
    """
    table = values.assign(kind=values["kind"] if kinds is not None else "")
    finite = table[np.isfinite(table["value"].astype(float)) & table["measure"].isin(list(panels))]
    drawn = {name: words for name, words in panels.items() if (finite["measure"] == name).any()}
    if not drawn:
        raise ValueError(f"No value of {', '.join(panels)} is finite: there is nothing to draw.")
    labels = arm_labels(table, arms)
    names = [""] if kinds is None else list(kinds)
    with house_style():
        handles = _legend(kinds)
        # A single panel is as wide as the legend above it.
        words_above = sum(len(str(handle.get_label())) + 8 for handle in handles) / CHARACTERS_PER_INCH
        width = max(PANEL_WIDTH, 0.55 * len(labels) + 1.2, words_above / len(drawn))
        figure = Figure(figsize=(0.4 + width * len(drawn), PANEL_HEIGHT), layout="constrained")
        axes = figure.subplots(1, len(drawn), squeeze=False)[0]
        for ax, (measure, words) in zip(axes, drawn.items(), strict=True):
            _panel(ax, table[table["measure"] == measure], labels, names)
            of_panel = finite.loc[finite["measure"] == measure, "value"]
            if measure in log and (of_panel > 0).all():
                ax.set_yscale("log")
            ax.set_ylabel(words)
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, labels: Mapping[str, str], kinds: list[str]) -> None:
    styles = arm_styles(list(labels))
    ticks = []
    for place, (arm, label) in enumerate(labels.items()):
        own = rows[rows["arm"].astype(str) == arm]
        missing = int((~np.isfinite(own["value"].astype(float))).sum())
        ticks.append(f"{label}\n({missing} of {len(own)} not finite)" if missing else label)
        style = styles[arm]
        for number, kind in enumerate(kinds):
            values = own.loc[own["kind"] == kind].sort_values("seed")["value"].to_numpy(float)
            center = place + GAP * (number - (len(kinds) - 1) / 2)
            # A fixed spread: the same figure each time it is drawn.
            places = center + (
                np.linspace(-0.5, 0.5, len(values)) * SPREAD if len(values) > 1 else np.zeros(len(values))
            )
            face = "none" if number else style.color
            ax.plot(places, values, ls="", marker=style.marker, ms=5, color=style.color, mfc=face, gid="seed")
            if len(seen := values[np.isfinite(values)]):
                ends = [center - SPREAD, center + SPREAD]
                ax.plot(ends, [np.median(seen)] * 2, color=style.color, lw=2, gid="median")
    # Three short names fit side by side under a panel; others are slanted.
    long = sum(map(len, labels.values())) > 20
    ax.set_xticks(range(len(labels)), ticks, rotation=35 if long else 0, ha="right" if long else "center")
    ax.set_xlim(-0.6, len(labels) - 0.4)


def _legend(kinds: Mapping[str, str] | None) -> list[Line2D]:
    words = ["one seed"] if kinds is None else list(kinds.values())
    handles = [
        Line2D([], [], ls="", marker="o", color=REFERENCE_COLOR, mfc="none" if number else REFERENCE_COLOR, label=text)
        for number, text in enumerate(words)
    ]
    return [*handles, Line2D([], [], color=REFERENCE_COLOR, lw=2, label="median")]
