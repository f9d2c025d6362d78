"""Write numbers by layer to a Trainer's loggers, so that TensorBoard shows them well.

TensorBoard groups cards by the first segment of a tag, so a tag is `quantity/<index>.<layer>` with
the index padded by zeros: one group a quantity, its layers in the order of the forward.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What was laid out in each TensorBoard writer: several callbacks share a run's only layout.
_LAYOUTS: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def layer_tags(labels: Sequence[str]) -> tuple[str, ...]:
    """The last segment of each layer's tags.

    Args:
        labels: Names of the layers in the order of the forward.

    Returns:
        Such as "00.net.0", "01.net.2".
    """
    width = max(2, len(str(len(labels) - 1)))
    return tuple(f"{index:0{width}d}.{label}" for index, label in enumerate(labels))


def is_tensorboard(logger: Any) -> bool:
    """Whether a logger is the TensorBoardLogger of either Lightning package, or derived from one."""
    return any(ancestor.__name__ == "TensorBoardLogger" for ancestor in type(logger).__mro__)


def write_scalars(loggers: Iterable[Any], scalars: Mapping[str, float], step: int) -> None:
    """Write scalars at a step: to every TensorBoard writer itself, to other loggers by `log_metrics`.

    Args:
        loggers: The Trainer's loggers; call on rank zero only.
        scalars: Value by tag.
        step: The optimizer step.
    """
    for logger in loggers:
        if is_tensorboard(logger):
            for tag, value in scalars.items():
                logger.experiment.add_scalar(tag, value, step)
        else:
            logger.log_metrics(dict(scalars), step=step)


def write_margin_charts(loggers: Iterable[Any], categories: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Lay out one margin chart a layer in TensorBoard's custom scalars: a line within a band.

    A run has one such layout, so charts of other categories that were laid out here before are written again
    with these; a later `add_custom_scalars` of the user's replaces it.

    Args:
        loggers: The Trainer's loggers; all but TensorBoard's are passed over.
        categories: For each category the tags of (line, lower edge, upper edge) by chart title, in
            the order in which the charts shall be read; a category without charts is taken out.
    """
    # TensorBoard's page shows margin charts in reverse order of the layout.
    layout = {
        category: {title: ["Margin", list(tags)] for title, tags in reversed(list(charts.items()))}
        for category, charts in categories.items()
    }
    for logger in loggers:
        if is_tensorboard(logger):
            known = _LAYOUTS.setdefault(logger.experiment, {})
            known.update(layout)
            if whole := {category: charts for category, charts in known.items() if charts}:
                logger.experiment.add_custom_scalars(whole)


def write_figures(loggers: Iterable[Any], figures: Mapping[str, "Figure"], step: int) -> None:
    """Write figures to every TensorBoard writer; other loggers have no common way to take one.

    Args:
        loggers: The Trainer's loggers.
        figures: Figure by tag, none of them known to pyplot.
        step: The optimizer step.
    """
    for logger in loggers:
        if is_tensorboard(logger):
            for tag, figure in figures.items():
                logger.experiment.add_figure(tag, figure, step, close=False)
            logger.experiment.flush()


def log_folders(loggers: Iterable[Any]) -> list[Path]:
    """The folders that loggers write to, each once; loggers without one are passed over."""
    folders = [getattr(logger, "log_dir", None) for logger in loggers]
    return list(dict.fromkeys(Path(folder) for folder in folders if folder))
