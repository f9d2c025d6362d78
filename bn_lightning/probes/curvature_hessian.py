"""Products of the Hessian of a loss with vectors, and the modes of norms that they depend on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bn_lightning.probes.objective import Objective
from bn_lightning.probes.parameter_gradients import dense_gradient, outside_autocast, parameter_gradients

NormMode = Literal["train", "eval"]


class Hessian:
    """Multiplies flat float64 vectors by the Hessian of an objective, at the point the model holds.

    Double backward (Pearlmutter, 1994, "Fast exact multiplication by the Hessian"): the gradient is differentiated
    along the vector. Use it within ``objective.guarded()``. What a custom function marked ``once_differentiable``
    contributes to the second derivative is lost silently, as torch has no way to see it.

    Args:
        objective: The loss; elements come in the order of its parameters.
        keep_graphs: Keep the graph of each batch's gradient: a product is then one backward pass, at the memory of all
            batches. False computes the gradient anew for each.

    Attributes:
        products: How many products were taken.

    Example:
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
        >>> objective = Objective(model, [x], loss_fn=lambda model, x: model(x).square().mean())
        >>> with objective.guarded():
        ...     Hessian(objective)(np.array([1.0, 1.0])).tolist()
        [4.0, 1.0]
    """

    def __init__(self, objective: Objective, keep_graphs: bool = True) -> None:
        self.products = 0
        self._objective = objective
        self._names = list(objective.parameters)
        self._keep_graphs = keep_graphs
        self._kept = list(self._gradients()) if keep_graphs else None
        objective.rewind()

    def _gradients(self) -> Iterator[tuple[float, list[Tensor], list[Tensor]]]:
        for share, loss, leaves in self._objective.losses(None, self._names, keep_graphs=self._keep_graphs):
            inputs = list(leaves.values())
            yield share, inputs, parameter_gradients(loss, inputs, self._objective.model, create_graph=True)

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        """The Hessian times a vector.

        Args:
            vector: One element for each element of the parameters.

        Returns:
            The product, as long.

        Raises:
            RuntimeError: If an operation has no second derivative.
        """
        self.products += 1
        total = np.zeros(vector.size)
        for share, inputs, gradient in self._gradients() if self._kept is None else self._kept:
            parts = torch.from_numpy(vector.ravel()).split([value.numel() for value in inputs])
            along = [part.reshape(value.shape).to(value) for part, value in zip(parts, inputs, strict=True)]
            total += share * self._along(inputs, gradient, along)
        # A gradient that is computed anew has to meet the dropout masks of the first one.
        self._objective.rewind()
        return total

    def _along(self, inputs: list[Tensor], gradient: list[Tensor], along: list[Tensor]) -> np.ndarray:
        # Where the loss is linear in a parameter its gradient is a constant, without a graph.
        curved = [(part, other) for part, other in zip(gradient, along, strict=True) if part.requires_grad]
        if not curved:
            return np.zeros(sum(value.numel() for value in inputs))
        try:
            with outside_autocast(curved[0][0]):
                products = torch.autograd.grad(
                    [part for part, _ in curved],
                    inputs,
                    grad_outputs=[other for _, other in curved],
                    retain_graph=self._keep_graphs,
                    allow_unused=True,
                )
        except RuntimeError as error:
            error.add_note(
                "This came up in a second derivative of the loss. Choose an implementation that has one, for example "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around the call, or cuDNN turned off for RNNs."
            )
            raise
        dense = map(dense_gradient, products, inputs)
        return torch.cat([part.detach().cpu().double().flatten() for part in dense]).numpy()


@contextmanager
def norms_in(model: nn.Module, mode: NormMode | None) -> Iterator[None]:
    """Put batch and instance norms into a mode; for use inside a sandbox, which gives the modes back.

    Args:
        model: The module.
        mode: "train", "eval", or None to leave norms as they are.

    Yields:
        Nothing.

    Raises:
        ValueError: If there is no such mode.
    """
    if mode not in (None, "train", "eval"):
        raise ValueError(f"norm_mode is 'train', 'eval' or None for the modes the norms are in, not {mode!r}.")
    if mode is not None:
        for module in model.modules():
            if isinstance(module, _NormBase):
                module.train(mode == "train")
    yield
