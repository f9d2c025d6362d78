"""What the studies that cross the norm's place with another choice have in common."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.plots.crossed import Published, plot_crossed
from bn_lightning.analysis.plots.note import note_figure
from bn_lightning.analysis.study import Arm, Figure, Problem, Study
from bn_lightning.analysis.summary import final_metric

Place = Literal["none", "before", "after"]
PLACES: dict[Place, str] = {"none": "without BN", "before": "BN before", "after": "BN after"}
SERIES: dict[str, str] = {place: words for place, words in PLACES.items()}  # noqa: C416 - a copy with plain keys
RECALIBRATION_BATCHES = 50
CAFFENET = "CaffeNet on ImageNet at 128 pixels (ducha-aiki/caffenet-benchmark), one run each"


@dataclass(frozen=True)
class Level:
    """One choice of the factor that the norm's place is crossed with.

    Args:
        name: First part of the arms' names.
        words: For figures and tables.
        value: What the choice is, as stored with every cell.
    """

    name: str
    words: str
    value: str | float


@dataclass(frozen=True)
class Cross:
    """A factor, its levels, and what was published of them.

    Args:
        factor: Its name, as stored with every cell.
        levels: Its levels, in the order of figures.
        change: Makes the callbacks that give a model the level's value, for norms at a place.
        published: Accuracies by level and place.
        note: What differs in the published runs, in words for the caption.
    """

    factor: str
    levels: Sequence[Level]
    change: Callable[[Any, Place], list[Any]]
    published: Published
    note: str = ""


def crossed_study(cross: Cross, problem: Problem, *, name: str, question: str, source: str, reference: str) -> Study:
    """Every level of a factor without batch norm, and with it before and after the nonlinearities.

    Population statistics are taken anew before every evaluation.

    Args:
        cross: The factor.
        problem: What to train; its model holds no norms.
        name: Name of the study.
        question: The question.
        source: Where it comes from.
        reference: The arm that all others are compared with.

    Returns:
        The study.
    """
    arms = tuple(
        Arm(
            name=f"{level.name}_{place}",
            label=f"{level.words}, {words}",
            factors={cross.factor: level.value, "placement": place},
            callbacks=functools.partial(_callbacks, cross.change, level.value, place),
        )
        for level in cross.levels
        for place, words in PLACES.items()
    )
    metric = problem.monitor.replace("_", " ")
    factor = cross.factor.replace("_", " ")
    beside = f" Right: accuracy of {CAFFENET}{'; ' + cross.note if cross.note else ''}." if cross.published else ""
    hollow = "A hollow marker leaves out runs that diverged."
    return Study(
        name=name,
        question=question,
        source=source,
        problem=problem,
        reference=reference,
        arms=arms,
        figures=(
            Figure(
                name="metric",
                caption=f"{metric} at the last step by {factor} and place of the norm: mean over seeds with its 95 % "
                f"t interval. {hollow}{beside}",
                draw=functools.partial(_draw_metric, cross),
            ),
            Figure(
                name="gain",
                caption=f"What the norm changes in {metric} at the last step: with it minus without it, {factor} by "
                f"{factor}, in pairs of equal seeds; mean with its 95 % t interval. {hollow}",
                draw=functools.partial(_draw_gain, cross),
            ),
        ),
    )


def _callbacks(change: Callable[[Any, Place], list[Any]], value: Any, place: Place) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.callbacks.insertion import BatchNormInsertion
    from bn_lightning.callbacks.recalibration import BatchNormRecalibration

    changes = change(value, place)
    if place == "none":
        return changes
    recalibration = BatchNormRecalibration(num_batches=RECALIBRATION_BATCHES)
    return [*changes, BatchNormInsertion(placement=place), recalibration]


def final_by_pair(results: pd.DataFrame, study: Study, cross: Cross) -> pd.DataFrame:
    """The metric at the last step of every run, by level and place.

    Args:
        results: The long table.
        study: A crossed study.
        cross: Its factor.

    Returns:
        The columns group (name of the level), series (the place), seed and value; NaN for a run that diverged.
    """
    final = final_metric(results, study)
    rows = [
        (level.name, place, seed, float(final.loc[f"{level.name}_{place}", seed]))
        for level in cross.levels
        for place in PLACES
        if f"{level.name}_{place}" in final.index
        for seed in final.columns
    ]
    return pd.DataFrame(rows, columns=["group", "series", "seed", "value"])


def gains(values: pd.DataFrame) -> pd.DataFrame:
    """Differences to the run of the same level and seed without a norm.

    Args:
        values: What `final_by_pair` returns.

    Returns:
        The same columns, without the place "none".

    Example:
        >>> rows = [("relu", "none", 0, 0.5), ("relu", "before", 0, 0.75)]
        >>> gains(pd.DataFrame(rows, columns=["group", "series", "seed", "value"]))["value"].tolist()
        [0.25]
    """
    plain = values[values["series"] == "none"].set_index(["group", "seed"])["value"]
    with_norm = values[values["series"] != "none"].copy()
    keys = pd.MultiIndex.from_frame(with_norm[["group", "seed"]])
    with_norm["value"] = with_norm["value"].to_numpy() - plain.reindex(keys).to_numpy()
    return with_norm


def _words(cross: Cross) -> dict[str, str]:
    return {level.name: level.words for level in cross.levels}


def _draw_metric(cross: Cross, results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    return plot_crossed(
        final_by_pair(results, study, cross),
        groups=_words(cross),
        series=SERIES,
        xlabel=f"{study.problem.monitor.replace('_', ' ')} at the last step",
        published=cross.published,
        published_xlabel="published accuracy, ImageNet",
    )


def _draw_gain(cross: Cross, results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    differences = gains(final_by_pair(results, study, cross))
    if not np.isfinite(differences["value"]).any():
        return note_figure("No pair of runs with and without the norm ended in finite numbers.")
    return plot_crossed(
        differences,
        groups=_words(cross),
        # "none" keeps its place among the styles, so that colours agree with those of the other figure.
        series=SERIES,
        xlabel=f"{study.problem.monitor.replace('_', ' ')}: difference to without BN",
        zero=True,
    )
