"""Record the pre-activations and outputs of any model over some forward passes, in a plain PyTorch loop."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from bn_lightning.errors import NoSiteError, UnknownNameError
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.saturation import dead_share, saturated_share
from bn_lightning.probes.outputs import Output, OutputTaps, Selector, find_outputs
from bn_lightning.probes.recorder import ActivationRecorder, Mode
from bn_lightning.probes.sites import monitored_sites, site_labels
from bn_lightning.probes.visits import receiver_of, split_visits
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
        outputs: The outputs recorded, which the recorder holds behind the sites.

    Attributes:
        sites: The nonlinearities recorded.
        outputs: The outputs recorded.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        recorder: ActivationRecorder,
        percentiles: Sequence[float],
        outputs: Sequence[Output] = (),
    ) -> None:
        self.sites = tuple(sites)
        self.outputs = tuple(outputs)
        self._recorder = recorder
        self._percentiles = checked_percentiles(percentiles)

    def summaries(self) -> dict[str, ActivationSummary]:
        """One summary for each recorded layer over all forward passes so far; outputs are called "<path> output"."""
        names = [*site_labels(self.sites), *(f"{output.label} output" for output in self.outputs)]
        return dict(zip(names, self._recorder.summaries(), strict=True))

    def reset(self) -> None:
        """Forget what was recorded, and go on recording."""
        self._recorder.reset()

    def table(self, *, by: Literal["layer", "channel"] = "layer") -> "pandas.DataFrame":
        """Statistics of the pre-activations and outputs, one row a layer or one a channel.

        All in the unit of the activation; the variance is biased (divided by the count), the
        kurtosis is the excess over the normal distribution's. Columns ending in `_error` are the standard
        errors that come from reading a sample: 0 where all was read. `count` and `nonfinite` are exact. `min`, `max`
        and `dead`, the share of channels that were never active, are there where all elements were read, else NaN;
        `saturated` is the share of elements where the nonlinearity is flat (`functional.saturation`).

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
        ops = [*(site.op for site in self.sites), *("" for _ in self.outputs)]
        for op, (name, summary) in zip(ops, self.summaries().items(), strict=True):
            rows.extend([self._layer_row(name, op, summary)] if by == "layer" else self._channel_rows(name, summary))
        return pd.DataFrame(rows)

    def _layer_row(self, name: str, op: str, summary: ActivationSummary) -> dict[str, Any]:
        pooled = summary.layer
        names = [percentile_name(percent) for percent in self._percentiles]
        errors = summary.percentile_errors(self._percentiles)
        return {
            "layer": name,
            "op": op,
            "channels": len(summary.moments.mean),
            "count": summary.count,
            "sampled": summary.sampled,
            "nonfinite": summary.nonfinite,
            "mean": summary.mean,
            "variance": summary.variance,
            "skewness": float(pooled.skewness()),
            "kurtosis": float(pooled.kurtosis()),
            "min": math.nan if summary.extremes is None else float(summary.extremes[0].min()),
            "max": math.nan if summary.extremes is None else float(summary.extremes[1].max()),
            "saturated": saturated_share(summary, op),
            "dead": dead_share(summary, op),
            **dict(zip(names, summary.percentiles(self._percentiles), strict=True)),
            "mean_error": summary.mean_error(),
            "variance_error": summary.variance_error(),
            **{f"{name}_error": error for name, error in zip(names, errors, strict=True)},
        }

    @staticmethod
    def _channel_rows(name: str, summary: ActivationSummary) -> list[dict[str, Any]]:
        moments = summary.moments
        unknown = [math.nan] * len(moments.mean)
        low, high = (unknown, unknown) if summary.extremes is None else summary.extremes.tolist()
        columns = {
            "count": moments.count.tolist(),
            "mean": moments.mean.tolist(),
            "variance": moments.variance().tolist(),
            "skewness": moments.skewness().tolist(),
            "kurtosis": moments.kurtosis().tolist(),
            "min": low,
            "max": high,
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
    layers: Selector | Sequence[Selector] = (),
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    mode: Mode = "sampled",
    max_elements: int | None = 1024,
    max_samples: int | None = 65536,
) -> Iterator[ActivationRecord]:
    """Record the pre-activations of `model` in every forward pass within the `with` block.

    A pre-activation is the tensor a nonlinearity receives, so after any norm inserted before it. It
    is called by the affine layer that made it. Of each one at most `max_elements` elements a pass are
    read, all channels equally often and other positions each time; smaller ones are read whole.
    Mean, variance, skewness, kurtosis and percentiles are therefore estimates, with their
    standard errors beside them (about 3 % of the standard deviation for the mean, 5 % for a
    percentile, after one pass of 1,024 elements); counts are exact. In the exact mode all elements are read once for
    moments and extremes, and 16,384 for percentiles.

    The example is run once before, in a sandbox. While the block runs, hooks are on the model; they
    change no value, draw no random number and are gone at its end, also by an exception. Passes in
    training and evaluation mode are recorded alike.

    Args:
        model: The module, on any device. Compile it only inside the block: hooks added to a
            compiled module are ignored.
        args: Positional arguments of one example call, a tuple, to find the nonlinearities with.
        kwargs: Its keyword arguments.
        sites: Sites of a plan made with `placement="before"`, instead of the example.
        layers: Modules whose outputs are recorded too, by fnmatch patterns on their paths or by type; needs the
            example.
        include: fnmatch patterns on the layers' paths; None takes all.
        exclude: fnmatch patterns on the layers' paths to leave out.
        percentiles: Percentages between 0 and 100.
        mode: "sampled" or "exact".
        max_elements: Elements read of a tensor and pass; None reads all, slowly. At least 16,384 in exact mode.
        max_samples: Elements a layer kept for percentiles; beyond that they are thinned to as many
            quantiles. None keeps all.

    Yields:
        The record; it can be read after the block too.

    Raises:
        NoSiteError: If no nonlinearity has a pre-activation made by an affine layer.
        UnknownNameError: If a pattern or type matches no layer, or there is no such mode.
        ValueError: If neither an example nor sites are given, `layers` come without an example, or a number is out
            of range.

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
    model = getattr(model, "_orig_mod", model)
    has_example = args is not None or kwargs is not None
    if not has_example and (sites is None or layers):
        raise ValueError("Give an example call, as in record_activations(model, (x,)), or the sites of a plan.")
    given = () if args is None else args
    if sites is None:
        sites = _planned(model, given, kwargs, needed=not layers)
    chosen = split_visits(monitored_sites(sites, include=include, exclude=exclude))
    outputs = find_outputs(model, layers, lambda: model(*given, **(kwargs or {}))) if layers else ()
    if not chosen and not outputs:
        raise NoSiteError(
            f"None of the {len(sites)} nonlinearities of {type(model).__name__} that were found has a pre-activation "
            "to record: they are gates, or no affine layer feeds them, or include= and exclude= leave none."
        )
    channels = [*(site.channels for site in chosen), *(output.channels for output in outputs)]
    recorder = ActivationRecorder(channels, max_elements=max_elements, max_samples=max_samples, mode=mode)

    def receive_output(layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        recorder.receive(layer, len(chosen) + index, activation, channel_dim)

    with (
        tap_preactivations(model, chosen, receiver_of(chosen, recorder.receive)),
        OutputTaps(model, outputs, receive_output),
    ):
        yield ActivationRecord(chosen, recorder, checked, outputs)


def _planned(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, *, needed: bool
) -> tuple[Site, ...]:
    try:
        return plan_insertion(model, args, None if kwargs is None else dict(kwargs)).sites
    except NoSiteError:
        if needed:
            raise
        return ()
