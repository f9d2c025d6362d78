"""What each torch function means for the place of a norm.

A function is known by its bare name (`add`, whether called as `+`, `+=`, `torch.add` or
`Tensor.add_`) when a model is traced, and by its full name (`torch.nn.functional.relu`) when calls of
a nonlinearity have to be met again in a model that was not traced.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

_NONLINEARITY_NAMES = (
    "relu relu6 sigmoid tanh elu selu celu gelu silu mish leaky_relu rrelu prelu hardswish hardsigmoid hardtanh "
    "softplus softsign logsigmoid tanhshrink softshrink hardshrink threshold expit erf glu"
).split()
# A ReLU when the other operand or the lower bound is zero; `rectifiers` tells.
_RECTIFIER_NAMES = "maximum max clamp clamp_min clip".split()
_AFFINE_NAMES = (
    "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "multi_head_attention_forward"
).split()
_MATMUL_NAMES = (
    "matmul mm bmm einsum addmm baddbmm addbmm addmv mv dot tensordot inner chain_matmul scaled_dot_product_attention"
).split()
_NORM_NAMES = "batch_norm layer_norm group_norm instance_norm rms_norm".split()
_SHAPE_NAMES = (
    "transpose t T mT H mH permute movedim moveaxis swapaxes swapdims view reshape view_as reshape_as flatten "
    "unflatten squeeze unsqueeze getitem chunk split tensor_split unbind narrow select expand expand_as flip roll "
    "ravel mean sum amax amin max min"
).split()
_PASS_NAMES = (
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout clone contiguous to "
    "float double half bfloat16 type type_as cpu cuda detach pad interpolate upsample pixel_shuffle pixel_unshuffle "
    "channel_shuffle max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d "
    "lp_pool2d nan_to_num requires_grad as_subclass neg negative positive repeat"
).split()
_JOIN_NAMES = "add sub subtract rsub cat concat concatenate stack hstack vstack where lerp maximum minimum".split()
_PRODUCT_NAMES = "mul multiply div divide true_divide".split()
# Of the tensor they are given these read the shape and type alone.
_CREATION_NAMES = (
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full new_empty "
    "new_tensor"
).split()
_LOSS_NAMES = "cross_entropy binary_cross_entropy binary_cross_entropy_with_logits kl_div log_softmax softmax".split()

ROLES: dict[str, str] = {
    **dict.fromkeys(_NONLINEARITY_NAMES, "nonlinearity"),
    **dict.fromkeys(_AFFINE_NAMES, "affine"),
    **dict.fromkeys(_MATMUL_NAMES, "matmul"),
    **dict.fromkeys(_NORM_NAMES, "norm"),
    **dict.fromkeys(_SHAPE_NAMES, "shape"),
    **dict.fromkeys(_PASS_NAMES, "pass"),
    **dict.fromkeys(_JOIN_NAMES, "join"),
    **dict.fromkeys(_PRODUCT_NAMES, "product"),
    **dict.fromkeys(_LOSS_NAMES, "loss"),
    **dict.fromkeys(_CREATION_NAMES, "constant"),
}
"""Role of a function by its bare name; functions that are not listed have the role "other"."""

SATURATING = frozenset({"sigmoid", "tanh", "hardsigmoid", "hardtanh", "expit", "erf", "logsigmoid", "softsign"})
"""Nonlinearities that end a network as a probability or a bounded value rather than feed another layer."""

GATING = frozenset({"sigmoid", "hardsigmoid", "expit", "gelu", "silu"})
"""Nonlinearities whose output, multiplied with another branch, is a gate."""

BENDING = frozenset({"sin", "cos", "atan", "arctan"})
"""Functions that make a module without parameters an activation, though called elsewhere they are none."""

# `__rsub__` subtracts like `__sub__`; only the roles of the operands matter here, not their order.
_DUNDER_PREFIXES = ("r", "i")
_ALIASES = {"log_sigmoid": "logsigmoid"}  # what torch.nn.functional.logsigmoid calls itself
_DUNDERS = {"add", "sub", "mul", "truediv", "matmul", "div"}


def bare_name(function: Callable[..., Any]) -> str:
    """The name of a torch function without its spelling: operator, in-place and property forms are one.

    Args:
        function: A function as a `TorchFunctionMode` receives it.

    Returns:
        The bare name.

    Example:
        >>> import torch
        >>> [bare_name(f) for f in (torch.relu_, torch.Tensor.__iadd__, torch.Tensor.__getitem__)]
        ['relu', 'add', 'getitem']
    """
    name = getattr(function, "__name__", str(function))
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        if name not in _DUNDERS and name[0] in _DUNDER_PREFIXES and name[1:] in _DUNDERS:
            name = name[1:]
        return {"truediv": "div"}.get(name, name)
    name = name.strip("_").removeprefix("special_")
    return _ALIASES.get(name, name)


def _spellings() -> dict[str, Callable[..., Any]]:
    spaces = {
        "torch.nn.functional": F,
        "torch": torch,
        "torch.Tensor": torch.Tensor,
        "torch.special": torch.special,
    }
    found: dict[str, Callable[..., Any]] = {}
    known: set[int] = set()
    for space_name, space in spaces.items():
        for name in (*_NONLINEARITY_NAMES, *_RECTIFIER_NAMES):
            for spelling in (name, name + "_"):
                function = getattr(space, spelling, None)
                # Some functions live in two namespaces; one full name for each object keeps plans unambiguous.
                if function is not None and id(function) not in known:
                    known.add(id(function))
                    found[f"{space_name}.{spelling}"] = function
    return found


NONLINEARITIES: dict[str, Callable[..., Any]] = _spellings()
"""Every spelling of a nonlinearity, or of what can be one, by its full name, such as `torch.nn.functional.relu`."""

FULL_NAMES: dict[Callable[..., Any], str] = {function: name for name, function in NONLINEARITIES.items()}
"""The full names, by the function object."""

UNSEEN_BY_COMPILER = frozenset(
    f"torch.{name}"
    for name in (
        "nn.functional.relu_ nn.functional.elu_ nn.functional.selu_ nn.functional.celu_ nn.functional.leaky_relu_ "
        "nn.functional.rrelu_ nn.functional.hardswish nn.functional.hardsigmoid nn.functional.hardtanh_ "
        "nn.functional.threshold nn.functional.threshold_ sigmoid_ tanh_ erf_ clamp_ clamp_min_ clip_"
    ).split()
)
"""Functions that torch.compile hands to no function mode, so that a call of them cannot be met in compiled code."""
