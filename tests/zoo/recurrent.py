"""Sequences in time: loops by hand, cells, and convolutions over time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from zoo.case import GATE, RECURRENT, Case, inputs, integers


class Elman(nn.Module):
    """A recurrence by hand: each step needs statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.state = nn.Linear(3, 6), nn.Linear(6, 6)
        self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 6)
        for step in range(x.shape[1]):
            state = torch.tanh(self.input(x[:, step]) + self.state(state))
        return self.head(F.relu(self.hidden(state)))


class OwnGRUCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate = nn.Linear(9, 12), nn.Linear(9, 6)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        reset, update = torch.sigmoid(self.gates(torch.cat([x, state], dim=1))).chunk(2, dim=1)
        candidate = torch.tanh(self.candidate(torch.cat([x, reset * state], dim=1)))
        return update * state + (1 - update) * candidate


class OwnGRU(nn.Module):
    """The loop calls a module, which is passed once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(2, 3), OwnGRUCell(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, state = F.elu(self.embed(x)), x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class SharedDepth(nn.Module):
    """One block applied three times in a row is a recurrence over depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for _ in range(3):
            x = x + F.relu(self.block(x))
        return self.head(x)


class LSTMHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(11, 4), nn.LSTM(4, 6, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(12, 7), nn.Linear(7, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.table(tokens))
        return self.head(F.relu(self.hidden(states[:, -1])))


class GRUTagger(nn.Module):
    """Time first, batch second, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Linear(3, 5), nn.GRU(5, 6)
        self.hidden, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.embed(x.transpose(0, 1)))
        return self.head(torch.tanh(self.hidden(self.gru(x)[0])))


class GRUCellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.hidden, self.head = nn.GRUCell(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(F.relu(self.hidden(state)))


class EveryStep(GRUCellLoop):
    """The read-out runs at every step, and its activation feeds nothing back."""

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = x.new_zeros(len(x), 6), []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(self.head(F.relu(self.hidden(state))))
        return torch.stack(outputs, dim=1)


class TemporalBlock(nn.Module):
    """Weight-normalised causal convolutions; only the weights are normalised, not the activations."""

    def __init__(self, width: int, out: int, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        self.conv1 = weight_norm(nn.Conv1d(width, out, 3, padding=self.padding, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(out, out, 3, padding=self.padding, dilation=dilation))
        self.shortcut = nn.Conv1d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.conv1(x)[:, :, : -self.padding])
        out = F.relu(self.conv2(out)[:, :, : -self.padding])
        return F.relu(out + self.shortcut(x))


class TemporalConvNet(nn.Module):
    """Read out at the last step, so no statistic over time reaches a step before it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(TemporalBlock(2, 4, 1), TemporalBlock(4, 5, 2))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[:, :, -1])


class ConvLSTM(nn.Module):
    """Gates and content of an LSTM by hand, on images; all of them lie on the recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(5, 16, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = memory = x.new_zeros(len(x), 4, *x.shape[3:])
        for frame in x.unbind(1):
            i, f, o, g = self.gates(torch.cat([frame, state], dim=1)).chunk(4, dim=1)
            memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(memory)
        return self.head(state)


SERIES = inputs((7, 3))
CASES = (
    Case("elman", Elman, SERIES, (("hidden", "relu"),), (5,), (("tanh", RECURRENT),)),
    Case(
        "gru_by_hand",
        OwnGRU,
        inputs((5, 2)),
        (("embed", "elu"),),
        (3,),
        (("sigmoid", f"{GATE}|{RECURRENT}"), ("tanh", RECURRENT)),
    ),
    Case("shared_depth", SharedDepth, inputs((5,)), (("stem", "tanh"),), (6,), (("relu", RECURRENT),)),
    Case("lstm_head", LSTMHead, integers(11, (6,)), (("hidden", "relu"),), (7,), fullgraph=False),
    Case("gru_tagger", GRUTagger, SERIES, (("embed", "leaky_relu"), ("hidden", "tanh")), (5, 4), fullgraph=False),
    Case("gru_cell_loop", GRUCellLoop, SERIES, (("hidden", "relu"),), (5,)),
    # One read-out, passed once a step: its calls share the layer, so one norm on the layer serves them all.
    Case("read_out_every_step", EveryStep, SERIES, (("hidden", "relu"),), (5,)),
    Case(
        "temporal_conv_net",
        TemporalConvNet,
        inputs((2, 12)),
        (
            ("blocks.0.conv1", "relu"),
            ("blocks.0.conv2", "relu"),
            ("blocks.0.conv2|blocks.0.shortcut", "relu"),
            ("blocks.1.conv1", "relu"),
            ("blocks.1.conv2", "relu"),
            ("blocks.1.conv2|blocks.1.shortcut", "relu"),
        ),
        (4, 4, 4, 5, 5, 5),
    ),
    Case(
        "conv_lstm",
        ConvLSTM,
        inputs((4, 1, 5, 5)),
        (),
        (),
        (("sigmoid", f"{GATE}|{RECURRENT}"), ("tanh", RECURRENT)),
    ),
)
