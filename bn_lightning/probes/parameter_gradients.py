"""The gradient of a loss by chosen parameters, as training would take it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from bn_lightning.probes.objective_loss import independent_loss


def parameter_gradients(
    loss: Tensor,
    parameters: Sequence[Tensor],
    model: nn.Module,
    *,
    create_graph: bool = False,
    independent: bool = False,
) -> list[Tensor]:
    """Differentiate a loss by each of some parameters.

    Args:
        loss: The loss, with its graph.
        parameters: What to differentiate by.
        model: The module, for messages.
        create_graph: Whether the gradients are to be differentiated again.
        independent: Whether the loss may depend on none of them.

    Returns:
        A strided tensor for each; zeros where the loss does not depend on it.

    Raises:
        ValueError: If the loss depends on none of them, or some may be hidden behind a reentrant checkpoint.

    Example:
        >>> x, y = (torch.tensor(value, requires_grad=True) for value in (3.0, 4.0))
        >>> parameter_gradients(x.square(), [x, y], nn.Identity())
        [tensor(6.), tensor(0.)]
    """
    # A loss that none of them has part in may come without a graph.
    parts: Sequence[Tensor | None] = (None,) * len(parameters)
    if loss.requires_grad:
        with outside_autocast(loss):
            parts = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
    if any(part is None for part in parts):
        refuse_reentrant(loss, model)
        if not independent and all(part is None for part in parts):
            raise independent_loss(model)
    return list(map(dense_gradient, parts, parameters))


def outside_autocast(loss: Tensor) -> AbstractContextManager[object]:
    """Where gradients are taken as training takes them: ``loss.backward()`` stands behind autocast, not in it.

    Within, float32 parts of a forward would be differentiated in low precision.

    Args:
        loss: What is differentiated.

    Returns:
        A context.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> with torch.autocast("cpu"), outside_autocast(x.sum()):
        ...     torch.is_autocast_enabled("cpu")
        False
    """
    device = loss.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def dense_gradient(gradient: Tensor | None, leaf: Tensor) -> Tensor:
    """A gradient as a strided tensor, whatever autograd returned.

    Args:
        gradient: By the leaf; sparse from an embedding with ``sparse=True``, None where the loss is independent.
        leaf: What it was taken by.

    Returns:
        The gradient; zeros in place of None.

    Example:
        >>> dense_gradient(None, torch.ones(2)).tolist()
        [0.0, 0.0]
    """
    if gradient is None:
        return torch.zeros_like(leaf, requires_grad=False)
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def refuse_reentrant(loss: Tensor, model: nn.Module) -> None:
    """See that parameters without a gradient are unused, and not hidden by a reentrant checkpoint.

    A gradient by chosen parameters passes such a checkpoint by, without a word from torch.

    Args:
        loss: The loss, with its graph.
        model: The module, for messages.

    Raises:
        ValueError: If there is such a checkpoint.

    Example:
        >>> refuse_reentrant(torch.ones(1, requires_grad=True).sum(), nn.Identity())
    """
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "CheckpointFunctionBackward":
            raise ValueError(
                f"{type(model).__name__} uses gradient checkpointing with use_reentrant=True, and torch gives no "
                "gradient by chosen parameters through it. Use use_reentrant=False, or measure without checkpointing."
            )
        waiting.extend(other for other, _ in node.next_functions)
