"""What a monitor records: pre-activations, activations, outputs of modules, their gradients; each a series over steps.

Everywhere the order is: pre-activations, activations, outputs, then the gradients of all these in the same order.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from bn_lightning.probes.outputs import Output
from bn_lightning.probes.sites import site_labels
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.running.taps import activation_is_visible

_GRADIENT = "_gradient"


@dataclass(frozen=True)
class Series:
    """One recorded tensor.

    Attributes:
        kind: "preactivation", "activation" or "output", or one of these with "_gradient" behind; its quantities are
            `<kind>_mean` and so on.
        label: Name of the layer.
        channels: Length of its channel axis.
        op: The nonlinearity that reads it, or that returned it; empty for outputs and gradients.
    """

    kind: str
    label: str
    channels: int
    op: str = ""

    @property
    def is_gradient(self) -> bool:
        """Whether it is a gradient, and not the tensor itself."""
        return self.kind.endswith(_GRADIENT)


def all_series(
    sites: Sequence[Site], outputs: Sequence[Output], record: Collection[str] = ("preactivations",)
) -> tuple[Series, ...]:
    """The series of pre-activations, activations and outputs, each in the order of the forward, then of gradients.

    Args:
        sites: Nonlinearities whose input, result or both are recorded; those whose result cannot be seen
            (`taps.activation_is_visible`) have no series of it.
        outputs: Outputs recorded.
        record: Any of "preactivations", "activations", "gradients".

    Returns:
        The series.
    """
    labelled = list(zip(site_labels(sites), sites, strict=True))
    series: list[Series] = []
    if "preactivations" in record:
        series += [Series("preactivation", label, site.channels, site.op) for label, site in labelled]
    if "activations" in record:
        series += [
            Series("activation", label, site.channels, site.op)
            for label, site in labelled
            if activation_is_visible(site)
        ]
    series += [Series("output", output.label, output.channels) for output in outputs]
    if "gradients" in record:
        series += [replace(one, kind=one.kind + _GRADIENT, op="") for one in series]
    return tuple(series)


@dataclass(frozen=True)
class Places:
    """Where in the order of all series the tensors that hooks hand over stand.

    Attributes:
        preactivations: Place of the first pre-activation; None where they are not recorded.
        activations: Place of each site's activation; None for those not recorded.
        outputs: Place of the first output.
    """

    preactivations: int | None
    activations: tuple[int | None, ...]
    outputs: int


def places_of(sites: Sequence[Site], record: Collection[str]) -> Places:
    """The places of what hooks hand over, in the order of `all_series`.

    Args:
        sites: As given to `all_series`.
        record: As given to `all_series`.

    Returns:
        The places.
    """
    place = len(sites) if "preactivations" in record else 0
    activations: list[int | None] = []
    for site in sites:
        visible = "activations" in record and activation_is_visible(site)
        activations.append(place if visible else None)
        place += visible
    return Places(0 if "preactivations" in record else None, tuple(activations), place)
