"""Copies of statistics are independent, go back where they came from, and compare by value."""

import torch
from torch import nn

from bn_lightning.surgery.statistics.running_statistics import holds_statistics, statistics_of, write_statistics


def model():
    return nn.Sequential(
        nn.BatchNorm1d(2), nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3)
    )


def test_copies_go_back_in_place():
    net = model()
    buffer = net[0].running_mean
    before = statistics_of(net)
    assert list(before) == ["0", "3"]
    net(torch.randn(5, 2))
    assert not holds_statistics(net, before)
    assert before["0"]["mean"].tolist() == [0, 0]
    write_statistics(net, before)
    assert holds_statistics(net, before)
    assert net[0].running_mean is buffer


def test_norms_not_named_keep_theirs():
    net = model()
    write_statistics(net, {"3": {"mean": torch.ones(3), "variance": torch.zeros(3)}, "gone": {}})
    assert net[0].running_var.tolist() == [1, 1]
    assert net[3].running_mean.tolist() == [1, 1, 1]
    assert net[3].running_var.tolist() == [0, 0, 0]


def test_other_paths_are_other_statistics():
    assert not holds_statistics(model(), {})
    assert not holds_statistics(nn.Linear(1, 1), statistics_of(model()))


def test_copies_made_in_inference_mode_can_be_used_outside():
    net = model()
    with torch.inference_mode():
        copies = statistics_of(net)
    assert not copies["0"]["mean"].is_inference()
