"""A model made of one function, and what is decided about its nonlinearities."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.planning import plan_insertion


class Function(nn.Module):
    """A model made of one function, with layers, parameters and buffers to use in it."""

    def __init__(self, function: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in held.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def sites_of(model: nn.Module, *args: Any, kwargs: Mapping[str, Any] | None = None, **options: Any) -> tuple[Site, ...]:
    """The sites that a plan for one example has, inserted or skipped."""
    return plan_insertion(model, args, kwargs, **options).sites
