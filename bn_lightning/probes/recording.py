"""Record the pre-activations of any model over some forward passes, in a plain PyTorch loop."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from bn_lightning.errors import NoSiteError, UnknownNameError
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.probes.recorder import ActivationRecorder
from bn_lightning.probes.sites import monitored_sites, site_labels
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations

if TYPE_CHECKING:
    import pandas

PERCENTILES = (15, 50, 85)


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
        ValueError: If there is none, or one lies outside 0 … 100.
    """
    if not percentiles or any(not 0 <= percent <= 100 for percent in percentiles):
        raise ValueError(f"Percentiles are one or more numbers between 0 and 100, got {tuple(percentiles)}.")
    return tuple(sorted(set(percentiles)))


class ActivationRecord:
    """What `record_activations` has recorded so far; it may be read during the recording and after.

    Args:
        sites: The nonlinearities recorded, in the order of the forward.
        recorder: What the hooks fill.
        percentiles: Percentages of the table's percentile columns.

    Attributes:
        sites: The nonlinearities recorded.
    """

    def __init__(self, sites: Sequence[Site], recorder: ActivationRecorder, percentiles: Sequence[float]) -> None:
        self.sites = tuple(sites)
        self._recorder = recorder
        self._percentiles = checked_percentiles(percentiles)

    def summaries(self) -> dict[str, ActivationSummary]:
        """One summary for each recorded layer over all forward passes so far."""
        return dict(zip(site_labels(self.sites), self._recorder.summaries(), strict=True))

    def reset(self) -> None:
        """Forget what was recorded, and go on recording."""
        self._recorder.reset()

    def table(self, *, by: Literal["layer", "channel"] = "layer") -> "pandas.DataFrame":
        """Statistics of the pre-activations, one row a layer or one a channel.

        All in the unit of the activation; the variance is biased (divided by the count), the
        kurtosis is the excess over the normal distribution's. Columns ending in `_error` are the standard
        errors that come from reading a sample: 0 where all was read. `count` and `nonfinite` are exact.

        Args:
            by: "layer" or "channel"; percentiles and errors are there for layers only.

        Returns:
            A DataFrame with a row for each layer in the order of the forward, or for each channel of each.

        Raises:
            UnknownNameError: If `by` is neither word.
        """
        import pandas as pd

        if by not in ("layer", "channel"):
            raise UnknownNameError(f"The table has a row by 'layer' or by 'channel', not by {by!r}.")
        rows: list[dict[str, Any]] = []
        for site, (name, summary) in zip(self.sites, self.summaries().items(), strict=True):
            rows.extend([self._layer_row(name, site, summary)] if by == "layer" else self._channel_rows(name, summary))
        return pd.DataFrame(rows)

    def _layer_row(self, name: str, site: Site, summary: ActivationSummary) -> dict[str, Any]:
        pooled = summary.layer
        names = [percentile_name(percent) for percent in self._percentiles]
        errors = summary.percentile_errors(self._percentiles)
        return {
            "layer": name,
            "op": site.op,
            "channels": site.channels,
            "count": summary.count,
            "sampled": summary.sampled,
            "nonfinite": summary.nonfinite,
            "mean": summary.mean,
            "variance": summary.variance,
            "skewness": float(pooled.skewness()),
            "kurtosis": float(pooled.kurtosis()),
            **dict(zip(names, summary.percentiles(self._percentiles), strict=True)),
            "mean_error": summary.mean_error(),
            "variance_error": summary.variance_error(),
            **{f"{name}_error": error for name, error in zip(names, errors, strict=True)},
        }

    @staticmethod
    def _channel_rows(name: str, summary: ActivationSummary) -> list[dict[str, Any]]:
        moments = summary.moments
        columns = {
            "count": moments.count.tolist(),
            "mean": moments.mean.tolist(),
            "variance": moments.variance().tolist(),
            "skewness": moments.skewness().tolist(),
            "kurtosis": moments.kurtosis().tolist(),
        }
        return [
            {"layer": name, "channel": channel, **{key: column[channel] for key, column in columns.items()}}
            for channel in range(len(moments.mean))
        ]


@contextmanager
def record_activations(
    model: nn.Module,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    sites: Sequence[Site] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    max_elements: int | None = 1024,
    max_samples: int | None = 65536,
) -> Iterator[ActivationRecord]:
    """Record the pre-activations of `model` in every forward pass within the `with` block.

    A pre-activation is the tensor a nonlinearity receives, so after any norm inserted before it. It
    is called by the affine layer that made it. Of each one at most `max_elements` elements a pass are
    read, all channels equally often and other positions each time; smaller ones are read whole.
    Mean, variance, skewness, kurtosis and percentiles are therefore estimates, with their
    standard errors beside them (about 3 % of the standard deviation for the mean, 5 % for a
    percentile, after one pass of 1,024 elements); counts are exact.

    The example is run once before, in a sandbox. While the block runs, hooks are on the model; they
    change no value, draw no random number and are gone at its end, also by an exception. Passes in
    training and evaluation mode are recorded alike.

    Args:
        model: The module, on any device. Compile it only inside the block: hooks added to a
            compiled module are ignored.
        args: Positional arguments of one example call, a tuple, to find the nonlinearities with.
        kwargs: Its keyword arguments.
        sites: Sites of a plan made with `placement="before"`, instead of the example.
        include: fnmatch patterns on the layers' paths; None takes all.
        exclude: fnmatch patterns on the layers' paths to leave out.
        percentiles: Percentages between 0 and 100.
        max_elements: Elements read of a pre-activation and pass; None reads all, slowly.
        max_samples: Elements a layer kept for percentiles; beyond that they are thinned to as many
            quantiles. None keeps all.

    Yields:
        The record; it can be read after the block too.

    Raises:
        NoSiteError: If no nonlinearity has a pre-activation made by an affine layer.
        UnknownNameError: If a pattern matches no layer.
        ValueError: If neither an example nor sites are given, or a number is out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.randn(32, 8)
        >>> with record_activations(model, (x,)) as record:
        ...     _ = model(x)
        >>> row = record.table().iloc[0]
        >>> row["layer"], int(row["count"]), bool(abs(row["mean"] - model[0](x).mean()) < 1e-6)
        ('0', 128, True)
    """
    checked = checked_percentiles(percentiles)
    if sites is None:
        if args is None and kwargs is None:
            raise ValueError("Give an example call, as in record_activations(model, (x,)), or the sites of a plan.")
        sites = plan_insertion(model, () if args is None else args, kwargs).sites
    chosen = monitored_sites(sites, include=include, exclude=exclude)
    if not chosen:
        raise NoSiteError(
            f"None of the {len(sites)} nonlinearities of {type(model).__name__} that were found has a pre-activation "
            "to record: they are gates, or no affine layer feeds them, or include= and exclude= leave none."
        )
    recorder = ActivationRecorder(
        [site.channels for site in chosen], max_elements=max_elements, max_samples=max_samples
    )
    with tap_preactivations(getattr(model, "_orig_mod", model), chosen, recorder.receive):
        yield ActivationRecord(chosen, recorder, checked)
