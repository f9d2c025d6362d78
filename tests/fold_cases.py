"""Models with hand-written norms as data: where each norm goes, or why it stays.

`into` names for each norm the layers that take it; `stays` gives for each norm that stays a part of the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, prune


def settle(model: nn.Module, *, positive: bool = False) -> nn.Module:
    """Give every norm statistics, scales of both signs (or not) and shifts, as after training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, _BatchNorm):
                if norm.running_mean is not None and norm.running_var is not None:
                    norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
                    norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
                if norm.weight is not None:
                    norm.weight.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
                    norm.weight[:: 1 if positive else 2] *= 1 if positive else -1
                    norm.bias.copy_(torch.randn(norm.num_features, generator=generator))
    return model.eval()


@dataclass(frozen=True)
class FoldCase:
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    into: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stays: Mapping[str, str] = field(default_factory=dict)
    # Another example of the same model, to see that not only the first is right.
    other: tuple[int, ...] = ()
    positive: bool = False

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return settle(self.make(), positive=self.positive)

    def example(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor]:
        return (torch.randn(4, *self.shape, generator=torch.Generator().manual_seed(1)).to(dtype),)

    def other_example(self) -> tuple[Tensor]:
        return (3 * torch.randn(3, *(self.other or self.shape), generator=torch.Generator().manual_seed(2)) + 1,)


def chain(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


class Maxout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (3, 2)).amax(2)


class PadToEven(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))


class Doubled(nn.BatchNorm2d):
    """A subclass with another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Named(nn.BatchNorm2d):
    """A subclass with torch's forward."""


class Standardized(nn.Conv2d):
    """A convolution that changes its weight at each call."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class SharedOnePath(nn.Module):
    """One convolution called twice, with a norm behind one of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(2 * x)


class SharedTwoNorms(SharedOnePath):
    """… with two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.other(self.conv(2 * x))


class SharedBoth(SharedOnePath):
    """… with the same norm behind both, and in a recurrence."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.relu(self.norm(self.conv(x)))))


class OneNormTwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(5, 4), nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x)) * self.norm(self.second(x))


class ResidualSum(nn.Module):
    """One norm inside the branch, one behind the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.outer = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.outer(x + self.inner(self.conv(x))))


class SkipsTheNorm(ResidualSum):
    """The layer's own output is added behind the norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(self.outer(x + F.relu(self.inner(x))))


class ReturnsBoth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layer(x)
        return hidden, self.norm(hidden)


class InPlaceLater(ReturnsBoth):
    """What the norm has read is changed in place afterwards and used."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        normalised = self.norm(hidden)
        hidden.relu_()
        return normalised + hidden


class Tied(nn.Module):
    """Two layers with one weight; a norm behind the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.norm(self.first(x))))


class WeightInFunction(Tied):
    """The weight of the normed layer is used in a function too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.norm(self.first(x))), self.first.weight)


class Penalised(Tied):
    """… or goes into what the model returns."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(self.first(x)), self.first.weight.square().sum()


class TokenNorm(nn.Module):
    """Batch norm on tokens, by the usual transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.up(x).transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(hidden))


class RowNorm(TokenNorm):
    """… and by flattening."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        return x + self.down(F.gelu(self.norm(hidden.reshape(-1, 6)).view_as(hidden)))


class ScrambledRows(TokenNorm):
    """… the wrong way: the channels are mixed."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(x).reshape(x.shape[0], 6, -1))


class TokenNormAfter(TokenNorm):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(F.gelu(self.up(x)).transpose(1, 2)).transpose(1, 2)
        return x + self.down(hidden)


class Branching(nn.Module):
    """A norm after the nonlinearity that two layers read, one of them padded with zeros if asked."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=padding), nn.Conv2d(3, 4, 3, stride=1, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.relu(x))
        return self.left(x) * self.right(x)


class Attended(Branching):
    """… or is read by something else as well."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.relu(x))
        return self.left(x) * x.mean((1, 2, 3), keepdim=True)


class FedByTwo(Branching):
    """The layer behind the norm is fed with something else as well."""

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.norm(F.relu(x))) * self.left(x)


class DynamicDepth(nn.Module):
    """Control flow that depends on the data: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1 + int(x.abs().max() > 1)):
            x = torch.tanh(self.norm(self.layer(x)))
        return self.head(x)


def unseen(x: Tensor) -> Tensor:
    """An operation that no tracing sees, as one of an extension."""
    with torch._C.DisableTorchFunction():
        return 2 * x


class ReadUnseen(SharedOnePath):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x)
        return self.norm(hidden) + unseen(hidden)


class NormInFunction(nn.Module):
    """The norm's own code is called, so that no hook would see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm.forward(self.layer(x))


class Unused(NormInFunction):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class KeywordCalls(NormInFunction):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(input=self.layer(input=x).unsqueeze(2))


def masked(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", amount=2)
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(_double)
    return layer


def _double(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return 2 * output


def frozen_forward(layer: nn.Module) -> nn.Module:
    layer.forward = type(layer).forward.__get__(layer)  # type: ignore[method-assign]
    return layer


def conv(*args: int, **kwargs: object) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*args, **kwargs)  # type: ignore[arg-type]


BN1, BN2, BN3 = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
ONE, ZERO = {"1": ("0",)}, {"0": ("1",)}

CASES = (
    FoldCase("linear", chain(lambda: nn.Linear(5, 4), lambda: BN1(4), nn.ReLU), (5,), ONE),
    FoldCase("linear_no_bias", chain(lambda: nn.Linear(5, 4, bias=False), lambda: BN1(4)), (5,), ONE),
    FoldCase("linear_no_affine", chain(lambda: nn.Linear(5, 4), lambda: BN1(4, affine=False)), (5,), ONE),
    FoldCase("conv1d", chain(lambda: nn.Conv1d(2, 4, 3, padding=1), lambda: BN1(4)), (2, 9), ONE, other=(2, 6)),
    FoldCase("conv2d_strided", chain(conv(3, 4, 3, stride=2, padding=1), lambda: BN2(4)), (3, 8, 8), ONE),
    FoldCase("conv2d_dilated", chain(conv(3, 4, 3, dilation=2, padding="same"), lambda: BN2(4)), (3, 8, 8), ONE),
    FoldCase("conv2d_grouped", chain(conv(4, 6, 3, groups=2, bias=False), lambda: BN2(6)), (4, 6, 6), ONE),
    FoldCase("conv2d_depthwise", chain(conv(4, 4, 3, groups=4), lambda: BN2(4)), (4, 6, 6), ONE),
    FoldCase("conv3d", chain(lambda: nn.Conv3d(2, 4, 2), lambda: BN3(4)), (2, 4, 4, 4), ONE),
    FoldCase("conv_transpose1d", chain(lambda: nn.ConvTranspose1d(3, 4, 3, 2), lambda: BN1(4)), (3, 5), ONE),
    FoldCase(
        "conv_transpose2d",
        chain(lambda: nn.ConvTranspose2d(3, 3, 3, 2, 1, output_padding=1), lambda: BN2(3)),
        (3, 4, 4),
        ONE,
    ),
    FoldCase(
        "conv_transpose2d_grouped",
        chain(lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False), lambda: BN2(6)),
        (4, 4, 4),
        ONE,
    ),
    FoldCase("conv_transpose3d", chain(lambda: nn.ConvTranspose3d(2, 3, 2), lambda: BN3(3)), (2, 3, 3, 3), ONE),
    FoldCase("sync_batch_norm", chain(conv(3, 4, 3), lambda: nn.SyncBatchNorm(4)), (3, 6, 6), ONE),
    FoldCase("subclass_same_forward", chain(conv(3, 4, 3), lambda: Named(4)), (3, 6, 6), ONE),
    FoldCase(
        "subclass_own_forward",
        chain(conv(3, 4, 3), lambda: Doubled(4)),
        (3, 6, 6),
        stays={"1": "it is a Doubled with a forward of its own"},
    ),
    FoldCase(
        "two_norms_in_a_row", chain(conv(3, 4, 3), lambda: BN2(4), lambda: BN2(4)), (3, 6, 6), {**ONE, "2": ("0",)}
    ),
    FoldCase(
        "dropout_between",
        chain(conv(3, 4, 3), nn.Dropout2d, nn.Identity, lambda: BN2(4)),
        (3, 6, 6),
        {"3": ("0",)},
    ),
    FoldCase(
        "average_pool_between", chain(conv(3, 4, 3), lambda: nn.AvgPool2d(2), lambda: BN2(4)), (3, 6, 6), {"2": ("0",)}
    ),
    FoldCase(
        "padded_average_pool_between",
        chain(conv(3, 4, 3), lambda: nn.AvgPool2d(2, padding=1), lambda: BN2(4)),
        (3, 6, 6),
        stays={"2": "avg_pool2d between it and '0' mixes channels, or padding in"},
    ),
    FoldCase(
        "max_pool_negative_scale",
        chain(conv(3, 4, 3), lambda: nn.MaxPool2d(2), lambda: BN2(4)),
        (3, 6, 6),
        stays={"2": r"max_pool2d stands between, and its scale is negative in \d channels"},
    ),
    FoldCase(
        "max_pool_positive_scale",
        chain(conv(3, 4, 3), lambda: nn.MaxPool2d(2), lambda: BN2(4)),
        (3, 6, 6),
        {"2": ("0",)},
        positive=True,
    ),
    FoldCase(
        "zero_pad_between",
        chain(conv(3, 4, 3), lambda: nn.ZeroPad2d(1), lambda: BN2(4)),
        (3, 6, 6),
        stays={"2": "pad between it and '0' mixes channels, or padding in"},
    ),
    FoldCase(
        "reflection_pad_between",
        chain(conv(3, 4, 3), lambda: nn.ReflectionPad2d(1), lambda: BN2(4)),
        (3, 6, 6),
        {"2": ("0",)},
    ),
    FoldCase(
        "linear_on_three_axes_equal_sizes",
        chain(lambda: nn.Linear(5, 4), lambda: BN1(4)),
        (4, 5),
        stays={"1": "'0' writes its channels on axis 2 of 3, and it scales axis 1"},
    ),
    FoldCase(
        "linear_on_three_axes",
        chain(lambda: nn.Linear(5, 7), lambda: BN1(3)),
        (3, 5),
        stays={"1": "'0' writes its channels on axis 2 of 3"},
    ),
    FoldCase("tokens_transposed", TokenNorm, (7, 5), {"norm": ("up",)}, other=(3, 5)),
    FoldCase("tokens_flattened", RowNorm, (7, 5), {"norm": ("up",)}, other=(3, 5)),
    FoldCase(
        "tokens_scrambled",
        ScrambledRows,
        (6, 5),
        stays={"norm": "reshape between it and 'up' mixes channels, or padding in"},
    ),
    FoldCase("tokens_after", TokenNormAfter, (7, 5), {"norm": ("down",)}, other=(3, 5)),
    FoldCase("shared_conv_norm_on_one_path", SharedOnePath, (3, 6, 6), stays={"norm": "'conv' is also read by add"}),
    FoldCase(
        "shared_conv_two_norms",
        SharedTwoNorms,
        (3, 6, 6),
        stays={"norm": "'conv' is also read by batch_norm in 'other'", "other": "also read by batch_norm in 'norm'"},
    ),
    FoldCase("shared_conv_same_norm", SharedBoth, (3, 6, 6), {"norm": ("conv",)}),
    FoldCase("one_norm_behind_two_layers", OneNormTwoLayers, (5,), {"norm": ("first", "second")}),
    FoldCase(
        "residual_sum",
        ResidualSum,
        (3, 6, 6),
        {"inner": ("conv",)},
        {"outer": "its input comes from add in the model, not from an affine layer; its output is read by relu"},
    ),
    FoldCase(
        "output_read_past_the_norm",
        SkipsTheNorm,
        (3, 6, 6),
        stays={"inner": "the output of 'conv' is also read by add", "outer": "comes from add"},
    ),
    FoldCase("output_returned", ReturnsBoth, (5,), stays={"norm": "the output of 'layer' is also returned"}),
    FoldCase("changed_in_place_later", InPlaceLater, (5,), stays={"norm": "'layer' is also read by relu"}),
    FoldCase("tied_weights", Tied, (5,), {"norm": ("first",)}),
    FoldCase("weight_in_a_function", WeightInFunction, (5,), stays={"norm": "'first' is used in a function"}),
    FoldCase("weight_returned", Penalised, (5,), stays={"norm": "'first' shares a parameter that the model returns"}),
    FoldCase(
        "weight_norm",
        chain(lambda: parametrizations.weight_norm(nn.Linear(5, 4)), lambda: BN1(4)),
        (5,),
        ONE,
    ),
    FoldCase(
        "spectral_norm",
        chain(lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), lambda: BN2(4)),
        (3, 6, 6),
        ONE,
    ),
    FoldCase(
        "pruned",
        chain(lambda: masked(nn.Linear(5, 4)), lambda: BN1(4)),
        (5,),
        stays={"1": "'0' carries hooks"},
    ),
    FoldCase(
        "hooked",
        chain(lambda: hooked(nn.Linear(5, 4)), lambda: BN1(4)),
        (5,),
        stays={"1": "comes from mul in the model"},
    ),
    FoldCase(
        "norm_hooked", chain(lambda: nn.Linear(5, 4), lambda: hooked(BN1(4))), (5,), stays={"1": "it carries hooks"}
    ),
    FoldCase(
        "replaced_forward",
        chain(lambda: frozen_forward(nn.Linear(5, 4)), lambda: BN1(4)),
        (5,),
        stays={"1": "'0' has had its forward replaced"},
    ),
    FoldCase(
        "layer_of_another_class",
        chain(lambda: Standardized(3, 4, 3), lambda: BN2(4)),
        (3, 6, 6),
        stays={"1": "'0' is a Standardized, of which"},
    ),
    FoldCase(
        "no_running_statistics",
        chain(lambda: nn.Linear(5, 4), lambda: BN1(4, track_running_stats=False)),
        (5,),
        stays={"1": "keeps no running statistics"},
    ),
    FoldCase("norm_first", chain(lambda: BN1(5), lambda: nn.Linear(5, 4)), (5,), ZERO),
    FoldCase("norm_called_as_a_function", NormInFunction, (5,), stays={"norm": "was not called as a module"}),
    FoldCase("norm_unused", Unused, (5,), stays={"norm": "was not called as a module on the example"}),
    FoldCase("keyword_calls", KeywordCalls, (5,), {"norm": ("layer",)}),
    FoldCase("dynamic_control_flow", DynamicDepth, (5,), {"norm": ("layer",)}),
    # After the nonlinearity.
    FoldCase(
        "after_to_linear", chain(nn.ReLU, lambda: BN1(5), lambda: nn.Linear(5, 4, bias=False)), (5,), {"1": ("2",)}
    ),
    FoldCase("after_to_conv", chain(nn.ReLU, lambda: BN2(3), conv(3, 4, 3, stride=2)), (3, 7, 7), {"1": ("2",)}),
    FoldCase(
        "after_to_conv_grouped", chain(nn.ReLU, lambda: BN2(4), conv(4, 6, 3, groups=2)), (4, 7, 7), {"1": ("2",)}
    ),
    FoldCase(
        "after_to_conv3d", chain(nn.ReLU, lambda: BN3(2), lambda: nn.Conv3d(2, 3, 2)), (2, 3, 3, 3), {"1": ("2",)}
    ),
    FoldCase(
        "after_to_circular_conv",
        chain(nn.ReLU, lambda: BN2(3), conv(3, 4, 3, padding=1, padding_mode="circular")),
        (3, 7, 7),
        {"1": ("2",)},
    ),
    FoldCase(
        "after_to_padded_conv",
        chain(nn.ReLU, lambda: BN2(3), conv(3, 4, 3, padding=1)),
        (3, 7, 7),
        stays={"1": r"'2' pads with zeros \(padding=\(1, 1\)\)"},
    ),
    FoldCase(
        "after_to_same_conv",
        chain(nn.ReLU, lambda: BN2(3), conv(3, 4, 3, padding="same")),
        (3, 7, 7),
        stays={"1": "'2' pads with zeros"},
    ),
    FoldCase(
        "after_to_same_conv_of_one",
        chain(nn.ReLU, lambda: BN2(3), conv(3, 4, 1, padding="same")),
        (3, 7, 7),
        {"1": ("2",)},
    ),
    FoldCase(
        "after_to_conv_transpose",
        chain(nn.ReLU, lambda: BN2(3), lambda: nn.ConvTranspose2d(3, 4, 3)),
        (3, 7, 7),
        stays={"1": "'2' is a ConvTranspose2d, to whose outputs"},
    ),
    FoldCase(
        "after_flattened",
        chain(nn.ReLU, lambda: BN2(3), nn.Dropout, nn.Flatten, lambda: nn.Linear(12, 4)),
        (3, 2, 2),
        {"1": ("4",)},
    ),
    FoldCase(
        "after_global_pool",
        chain(nn.ReLU, lambda: BN2(3), lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten, lambda: nn.Linear(3, 4)),
        (3, 6, 6),
        {"1": ("4",)},
        other=(3, 4, 8),
    ),
    FoldCase(
        "after_max_pool_negative_scale",
        chain(nn.ReLU, lambda: BN2(3), lambda: nn.MaxPool2d(2), conv(3, 4, 3)),
        (3, 8, 8),
        stays={"1": "max_pool2d stands between, and its scale is negative"},
    ),
    FoldCase(
        "after_padding_that_a_maximum_hides",
        chain(nn.Tanh, lambda: BN2(3), lambda: nn.ZeroPad2d(1), lambda: nn.MaxPool2d(3, 1), conv(3, 4, 3)),
        (3, 6, 6),
        stays={"1": "max_pool2d and pad between it and '4' mix channels, or padding in"},
        positive=True,
    ),
    FoldCase(
        "after_averages_with_padding_that_a_maximum_hides",
        chain(nn.Tanh, lambda: BN2(3), lambda: nn.AvgPool2d(3, 1, 1), lambda: nn.MaxPool2d(3, 2), conv(3, 4, 2)),
        (3, 6, 6),
        stays={"1": "avg_pool2d and max_pool2d between it and '4' mix channels, or padding in"},
        positive=True,
    ),
    FoldCase(
        "before_a_maximum_over_channels",
        chain(nn.Tanh, lambda: BN1(6), Maxout, lambda: nn.Linear(3, 2)),
        (6,),
        stays={"1": "amax and unflatten between it and '3' mix channels"},
        positive=True,
    ),
    FoldCase(
        "padding_to_a_multiple_that_the_example_has",
        chain(conv(3, 4, 3, padding=1), PadToEven, lambda: BN2(4)),
        (3, 6, 6),
        stays={"2": "its input comes from pad in '1', not from an affine layer"},
        other=(3, 5, 7),
    ),
    FoldCase(
        "after_max_pool_positive_scale",
        chain(nn.ReLU, lambda: BN2(3), lambda: nn.MaxPool2d(2), conv(3, 4, 3)),
        (3, 8, 8),
        {"1": ("3",)},
        positive=True,
    ),
    FoldCase(
        "after_to_linear_on_another_axis",
        chain(nn.ReLU, lambda: BN1(5), lambda: nn.Linear(5, 4)),
        (5, 5),
        stays={"1": "'2' reads channels on another axis"},
    ),
    FoldCase(
        "after_two_norms",
        chain(nn.ReLU, lambda: BN2(3), lambda: BN2(3), conv(3, 4, 3)),
        (3, 8, 8),
        {"1": ("3",), "2": ("3",)},
    ),
    FoldCase("after_branching", Branching, (3, 6, 6), {"norm": ("left", "right")}),
    FoldCase("after_branching_padded", lambda: Branching(1), (3, 6, 6), stays={"norm": "'left' pads|'right' pads"}),
    FoldCase("after_read_elsewhere", Attended, (3, 6, 6), stays={"norm": "its output is read by mul in the model"}),
    FoldCase("after_layer_fed_by_two", FedByTwo, (3, 6, 6), stays={"norm": "'left' also receives an input"}),
    FoldCase(
        "after_and_before",
        chain(nn.ReLU, lambda: BN2(3), conv(3, 4, 3), lambda: BN2(4)),
        (3, 8, 8),
        {"1": ("2",), "3": ("2",)},
    ),
)
