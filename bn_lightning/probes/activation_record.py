"""What has been recorded of a model's activations, and its tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.probes.activation_table import (
    ACTIVATION,
    OUTPUT,
    PREACTIVATION,
    Row,
    channel_table,
    checked_by,
    checked_percentiles,
    histogram_table,
    layer_table,
)
from bn_lightning.probes.gradient_table import gradient_table
from bn_lightning.probes.gradients import GradientRecorder
from bn_lightning.probes.outputs import Output
from bn_lightning.probes.recorder import ActivationRecorder
from bn_lightning.probes.sites import matching_layers, site_labels
from bn_lightning.surgery.plan import Site

if TYPE_CHECKING:
    import pandas


class ActivationRecord:
    """What `record_activations` has recorded so far; it may be read during the recording and after.

    Args:
        sites: The nonlinearities whose pre-activations are recorded, in the order of the forward.
        activations: Those whose activations are recorded.
        outputs: The outputs recorded.
        recorder: What the hooks fill: pre-activations first, then activations, then outputs.
        percentiles: Percentages of the percentile columns of tables.
        gradients: What the hooks hand tensors to for their gradients, in the order of `recorder`; None if these are
            not recorded.

    Attributes:
        sites: The nonlinearities whose pre-activations are recorded.
        activations: Those whose activations are recorded.
        outputs: The outputs recorded.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        activations: Sequence[Site],
        outputs: Sequence[Output],
        *,
        recorder: ActivationRecorder,
        percentiles: Sequence[float],
        gradients: GradientRecorder | None = None,
    ) -> None:
        self.sites = tuple(sites)
        self.activations = tuple(activations)
        self.outputs = tuple(outputs)
        self._recorder = recorder
        self._gradients = gradients
        self._percentiles = checked_percentiles(percentiles)

    def summaries(self) -> dict[str, ActivationSummary]:
        """One summary for each recorded tensor over all forward passes so far.

        Pre-activations are called by their layer, activations "<layer> activation", outputs "<path> output".
        """
        return {row.name: row.summary for row in self._rows()}

    def reset(self) -> None:
        """Forget what was recorded, and go on recording."""
        self._recorder.reset()
        if self._gradients is not None:
            self._gradients.reset()

    def table(self, *, by: Literal["layer", "channel"] = "layer") -> "pandas.DataFrame":
        """Statistics of all that is recorded, one row a tensor or one a channel.

        All in the unit of the activation; the variance is biased (divided by the count), the
        kurtosis is the excess over the normal distribution's. Columns ending in `_error` are the standard
        errors that come from reading a sample: 0 where all was read. `count` (of finite elements) and `nonfinite` are
        exact. `min`, `max` and `dead` are there where all elements were read, else NaN: `dead` is the share of channels
        that were never active, by channel 1 or 0. `saturated` is the share of elements where the nonlinearity is flat
        (`functional.saturation`), of pre-activations only. By channel, percentiles come from the elements `kept` of it;
        they are NaN where fewer than 30 were kept of more (`functional.channel_samples`).

        Args:
            by: "layer" or "channel".

        Returns:
            A DataFrame with a row for each tensor in the order of the forward, or for each channel of each.

        Raises:
            UnknownNameError: If `by` is neither word.
        """
        make = layer_table if checked_by(by) == "layer" else channel_table
        return make(self._rows(), self._percentiles)

    def gradients(self) -> "pandas.DataFrame":
        """Gradients of what was differentiated with respect to all that is recorded, one row a tensor.

        They are of the very loss that `backward` was called on, so scaled or divided as it was. All backward passes
        since the last reset count one beside the other. `norm` is the L2 norm of all elements, estimated where not all
        were read; norm, mean and variance are NaN, not 0, where no gradient came, as before frozen layers.

        Returns:
            Columns layer (as in `table`), kind ("preactivation_gradient" and so on), channels, count (of finite
            elements), sampled, nonfinite, norm, mean, variance (biased).

        Raises:
            ValueError: If gradients are not recorded.
        """
        if self._gradients is None:
            raise ValueError(
                "No gradients were recorded; ask for them, as in record_activations(model, (x,), "
                "record=('preactivations', 'gradients'))."
            )
        rows = self._rows()
        names = [row.name for row in rows]
        return gradient_table(
            {row.name: row.kind for row in rows}, dict(zip(names, self._gradients.summaries(), strict=True))
        )

    def histograms(
        self,
        layer: str | Sequence[str] | None = None,
        *,
        bins: int = 32,
        by: Literal["layer", "channel"] = "layer",
    ) -> "pandas.DataFrame":
        """Histograms of all that is recorded, or of some of it, in bins of equal width from least to greatest element.

        The counts are estimates from the elements kept, in both modes; their sum is the exact count of finite elements.
        A bin that holds the share p of n elements has the standard error n·√(p(1 − p)/k · (1 − k/n)) from k kept.

        Args:
            layer: fnmatch patterns on the names in the table's column `layer`; None takes all.
            bins: How many bins, the same ones for all channels of a tensor.
            by: "layer" or "channel".

        Returns:
            Columns layer, channel (by channel only), low, high, count; a row a bin. Tensors without a finite element
            are left out. NaN counts stand for a channel none of whose finite elements was kept.

        Raises:
            UnknownNameError: If a pattern matches nothing, or `by` is neither word.
            ValueError: If `bins` is below 1.
        """
        rows = self._rows()
        if layer is not None:
            chosen = matching_layers(layer, [row.name for row in rows])
            rows = [row for row in rows if row.name in chosen]
        return histogram_table(rows, bins=bins, by=by)

    def _rows(self) -> list[Row]:
        named = [(name, PREACTIVATION, site.op) for name, site in _labelled(self.sites)]
        named += [(f"{name} activation", ACTIVATION, site.op) for name, site in _labelled(self.activations)]
        named += [(f"{output.label} output", OUTPUT, "") for output in self.outputs]
        return [Row(*name, summary) for name, summary in zip(named, self._recorder.summaries(), strict=True)]


def _labelled(sites: Sequence[Site]) -> list[tuple[str, Site]]:
    return list(zip(site_labels(sites), sites, strict=True))
