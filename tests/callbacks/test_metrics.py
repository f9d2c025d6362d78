"""Metrics come back as they were: states, counters, cached values, shared states."""

import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryPrecision, BinaryRecall

from bn_lightning.callbacks._metrics import preserve_metrics

Y, PREDICTION = torch.tensor([1, 0, 1, 1]), torch.tensor([1, 1, 0, 1])


class Holder(nn.Module):
    def __init__(self, metric):
        super().__init__()
        self.metric = metric


@pytest.mark.parametrize("metric", [torchmetrics.CatMetric, MeanMetric, torchmetrics.MaxMetric])
def test_states_counters_and_cache(metric):
    holder = Holder(metric())
    holder.metric(torch.tensor(3.0))
    expected, count = holder.metric.compute(), holder.metric.update_count
    with preserve_metrics(holder):
        holder.metric(torch.tensor(9.0))
        holder.metric.compute()
        holder.metric.update(torch.tensor(4.0))
    assert holder.metric.update_count == count
    assert torch.equal(holder.metric.compute(), expected)
    holder.metric.update(torch.tensor(5.0))
    reference = metric()
    for value in (3.0, 5.0):
        reference.update(torch.tensor(value))
    assert torch.equal(holder.metric.compute(), reference.compute())


def test_a_reset_inside_is_undone():
    holder = Holder(MeanMetric())
    holder.metric.update(2.0)
    with preserve_metrics(holder):
        holder.metric.reset()
    assert holder.metric.update_called
    assert holder.metric.compute() == 2


def test_metrics_that_share_their_state():
    def collection():
        return MetricCollection([BinaryPrecision(), BinaryRecall()])

    holder = Holder(collection())
    holder.metric.update(PREDICTION, Y)
    holder.metric.update(PREDICTION, Y)  # from the second on the group shares one state
    expected = holder.metric.compute()
    with preserve_metrics(holder):
        holder.metric.update(1 - PREDICTION, Y)
        holder.metric(1 - PREDICTION, Y)
    assert holder.metric.compute() == expected
    holder.metric.update(PREDICTION, Y)
    assert holder.metric.compute() == expected


def test_also_after_an_exception():
    holder = Holder(MeanMetric())
    holder.metric.update(2.0)

    def interrupted():
        with preserve_metrics(holder):
            holder.metric.update(8.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert holder.metric.compute() == 2


def test_states_of_inference_mode_that_nobody_touched():
    holder = Holder(MeanMetric())
    with torch.inference_mode():
        holder.metric.update(2.0)
    with preserve_metrics(holder):
        pass
    assert holder.metric.compute() == 2
