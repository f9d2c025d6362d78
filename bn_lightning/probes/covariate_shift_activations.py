"""Covariate shift of what each nonlinearity receives, on a fixed probe set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bn_lightning.errors import NoSiteError
from bn_lightning.functional.covariate_shift import ActivationShift, activation_shift
from bn_lightning.functional.sampling import spread_rows
from bn_lightning.probes.objective import batch_samples
from bn_lightning.probes.sites import monitored_sites, site_labels
from bn_lightning.surgery.forward import Forward, call_model
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations
from bn_lightning.surgery.sandbox import sandbox

Activations = Mapping[str, Tensor]
"""What each nonlinearity received, `[values, units]`, by layer."""


@dataclass(frozen=True)
class PreactivationShift:
    """What moved between two times, layer by layer in the order of the forward.

    Attributes:
        layers: The distances of each unit, by layer.
    """

    layers: Mapping[str, ActivationShift]

    def numbers(self, prefix: str = "activation_shift") -> dict[str, dict[str, float]]:
        """The means over units by layer and name.

        Args:
            prefix: In front of each name.

        Returns:
            For each layer `<prefix>_wasserstein`, `_wasserstein_normalised`, `_mean_delta`, `_variance_delta`,
            `_gaussian_kl` and `_dead_units` (see `ActivationShift.numbers`).
        """
        return {
            layer: {f"{prefix}_{name}": value for name, value in shift.numbers().items()}
            for layer, shift in self.layers.items()
        }


class ActivationProbe:
    """Runs one fixed probe set through a model whenever asked, and compares what each nonlinearity received.

    A pre-activation is the tensor a nonlinearity receives, so after any norm inserted before it; it is called
    by the affine layer that made it. The model runs in the modes it is in (in training mode batch norm uses the
    probe batch's own statistics), with the same dropout masks each time. Nothing on it changes: modes, buffers,
    gradients and random state come back, hooks are on only while it runs.

    Of `[N, C, L]` and `[N, C, H, W]` every position is a value of its unit. Beyond `max_values` values a unit,
    as many are kept, spread evenly over samples and positions, the same ones each time.

    Args:
        model: The module.
        batches: The probe set, a list of batches with two samples or more in all.
        args: Positional arguments of one example call, a tuple, to find the nonlinearities with.
        kwargs: Its keyword arguments.
        sites: Sites of a plan made with `placement="before"`, instead of the example.
        forward: ``forward(model, batch)`` runs a batch; by default as in `call_model`.
        include: fnmatch patterns on the layers' paths; None takes all.
        exclude: fnmatch patterns on the layers' paths to leave out.
        max_values: Values a unit to keep.

    Attributes:
        layers: Names of the layers, in the order of the forward.

    Raises:
        TypeError: If `batches` is one batch.
        ValueError: If neither an example nor sites are given, the probe set has fewer than two samples or
            `max_values` is below 2.
        NoSiteError: If no nonlinearity has a pre-activation made by an affine layer.
        UnknownNameError: If a pattern matches no layer.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> probe = ActivationProbe(model, [torch.randn(50, 3)], args=(torch.randn(2, 3),))
        >>> start = probe.activations()
        >>> _ = nn.init.constant_(model[0].bias, 2.0)
        >>> (shift,) = probe.shift(start, probe.activations()).layers.values()
        >>> bool((shift.mean_delta > 1).all()), bool((shift.variance_delta < 1e-6).all())
        (True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        *,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        sites: Sequence[Site] | None = None,
        forward: Forward | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        max_values: int = 2048,
    ) -> None:
        if not isinstance(batches, list):
            raise TypeError(
                f"A probe set is a list of batches, got a {type(batches).__name__}; wrap a single batch as [batch]."
            )
        samples = sum(batch_samples(batch) for batch in batches)
        if samples < 2 or max_values < 2:
            raise ValueError(
                f"A probe set needs two samples or more, got {samples} samples and max_values={max_values}."
            )
        if sites is None:
            if args is None and kwargs is None:
                raise ValueError("Give an example call, as in args=(x,), or the sites of a plan.")
            sites = plan_insertion(model, () if args is None else args, kwargs).sites
        self._sites = monitored_sites(sites, include=include, exclude=exclude)
        if not self._sites:
            raise NoSiteError(
                f"None of the {len(sites)} nonlinearities of {type(model).__name__} has a pre-activation to compare: "
                "they are gates, no affine layer feeds them, or include= and exclude= leave none."
            )
        self.layers = site_labels(self._sites)
        self._model: nn.Module = getattr(model, "_orig_mod", model)
        self._batches = batches
        self._forward = forward
        self._max_values = max_values

    def activations(self) -> dict[str, Tensor]:
        """Run the probe set with the model as it is now.

        Returns:
            What each layer's nonlinearity received, ``[values, units]`` on the CPU, by layer; a layer that the
            forward did not reach is missing.
        """
        received: dict[int, list[Tensor]] = {}
        share = -(-self._max_values // len(self._batches))

        def receive(layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
            rows = activation.detach().movedim(channel_dim, -1).flatten(0, -2)
            chosen = rows[spread_rows(len(rows), share).to(rows.device)]
            kept = chosen.to(torch.promote_types(rows.dtype, torch.float32))
            # Copied at once: an in-place activation is about to overwrite it.
            received.setdefault(index, []).append(kept.cpu())

        with sandbox(self._model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(0)
            with tap_preactivations(self._model, self._sites, receive):
                for batch in self._batches:
                    call_model(self._model, batch, self._forward)
        return {self.layers[index]: torch.cat(parts) for index, parts in sorted(received.items())}

    def shift(self, before: Activations, after: Activations) -> PreactivationShift:
        """Compare two runs of the probe set.

        Args:
            before: What `activations` returned.
            after: The same later.

        Returns:
            Distances by layer, of the layers in both.
        """
        return PreactivationShift(
            {layer: activation_shift(before[layer], after[layer]) for layer in before if layer in after}
        )
