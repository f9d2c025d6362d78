"""Find what a monitor follows in a LightningModule: nonlinearities, and outputs of the modules chosen."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bn_lightning.callbacks._compat import LightningModule, Trainer
from bn_lightning.callbacks._dry_run import idle_optimizers
from bn_lightning.callbacks._example import Example, example_of
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.errors import NoSiteError
from bn_lightning.probes.outputs import Output, Selector, find_outputs
from bn_lightning.probes.sites import monitored_sites, site_labels
from bn_lightning.probes.visible_activations import visible_activations
from bn_lightning.probes.visits import split_visits
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.planning import plan_insertion

Patterns = str | Sequence[str] | None


@dataclass(frozen=True)
class MonitoredLayers:
    """What was found.

    Attributes:
        sites: Nonlinearities in the order of the forward, visits split.
        outputs: Outputs of the modules chosen, in that order too.
        entry: The method that was run to find them: "forward" or "training_step".
        hidden: Names of the layers behind which no activation can be seen, if activations are followed.
    """

    sites: tuple[Site, ...]
    outputs: tuple[Output, ...]
    entry: str
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerChoice:
    """Which layers a monitor follows.

    Args:
        nonlinearities: Whether any nonlinearity is followed.
        activations: Whether what they return is.
        include: fnmatch patterns on the paths of affine layers; None takes all.
        exclude: fnmatch patterns on those to leave out.
        layers: fnmatch patterns or types of modules whose outputs are followed.
    """

    nonlinearities: bool
    activations: bool
    include: Patterns
    exclude: Patterns
    layers: Selector | Sequence[Selector]

    def find(self, trainer: "Trainer", module: "LightningModule", *, lenient: bool = False) -> MonitoredLayers:
        """Run an example through the module once, without a trace, and find the layers.

        Args:
            trainer: The Trainer whose fit is being set up or runs.
            module: Its LightningModule.
            lenient: Let patterns and types that match nothing match nothing: layers may have gone.

        Returns:
            The layers.

        Raises:
            MisconfigurationException: If there is nothing to run the module on.
            UnknownNameError: If a pattern or type matches nothing, unless `lenient`.
        """
        example = example_of(trainer, module)
        with no_trace(module), idle_optimizers(module):
            sites = self._sites(module, example, lenient) if self.nonlinearities else ()
            outputs = self._outputs(module, example, lenient) if self.layers else ()
            hidden = self._hidden(module, example, sites) if self.activations else ()
        return MonitoredLayers(split_visits(sites), outputs, example.entry, hidden)

    def _sites(self, module: "LightningModule", example: Example, lenient: bool) -> tuple[Site, ...]:
        try:
            plan = plan_insertion(module, example.args, example.kwargs, entry=example.entry)
        except NoSiteError:
            return ()
        include, exclude = self.include, self.exclude
        if lenient:
            layers = [site.layer for site in monitored_sites(plan.sites)]
            include, exclude = _matching(include, layers), _matching(exclude, layers)
        return monitored_sites(plan.sites, include=include, exclude=exclude)

    def _hidden(self, module: "LightningModule", example: Example, sites: Sequence[Site]) -> tuple[str, ...]:
        model, run = _bound(module, example)
        seen = visible_activations(model, sites, run)
        return tuple(label for label, is_seen in zip(site_labels(sites), seen, strict=True) if not is_seen)

    def _outputs(self, module: "LightningModule", example: Example, lenient: bool) -> tuple[Output, ...]:
        model, run = _bound(module, example)
        return find_outputs(model, self.layers, run, missing_ok=lenient)


def _bound(module: "LightningModule", example: Example) -> tuple[nn.Module, Callable[[], Any]]:
    """The module itself, not its compiled wrapper, and what runs it on the example."""
    model: nn.Module = getattr(module, "_orig_mod", module)
    # The module and not its `forward`, so that the hooks of the LightningModule itself run.
    entry = model if example.entry == "forward" else getattr(model, example.entry)
    return model, lambda: entry(*example.args, **example.kwargs)


def _matching(patterns: Patterns, layers: Sequence[str]) -> Patterns:
    """The patterns that still match a layer; None, for all layers, stays None."""
    if patterns is None:
        return None
    given = [patterns] if isinstance(patterns, str) else patterns
    return [pattern for pattern in given if fnmatch.filter(layers, pattern)]
