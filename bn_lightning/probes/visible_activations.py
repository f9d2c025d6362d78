"""Which nonlinearities let their activation be seen, found out on an example."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.running.taps import tap_preactivations
from bn_lightning.surgery.sandbox import sandbox


def visible_activations(model: nn.Module, sites: Sequence[Site], run: Callable[[], Any]) -> tuple[bool, ...]:
    """Whether what each nonlinearity returns can be handed over, with the channels of what it receives.

    It cannot where a nonlinearity is spelled with other functions, such as a ReLU as `torch.where`; the site does not
    tell (`taps.activation_is_visible`), so the model is run, in a sandbox.

    Args:
        model: The module the sites were found in.
        sites: Sites of a plan made with `placement="before"`.
        run: Runs the model once.

    Returns:
        One answer for each site.

    Example:
        >>> from bn_lightning.surgery.planning import plan_insertion
        >>> class Spelled(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)
        ...     def forward(self, x):
        ...         x = torch.tanh(self.first(x))
        ...         x = self.first(x)
        ...         return self.second(torch.where(x > 0, x, 0.0))
        >>> model, x = Spelled(), torch.randn(8, 4)
        >>> visible_activations(model, plan_insertion(model, (x,)).sites, lambda: model(x))
        (True, False)
    """
    seen = [False] * len(sites)

    def look(layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        shape = activation.shape if isinstance(activation, Tensor) else ()
        seen[index] = len(shape) >= -channel_dim and shape[channel_dim] == sites[index].channels

    with (
        tap_preactivations(model, sites, lambda *_: None, receive_activation=look),
        sandbox(model),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
    ):
        run()
    return tuple(seen)
