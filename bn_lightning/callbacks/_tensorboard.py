"""Write numbers by layer to a Trainer's loggers, so that TensorBoard shows them well.

TensorBoard groups cards by the first segment of a tag, so a tag is `quantity/<index>.<layer>` with
the index padded by zeros: one group a quantity, its layers in the order of the forward.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bn_lightning.callbacks._compat import rank_zero_warn
from bn_lightning.errors import NoEffectWarning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What was laid out in each TensorBoard writer: several callbacks share a run's only layout.
_LAYOUTS: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
# Loggers that refused to be written to: said once, and left alone from then on.
_REFUSED: weakref.WeakSet[Any] = weakref.WeakSet()


@dataclass(frozen=True)
class Chart:
    """A chart of custom scalars.

    Attributes:
        tags: For a margin chart the tags of the line, the lower and the upper edge; else patterns of the lines' tags,
            which TensorBoard matches from the start of a tag.
        margin: Whether it is a line within a band.
    """

    tags: tuple[str, ...]
    margin: bool = False


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


def tensorboard_writers(loggers: Iterable[Any]) -> list[Any]:
    """The writers of all TensorBoard loggers that have one.

    Args:
        loggers: The Trainer's loggers; call on rank zero only.

    Returns:
        What offers a SummaryWriter's methods; the experiment of a subclass may be something else, or None.
    """
    return [writer for logger in loggers if (writer := _writer(logger)) is not None]


def _writer(logger: Any) -> Any:
    if not is_tensorboard(logger) or _has_refused(logger):
        return None
    # Other loggers are not asked at all: a getter may open a connection.
    return logger.experiment if hasattr(logger.experiment, "add_custom_scalars") else None


def _has_refused(logger: Any) -> bool:
    return any(one is logger for one in _REFUSED)


def write_scalars(loggers: Iterable[Any], scalars: Mapping[str, float], step: int) -> None:
    """Write scalars at a step: to every TensorBoard writer itself, to other loggers by `log_metrics`.

    A logger that raises loses the numbers, with one warning, and is not written to again: what is only watched must
    not end the training.

    Args:
        loggers: The Trainer's loggers; call on rank zero only.
        scalars: Value by tag.
        step: The optimizer step.
    """
    for logger in loggers:
        if _has_refused(logger):
            continue
        writer = _writer(logger)
        try:
            if writer is not None:
                for tag, value in scalars.items():
                    writer.add_scalar(tag, value, step)
            elif is_tensorboard(logger):
                _refuse(logger, f"its experiment is {logger.experiment!r}, which is no SummaryWriter")
            else:
                logger.log_metrics(dict(scalars), step=step)
        except Exception as error:  # whatever a user's logger raises
            _refuse(logger, f"{type(error).__name__}: {error}")


def _refuse(logger: Any, reason: str) -> None:
    _REFUSED.add(logger)
    rank_zero_warn(
        f"{type(logger).__name__} takes none of the numbers that are monitored ({reason}), and is left out from here "
        "on. Training goes on; they are in the callback's table, and in the other loggers.",
        category=NoEffectWarning,
    )


def write_charts(loggers: Iterable[Any], categories: Mapping[str, Mapping[str, Chart]]) -> None:
    """Lay out charts in TensorBoard's custom scalars.

    A run has one such layout, so charts of other categories that were laid out here before are written again
    with these; a later `add_custom_scalars` of the user's replaces it.

    Args:
        loggers: The Trainer's loggers; all but TensorBoard's are passed over.
        categories: For each category its charts by title, all of one sort, in the order in which they shall be read;
            a category without charts is taken out.
    """
    layout = {category: dict(_ordered(charts)) for category, charts in categories.items()}
    for writer in tensorboard_writers(loggers):
        known = _LAYOUTS.setdefault(writer, {})
        known.update(layout)
        if whole := {category: charts for category, charts in known.items() if charts}:
            writer.add_custom_scalars(whole)


def _ordered(charts: Mapping[str, Chart]) -> Iterator[tuple[str, list[Any]]]:
    margin = any(chart.margin for chart in charts.values())
    # TensorBoard's page shows margin charts in reverse order of the layout.
    titles = list(charts)
    for title in reversed(titles) if margin else titles:
        chart = charts[title]
        yield title, ["Margin" if margin else "Multiline", list(chart.tags)]


def write_figures(loggers: Iterable[Any], figures: Mapping[str, "Figure"], step: int) -> None:
    """Write figures to every TensorBoard writer; other loggers have no common way to take one.

    Args:
        loggers: The Trainer's loggers.
        figures: Figure by tag, none of them known to pyplot.
        step: The optimizer step.
    """
    for writer in tensorboard_writers(loggers):
        for tag, figure in figures.items():
            writer.add_figure(tag, figure, step, close=False)
        writer.flush()


def remote_folders(loggers: Iterable[Any]) -> list[str]:
    """The addresses that loggers write to instead of folders, such as s3://bucket/run, each once."""
    folders = [getattr(logger, "log_dir", None) for logger in loggers]
    return list(dict.fromkeys(str(one) for one in folders if isinstance(one, str | Path) and "://" in str(one)))


def log_folders(loggers: Iterable[Any]) -> list[Path]:
    """The folders that loggers write to, each once; loggers without one are passed over, and remote folders."""
    folders = [getattr(logger, "log_dir", None) for logger in loggers]
    # Lightning's DummyLogger answers any name with a function.
    local = [folder for folder in folders if isinstance(folder, str | Path) and "://" not in str(folder)]
    return list(dict.fromkeys(Path(folder) for folder in local if str(folder)))
