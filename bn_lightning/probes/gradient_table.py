"""The table of recorded gradients: how large they are, layer by layer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.probes.gradients import norm_of

if TYPE_CHECKING:
    import pandas

COLUMNS = ("layer", "kind", "channels", "count", "sampled", "nonfinite", "norm", "mean", "variance")


def gradient_table(kinds: Mapping[str, str], summaries: Mapping[str, ActivationSummary]) -> "pandas.DataFrame":
    """One row a tensor.

    Args:
        kinds: What kind of tensor each name is, such as "preactivation".
        summaries: Of the gradients with respect to the tensors, by the same names.

    Returns:
        The table; norm, mean and variance are NaN where no gradient came.

    Example:
        >>> from bn_lightning.functional.activations import empty_summary
        >>> row = gradient_table({"fc": "preactivation"}, {"fc": empty_summary(3)}).iloc[0]
        >>> row["kind"], int(row["count"]), float(row["norm"])
        ('preactivation_gradient', 0, nan)
    """
    import pandas as pd

    rows = [
        (
            name,
            f"{kinds[name]}_gradient",
            len(summary.moments.mean),
            summary.count,
            summary.sampled,
            summary.nonfinite,
            norm_of(summary),
            summary.mean,
            summary.variance,
        )
        for name, summary in summaries.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
