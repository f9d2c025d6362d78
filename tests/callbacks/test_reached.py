import torch
from torch import nn
from torchmetrics import MeanMetric

from bn_lightning.callbacks._reached import note_called, unreached_networks


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return torch.relu(self.layer(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.by_function = Own()
        self.activation = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.listed = nn.ModuleList([Own(), Own()])
        self.linear = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.attention = nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1))
        self.frozen = Own().requires_grad_(False)
        self.metric = MeanMetric()

    def forward(self, x):
        return self.listed[1](self.used(x))


def test_only_networks_with_something_to_normalise_and_to_train_count():
    model = Model()
    with note_called(model) as called:
        model(torch.zeros(3, 2))
    assert unreached_networks(model, called) == ["by_function", "activation", "listed.0"]


def test_a_network_run_by_a_method_of_its_own_was_reached():
    model = nn.ModuleDict({"own": Own()})
    with note_called(model) as called:
        model["own"].layer(torch.zeros(3, 2))
    assert unreached_networks(model, called) == []


def test_calls_outside_the_block_and_after_an_error_are_not_noted():
    layer = nn.ReLU()
    try:
        with note_called(layer) as called:
            raise ZeroDivisionError
    except ZeroDivisionError:
        layer(torch.zeros(2))
    assert not called
