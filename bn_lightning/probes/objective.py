"""The loss of a model on a fixed set of batches as a function of its parameters, and the gradient of it."""

import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from bn_lightning.errors import UnknownNameError
from bn_lightning.surgery.sandbox import preserve_random_state, sandbox

LossFn = Callable[[Any, Any], Any]
"""``loss_fn(model, batch)`` returns the loss, a scalar tensor or a mapping that has it under "loss"."""

Point = Mapping[str, Tensor]
"""Parameters by path; those that are missing keep the value the model holds."""

_REMEDY = "Pass loss_fn=lambda module, batch: ... that returns the loss of a batch."


class Objective:
    """The mean loss over samples of fixed batches, at any point in the space of the trainable parameters.

    A point is evaluated through `torch.func.functional_call`: the model's own parameters are never written to. Each
    evaluation starts from the buffers and the random state it is called with and leaves both untouched, so
    dropout draws the same masks at every point, and norms in training mode use each batch's own statistics
    without moving their running ones. Python attributes that the loss itself writes, and generators that a module
    owns, are beyond reach.

    The loss is Σ n_k L_k / Σ n_k over batches of n_k samples, n_k being the longest leading axis in the batch.

    Args:
        model: Any module, in the modes it is to be measured in. A LightningModule needs no `loss_fn`: its
            ``training_step(batch, 0)`` is run.
        batches: A list of batches, on the model's device, with two samples or more in all. What BatchNorm sees at
            once is one batch.
        loss_fn: See `LossFn`.
        parameters: fnmatch patterns on the parameters' paths: those to differentiate by. None takes all that
            require a gradient. Frozen ones are never taken.

    Attributes:
        parameters: The parameters at the model's present point, by path, each shared one once.
        samples: How many samples there are.
        evaluations: Passes over all batches so far; each is a forward and a backward.

    Raises:
        TypeError: If `batches` is one batch, or there is neither a `loss_fn` nor a ``training_step``.
        ValueError: If there are fewer than two samples, no trainable parameter, or its
            ``training_step`` optimizes manually or takes an iterator.
        UnknownNameError: If a pattern matches no trainable parameter.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> objective = Objective(model, [x], loss_fn=lambda model, x: model(x).square().mean())
        >>> loss, gradient = objective({"weight": torch.tensor([[3.0, 1.0]])})
        >>> loss.item(), gradient["weight"].tolist()
        (5.0, [[3.0, 1.0]])
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        *,
        loss_fn: LossFn | None = None,
        parameters: str | Sequence[str] | None = None,
    ) -> None:
        if not isinstance(batches, list):
            raise TypeError(
                f"A probe set is a list of batches, got a {type(batches).__name__}; wrap a single batch as [batch]."
            )
        # Hooks and parameters live on the module within; its compiled wrapper would be compiled for every point.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self._loss_fn = _training_step_of(self.model) if loss_fn is None else loss_fn
        self._weights = [batch_samples(batch) for batch in batches]
        self.batches = batches
        self.samples = sum(self._weights)
        if self.samples < 2:
            raise ValueError(f"A probe set needs two samples or more, got {self.samples}.")
        self.parameters = trainable_parameters(self.model, parameters)
        self.evaluations = 0
        self._called = _Called(self.model, self._loss_fn)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Protect modes, buffers, gradients and random state of everything evaluated inside."""
        # Points are met once each; compiling for them would cost more than it saves, and drop the hooks of probes.
        with sandbox(self.model), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            yield

    def __call__(
        self, point: Point | None = None, wrt: Sequence[str] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and gradient at a point.

        Args:
            point: Where; by default the parameters the model holds.
            wrt: Paths of the parameters to differentiate by, by default all of `parameters`.

        Returns:
            The loss, a float64 scalar on the CPU, and the gradient by path, in the dtype of the parameter. A parameter
            that the loss does not depend on has a gradient of 0.

        Raises:
            TypeError: If the loss function returns no loss.
            ValueError: If the loss is not one number, or depends on no trainable parameter.
        """
        self.evaluations += 1
        names = list(self.parameters) if wrt is None else list(wrt)
        total = torch.zeros((), dtype=torch.float64)
        gradient: dict[str, Tensor] = {}
        with preserve_random_state(), torch.enable_grad():
            for share, loss, leaves in self.losses(point, names):
                parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
                total += share * loss.detach().cpu().double()
                for name, part in zip(names, parts, strict=True):
                    weighted = part if share == 1 else share * part
                    gradient[name] = gradient[name] + weighted if name in gradient else weighted
        return total, gradient

    def loss(self, point: Point | None = None) -> float:
        """Loss at a point, by forwards alone.

        Args:
            point: Where; by default the parameters the model holds.

        Returns:
            The loss.

        Raises:
            TypeError: If the loss function returns no loss.
            ValueError: If the loss is not one number.
        """
        with preserve_random_state(), torch.no_grad():
            return float(sum(share * float(loss) for share, loss, _ in self.losses(point, ())))

    def losses(self, point: Point | None, names: Sequence[str]) -> Iterator[tuple[float, Tensor, dict[str, Tensor]]]:
        """Each batch's share of the samples, its loss with a graph, and the leaves it can be differentiated by.

        For callers that differentiate in their own way, with gradients enabled and the random state preserved.

        Args:
            point: Where.
            names: Paths of the leaves; none where only the loss is wanted.

        Yields:
            Share, loss and leaves, batch by batch, so that one graph at a time is in memory.

        Raises:
            TypeError: If the loss function returns no loss.
            ValueError: If the loss is not one number, or depends on no trainable parameter.
        """
        values = {**self.parameters, **(point or {})}
        wanted = set(names)
        for weight, batch in zip(self._weights, self.batches, strict=True):
            leaves = {name: value.detach().requires_grad_(name in wanted) for name, value in values.items()}
            buffers = {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}
            state = {f"model.{name}": value for name, value in {**leaves, **buffers}.items()}
            loss = _checked(functional_call(self._called, state, (batch,)), self.model, with_graph=bool(names))
            yield weight / self.samples, loss, {name: leaves[name] for name in names}

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of `parameters`, to compare with after a step."""
        return {name: value.detach().clone() for name, value in self.parameters.items()}


def batch_samples(batch: Any) -> int:
    """The longest leading axis of the tensors in a batch.

    Args:
        batch: Any nest of tensors.

    Returns:
        The number of samples; 1 for a batch without a tensor that has axes.

    Example:
        >>> batch_samples((torch.zeros(8, 3), {"label": torch.zeros(8)}))
        8
    """
    leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    return max((len(leaf) for leaf in leaves), default=1)


class _Called(nn.Module):
    """Lets functional_call swap the parameters of a model while any function of it runs."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        # Construction of a child must not touch its training flag, so nothing else is set here.
        self.model = model
        self._loss_fn = loss_fn

    def forward(self, batch: Any) -> Any:
        return self._loss_fn(self.model, batch)


def _training_step_of(model: nn.Module) -> LossFn:
    step: Any = getattr(model, "training_step", None)
    if not callable(step):
        raise TypeError(f"{type(model).__name__} has no training_step to take the loss from. {_REMEDY}")
    if not getattr(model, "automatic_optimization", True):
        raise ValueError(
            f"training_step of {type(model).__name__} optimizes manually, so running it would step the optimizers. "
            f"{_REMEDY}"
        )
    arguments = inspect.signature(step).parameters.values()
    if "dataloader_iter" in (argument.name for argument in arguments):
        raise ValueError(
            f"training_step of {type(model).__name__} takes a dataloader_iter instead of a batch. {_REMEDY}"
        )
    if len(arguments) > 1 or any(argument.kind is argument.VAR_POSITIONAL for argument in arguments):
        return lambda module, batch: module.training_step(batch, 0)
    return lambda module, batch: module.training_step(batch)


def trainable_parameters(model: nn.Module, patterns: str | Sequence[str] | None = None) -> dict[str, Tensor]:
    """The parameters that require a gradient, by path, each shared one once.

    Args:
        model: Any module.
        patterns: fnmatch patterns on the paths; None takes all.

    Returns:
        The parameters, in the order of registration.

    Raises:
        ValueError: If there is none.
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
    if patterns is None:
        return trainable
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = fnmatch.filter(trainable, pattern)
        if not matched:
            raise UnknownNameError(
                f"No trainable parameter matches {pattern!r}; there are, for instance: "
                f"{', '.join(list(trainable)[:10])}."
            )
        chosen.update(matched)
    return {name: part for name, part in trainable.items() if name in chosen}


def _checked(returned: Any, model: nn.Module, *, with_graph: bool) -> Tensor:
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    if not isinstance(loss, Tensor):
        found = (
            f"a mapping without a tensor 'loss' (keys {list(returned)})"
            if isinstance(returned, Mapping)
            else (f"a {type(returned).__name__}")
        )
        raise TypeError(f"The loss of {type(model).__name__} came back as {found}. {_REMEDY}")
    if loss.numel() != 1:
        raise ValueError(
            f"The loss of {type(model).__name__} has shape {tuple(loss.shape)}; it must be one number. {_REMEDY}"
        )
    if with_graph and not loss.requires_grad:
        raise ValueError(
            f"The loss of {type(model).__name__} depends on none of the parameters it is differentiated by: they are "
            "not used, or the loss is detached. Choose others with parameters=, or return the loss with its graph."
        )
    return loss.reshape(())
