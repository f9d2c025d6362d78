"""What a monitor records: pre-activations of nonlinearities and outputs of modules, each a series over steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from bn_lightning.probes.outputs import Output
from bn_lightning.probes.sites import site_labels
from bn_lightning.surgery.plan import Site


@dataclass(frozen=True)
class Series:
    """One recorded tensor.

    Attributes:
        kind: "preactivation" or "output"; its quantities are `<kind>_mean` and so on.
        label: Name of the layer.
        channels: Length of its channel axis.
        op: The nonlinearity that reads it; empty for outputs.
    """

    kind: str
    label: str
    channels: int
    op: str = ""


def all_series(sites: Sequence[Site], outputs: Sequence[Output]) -> tuple[Series, ...]:
    """The series of pre-activations, then those of outputs, each in the order of the forward.

    Args:
        sites: Nonlinearities whose input is recorded.
        outputs: Outputs recorded.

    Returns:
        The series.
    """
    labels = site_labels(sites)
    before = [Series("preactivation", label, site.channels, site.op) for label, site in zip(labels, sites, strict=True)]
    return (*before, *(Series("output", output.label, output.channels) for output in outputs))
