"""Run a LightningModule's steps without its torchmetrics noticing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric


@contextmanager
def preserve_metrics(module: nn.Module) -> Iterator[None]:
    """Give every torchmetrics metric inside `module` its state and counters back on exit.

    Args:
        module: A module that holds metrics as submodules, or none.

    Yields:
        Nothing.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> metric = MeanMetric()
        >>> metric.update(1.0)
        >>> with preserve_metrics(nn.ModuleList([metric])):
        ...     metric.update(100.0)
        >>> metric.compute()
        tensor(1.)
    """
    metrics = [part for part in module.modules() if isinstance(part, Metric)]
    saved = [(metric, dict(vars(metric)), _values(metric)) for metric in metrics]
    try:
        yield
    finally:
        for metric, attributes, values in saved:
            vars(metric).clear()
            vars(metric).update(attributes)
            # In place, because metrics of a collection share their states.
            for name, value in values.items():
                state = attributes[name]
                if isinstance(state, list):
                    state[:] = value
                elif not torch.equal(state, value):
                    state.copy_(value)


def _values(metric: Metric) -> dict[str, Any]:
    return {
        name: state.detach().clone() if isinstance(state, Tensor) else list(state)
        for name, state in metric.metric_state.items()
    }
