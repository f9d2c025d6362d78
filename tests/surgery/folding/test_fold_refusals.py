"""What cannot be folded or compared is refused with names and the way out."""

import threading

import pytest
import torch
import torch.nn.functional as F
from fold_cases import ReadUnseen, settle, unseen
from torch import Tensor, nn

from bn_lightning.errors import FoldingError
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.folding.fold import fold_batch_norm
from bn_lightning.surgery.folding.fold_planning import plan_folding
from bn_lightning.surgery.planning import plan_insertion


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


X = torch.linspace(-1, 1, 12).reshape(4, 3)


@pytest.mark.parametrize("function", [plan_folding, fold_batch_norm])
def test_arguments_are_a_tuple(function):
    with pytest.raises(TypeError, match=r"args is the tuple of positional arguments, such as \(x,\); got Tensor"):
        function(Pair(), X)


def test_a_model_that_cannot_be_copied():
    model = Pair()
    model.lock = threading.Lock()
    with pytest.raises(FoldingError, match=r"Pair cannot be copied \(cannot pickle .*the network alone without its"):
        fold_batch_norm(model, (X,))


class Counts(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_outputs_without_real_numbers():
    with pytest.raises(FoldingError, match="Counts returned no floating-point tensor on the example"):
        fold_batch_norm(Counts(), (X,))


def test_outputs_that_are_not_finite():
    model = settle(Pair())
    model.norm.running_mean[1] = float("nan")
    with pytest.raises(FoldingError, match="Pair returned NaN or infinite values on the example"):
        fold_batch_norm(model, (X,))


class ReadsTheNorm(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.norm.eps


def test_code_that_uses_attributes_of_a_norm():
    with pytest.raises(
        FoldingError, match=r"does not run any more with 'norm' folded into 'layer' \('Identity' object"
    ):
        fold_batch_norm(settle(ReadsTheNorm()), (X,))


class OneOfTwoUnseen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.right, self.wrong = Pair(), Pair()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.wrong.layer(x)
        return self.right(x) + self.wrong.norm(hidden) + unseen(hidden)


def test_a_layer_that_is_read_unseen_is_named_and_no_other():
    with pytest.raises(FoldingError, match=r"in float64\): wrong with 'norm' folded into 'conv'\. What these layers"):
        fold_batch_norm(settle(ReadUnseen()), (torch.randn(2, 3, 6, 6),))
    expected = r"\): wrong with 'wrong.norm' folded into 'wrong.layer'\. What"
    with pytest.raises(FoldingError, match=expected):
        fold_batch_norm(settle(OneOfTwoUnseen()), (X,))


class OtherPath(nn.Module):
    """As a graph, where nothing is None, it takes the other path with the same calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = x + (self.first(x) if scale is None else 2 * self.first(x))
        return self.second(F.relu(x))


def test_a_forward_that_is_another_as_a_graph():
    model = OtherPath()
    apply_plan(model, plan_insertion(model, (X,)))
    settle(model)
    with pytest.raises(FoldingError, match=r"wrong where bn_lightning_norm.0 were put, as the forward around them"):
        fold_batch_norm(model, (X,))


class OnlyFloat32(Pair):
    """A constant in the forward keeps it from running in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = torch.eye(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x @ self.constant)


class OnlyFloat32Unseen(OnlyFloat32):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x @ self.constant)
        return self.norm(hidden) + unseen(hidden)


def test_a_model_that_does_not_run_in_float64_is_compared_in_its_own_type():
    model = settle(OnlyFloat32())
    torch.testing.assert_close(fold_batch_norm(model, (X,))(X), model(X))
    with pytest.raises(
        FoldingError, match=r"With 'norm' folded into 'layer', a relative error of .* rounding explains"
    ):
        fold_batch_norm(settle(OnlyFloat32Unseen()), (X,))


def test_weights_that_overflow_their_type():
    model = settle(Pair()).half()
    with torch.no_grad():
        model.layer.weight.fill_(300)
        model.norm.running_var.zero_()
        model.norm.running_mean.zero_()
    with pytest.raises(FoldingError, match=r"relative error of inf is left .* Fold the model in float32"):
        fold_batch_norm(model, (X.half() / 100,))
