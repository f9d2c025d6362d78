"""Tables of recorded activations: statistics by layer and by channel, and histograms."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bn_lightning.errors import UnknownNameError
from bn_lightning.functional.activation_histogram import channel_histograms, histogram_edges, layer_histogram
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.channel_samples import channel_percentiles
from bn_lightning.functional.saturation import channel_saturated_shares, dead_channels, dead_share, saturated_share

if TYPE_CHECKING:
    import pandas

PREACTIVATION = "preactivation"
ACTIVATION = "activation"
OUTPUT = "output"


@dataclass(frozen=True)
class Row:
    """What is known of one recorded tensor.

    Attributes:
        name: Its name in tables.
        kind: "preactivation", "activation" or "output".
        op: The nonlinearity that receives or returns it; empty for outputs.
        summary: What was recorded.
    """

    name: str
    kind: str
    op: str
    summary: ActivationSummary


def percentile_name(percent: float) -> str:
    """What a percentile is called in tables and tags, such as "p15" or "p2.5"."""
    return f"p{percent:g}"


def checked_percentiles(percentiles: Sequence[float]) -> tuple[float, ...]:
    """Percentages in ascending order, each once.

    Args:
        percentiles: What was asked for.

    Returns:
        The percentages.

    Raises:
        ValueError: If there is none, or one does not lie between 0 and 100; these two are extremes, of which a sample
            says nothing.
    """
    if not percentiles or any(not 0 < percent < 100 for percent in percentiles):
        raise ValueError(
            f"Percentiles are one or more numbers between 0 and 100, got {tuple(percentiles)}. 0 and 100 themselves "
            "are the extremes, which a sample cannot say: mode='exact' gives them as min and max."
        )
    return tuple(sorted(set(percentiles)))


def layer_table(rows: Iterable[Row], percentiles: Sequence[float]) -> "pandas.DataFrame":
    """One row a tensor.

    Args:
        rows: What was recorded.
        percentiles: Percentages of the percentile columns.

    Returns:
        The table, with the columns that `ActivationRecord.table` describes.
    """
    import pandas as pd

    return pd.DataFrame([_layer_row(row, percentiles) for row in rows])


def channel_table(rows: Iterable[Row], percentiles: Sequence[float]) -> "pandas.DataFrame":
    """One row a channel of each tensor.

    Args:
        rows: What was recorded.
        percentiles: Percentages of the percentile columns.

    Returns:
        The table, with the columns that `ActivationRecord.table` describes.
    """
    import pandas as pd

    return pd.concat([pd.DataFrame(_channel_columns(row, percentiles)) for row in rows], ignore_index=True)


def histogram_table(rows: Iterable[Row], *, bins: int, by: str) -> "pandas.DataFrame":
    """One row a bin of each tensor, or of each of its channels.

    Args:
        rows: What was recorded; tensors without a finite element are passed over.
        bins: Equally wide bins from the least to the greatest element of the tensor.
        by: "layer" or "channel".

    Returns:
        Columns layer, channel (by channel), low, high, count.

    Raises:
        UnknownNameError: If `by` is neither word.
        ValueError: If there is no bin.
    """
    import pandas as pd

    checked_by(by)
    columns = ["layer", "channel", "low", "high", "count"] if by == "channel" else ["layer", "low", "high", "count"]
    tables = []
    for row in rows:
        if not row.summary.sampled:
            continue
        edges = histogram_edges(row.summary, bins)
        counts = channel_histograms(row.summary, edges) if by == "channel" else layer_histogram(row.summary, edges)
        times = counts.numel() // bins
        bounds = {"low": edges[:-1].repeat(times).numpy(), "high": edges[1:].repeat(times).numpy()}
        channel = {"channel": torch.arange(times).repeat_interleave(bins).numpy()} if by == "channel" else {}
        tables.append(pd.DataFrame({"layer": row.name, **channel, **bounds, "count": counts.flatten().numpy()}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def checked_by(by: str) -> str:
    """The word itself.

    Args:
        by: What was asked for.

    Returns:
        "layer" or "channel".

    Raises:
        UnknownNameError: If it is neither.
    """
    if by not in ("layer", "channel"):
        raise UnknownNameError(f"The table has a row by 'layer' or by 'channel', not by {by!r}.")
    return by


def _layer_row(row: Row, percentiles: Sequence[float]) -> dict[str, Any]:
    summary = row.summary
    names = [percentile_name(percent) for percent in percentiles]
    errors = summary.percentile_errors(percentiles)
    low, high = (math.nan, math.nan)
    if summary.extremes is not None and summary.sampled:
        low, high = float(summary.extremes[0].min()), float(summary.extremes[1].max())
    return {
        "layer": row.name,
        "op": row.op,
        "channels": len(summary.moments.mean),
        "count": summary.count,
        "sampled": summary.sampled,
        "nonfinite": summary.nonfinite,
        "mean": summary.mean,
        "variance": summary.variance,
        "skewness": summary.skewness,
        "kurtosis": summary.kurtosis,
        "min": low,
        "max": high,
        "saturated": saturated_share(summary, row.op) if row.kind == PREACTIVATION else math.nan,
        "dead": dead_share(summary, row.op, returned=row.kind == ACTIVATION),
        **dict(zip(names, summary.percentiles(percentiles), strict=True)),
        "mean_error": summary.mean_error(),
        "variance_error": summary.variance_error(),
        **{f"{name}_error": error for name, error in zip(names, errors, strict=True)},
    }


def _channel_columns(row: Row, percentiles: Sequence[float]) -> dict[str, Any]:
    summary, moments = row.summary, row.summary.moments
    channels = len(moments.mean)
    unknown = torch.full((channels,), math.nan, dtype=torch.float64)
    met = torch.as_tensor(moments.count).expand(channels) > 0
    low, high = (unknown, unknown) if summary.extremes is None else torch.where(met, summary.extremes, math.nan)
    found = channel_percentiles(summary, percentiles)
    names = [percentile_name(percent) for percent in percentiles]
    columns = {
        "channel": torch.arange(channels),
        "count": summary.channel_count,
        "kept": found.kept,
        "nonfinite": summary.channel_nonfinite,
        "mean": torch.where(met, moments.mean, math.nan),
        "variance": moments.variance(),
        "skewness": moments.skewness(),
        "kurtosis": moments.kurtosis(),
        "min": low,
        "max": high,
        "saturated": channel_saturated_shares(summary, row.op) if row.kind == PREACTIVATION else unknown,
        "dead": dead_channels(summary, row.op, returned=row.kind == ACTIVATION),
        **{name: found.values[:, number] for number, name in enumerate(names)},
        **{f"{name}_error": found.errors[:, number] for number, name in enumerate(names)},
    }
    return {"layer": row.name, "op": row.op, **{name: column.numpy() for name, column in columns.items()}}
