"""The parameters of a model that are trained, chosen by patterns on their paths."""

import fnmatch
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bn_lightning.errors import UnknownNameError


def trainable_parameters(
    model: nn.Module, patterns: str | Sequence[str] | None = None, *, allow_complex: bool = False
) -> dict[str, Tensor]:
    """The parameters that require a gradient, by path, each shared one once.

    Args:
        model: Any module.
        patterns: fnmatch patterns on the paths; None takes all.
        allow_complex: For callers that take neither norms nor derivatives, which are those of real parameters here.

    Returns:
        The parameters, in the order of registration.

    Raises:
        ValueError: If there is none, one has no shape yet, or one of those chosen is complex.
        UnknownNameError: If a pattern matches none.

    Example:
        >>> list(trainable_parameters(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "*.bias"))
        ['0.bias', '1.bias']
    """
    trainable: dict[str, Tensor] = {name: part for name, part in model.named_parameters() if part.requires_grad}
    if not trainable:
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires a gradient, so there is nothing to step along."
        )
    if lazy := [name for name, part in trainable.items() if is_lazy(part)]:
        raise ValueError(
            f"{', '.join(map(repr, lazy[:5]))} of {type(model).__name__} get their shapes in the first forward; "
            "run the model on a batch before."
        )
    chosen = set(trainable) if patterns is None else set[str]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        matched = fnmatch.filter(trainable, pattern)
        if not matched:
            raise UnknownNameError(
                f"No trainable parameter matches {pattern!r}; there are, for instance: "
                f"{', '.join(list(trainable)[:10])}."
            )
        chosen.update(matched)
    found = {name: part for name, part in trainable.items() if name in chosen}
    if not allow_complex and (wrong := [name for name, part in found.items() if part.is_complex()]):
        raise ValueError(
            f"{', '.join(map(repr, wrong[:5]))} of {type(model).__name__} are complex, and only real parameters are "
            "measured. Freeze them, leave them out with parameters=, or store torch.view_as_real of them."
        )
    return found
