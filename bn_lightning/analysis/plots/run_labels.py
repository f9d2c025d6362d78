"""Figures of runs by how they ended: which rates end how, and what each measure showed before."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from bn_lightning.analysis.measures_by_run import MEASURES
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, arm_styles, house_style
from bn_lightning.analysis.run_labels import LABELS

# Okabe & Ito's blue, sky blue, orange and vermilion: from well to ill; hatches tell them apart in grey too.
_COLORS = {"converged": "#0072B2", "oscillating": "#E69F00", "stuck": "#999999", "diverged": "#D55E00"}
_HATCHES = {"converged": "", "oscillating": "///", "stuck": "...", "diverged": "xx"}


def plot_label_counts(labels: pd.DataFrame, *, groups: Sequence[str], words: Mapping[str, str]) -> Figure:
    """How many seeds ended how, at each learning rate: one panel a group of arms.

    Args:
        labels: The columns group, rate, seed and label, one row a run.
        groups: The panels, in order.
        words: Their titles.

    Returns:
        The figure.
    """
    rates = sorted(labels["rate"].unique())
    with house_style():
        figure = Figure(figsize=(1.2 + 2.3 * len(groups), 3.1), layout="constrained")
        axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for group, ax in zip(groups, axes, strict=True):
            counts = labels[labels["group"] == group].groupby(["rate", "label"]).size().unstack(fill_value=0)
            bottom = np.zeros(len(rates))
            for label in LABELS:
                heights = counts.reindex(rates).get(label, pd.Series(0, index=rates)).fillna(0).to_numpy()
                ax.bar(
                    range(len(rates)),
                    heights,
                    bottom=bottom,
                    color=_COLORS[label],
                    hatch=_HATCHES[label],
                    edgecolor="white",
                    linewidth=0.5,
                    label=label,
                )
                bottom += heights
            ax.set_title(words[group])
            ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], rotation=45)
            ax.set_xlabel("learning rate, multiple")
        axes[0].set_ylabel("runs (seeds)")
        axes[0].yaxis.get_major_locator().set_params(integer=True)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(LABELS))
    return figure


def plot_measures_by_label(measures: pd.DataFrame, *, groups: Sequence[str], words: Mapping[str, str]) -> Figure:
    """Each measure of each run, by how the run ended; one marker a run.

    Args:
        measures: The columns group, label, measure and value, one row a run and measure.
        groups: Groups of arms, in the order of the legend.
        words: Their names in the legend.

    Returns:
        The figure.
    """
    styles = arm_styles(groups)
    columns = 3
    with house_style():
        figure = Figure(figsize=(10, 2.9 * -(-len(MEASURES) // columns) + 0.5), layout="constrained")
        axes = figure.subplots(-(-len(MEASURES) // columns), columns, squeeze=False)
        for measure, ax in zip(MEASURES, axes.flat, strict=False):
            drawn = measures[measures["measure"] == measure.name].dropna(subset="value")
            drawn = drawn[drawn["value"] > 0] if measure.log else drawn
            for offset, group in enumerate(groups):
                one = drawn[drawn["group"] == group]
                # A fixed offset a group and an even spread within it: the same figure each time it is drawn.
                places = one["label"].map(LABELS.index).to_numpy(float) + (offset - (len(groups) - 1) / 2) * 0.19
                ax.plot(
                    places + np.linspace(-0.06, 0.06, len(one)),
                    one["value"],
                    linestyle="",
                    markersize=4,
                    marker=styles[group].marker,
                    color=styles[group].color,
                    alpha=0.6,
                    label=words[group],
                    markeredgewidth=0,
                )
            if measure.log:
                _logarithmic(ax)
            ax.set_xticks(range(len(LABELS)), LABELS, fontsize="small", rotation=20)
            ax.set_xlim(-0.5, len(LABELS) - 0.5)
            ax.set_ylabel(measure.words)
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(groups))
    return figure


def _logarithmic(ax: Axes) -> None:
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high > 10 * low:
        # Two decades or more are read off their powers of ten.
        ax.yaxis.set_minor_formatter(NullFormatter())


def plot_before_blow_up(aligned: pd.DataFrame, *, groups: Sequence[str], words: Mapping[str, str]) -> Figure:
    """The measures of diverged runs over the steps before they blew up: median and quartiles over runs.

    Args:
        aligned: The columns group, steps_left, measure and value.
        groups: Groups of arms, in the order of the legend; those without a diverged run are left out.
        words: Their names in the legend.

    Returns:
        The figure; one line of text where no run diverged.
    """
    styles = arm_styles(groups)
    drawn = [measure for measure in MEASURES if measure.how == "median"]
    met = [group for group in groups if (aligned["group"] == group).any()]
    with house_style():
        if not met:
            figure = Figure(figsize=(6, 1), layout="constrained")
            figure.text(0.02, 0.5, "No run diverged, so there is nothing to align.", color=REFERENCE_COLOR)
            return figure
        columns = 3
        figure = Figure(figsize=(10, 2.9 * -(-len(drawn) // columns) + 0.5), layout="constrained")
        axes = figure.subplots(-(-len(drawn) // columns), columns, squeeze=False, sharex=True)
        for measure, ax in zip(drawn, axes.flat, strict=False):
            values = aligned[(aligned["measure"] == measure.name) & np.isfinite(aligned["value"].astype(float))]
            for group in met:
                one = values[values["group"] == group]
                if one.empty:
                    continue
                sns.lineplot(
                    x=-one["steps_left"].to_numpy(float),
                    y=one["value"].to_numpy(float),
                    ax=ax,
                    legend=False,
                    estimator="median",
                    errorbar=("pi", 50),
                    color=styles[group].color,
                    label=words[group],
                    linestyle=styles[group].dash,
                )
            if measure.log:
                _logarithmic(ax)
            ax.set_ylabel(measure.words)
        for ax in axes.flat[len(drawn) :]:
            ax.set_axis_off()
        for column in range(columns):
            # The lowest panel that is drawn; under it may be an empty place.
            lowest = axes.flat[: len(drawn)][column::columns][-1]
            lowest.set_xlabel("steps to the blow-up")
            lowest.tick_params(labelbottom=True)
        handles, names = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=len(met))
    return figure
