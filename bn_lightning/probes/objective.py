"""The loss of a model on a fixed set of batches as a function of its parameters, and the gradient of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from bn_lightning.probes.copied_batch import copied_batch
from bn_lightning.probes.objective_guard import Guard, guarded_model
from bn_lightning.probes.objective_loss import (
    LossFn,
    batch_samples,
    scalar_loss,
    training_step_of,
)
from bn_lightning.probes.parameter_gradients import parameter_gradients
from bn_lightning.probes.trainable import trainable_parameters

__all__ = ["LossFn", "Objective", "Point", "batch_samples", "trainable_parameters"]

Point = Mapping[str, Tensor]
"""Parameters by path; those that are missing keep the value the model holds."""


class Objective:
    """The mean loss over samples of fixed batches, at any point in the space of the trainable parameters.

    At a point the model's own parameters stand on other memory for the time of one evaluation; theirs is never
    written to. Each evaluation starts from the buffers and the random state that the first one met and leaves both
    untouched, so dropout draws the same masks at every point, and norms in training mode use each batch's own
    statistics without moving their running ones. Beyond reach are Python attributes that the loss itself writes,
    generators that a module owns, and parameters that the loss itself writes in place, as of a momentum encoder
    that ``training_step`` moves: pass a `loss_fn` that does not.

    The loss is Σ n_k L_k / Σ n_k over batches of n_k samples, n_k being the longest leading axis in the batch.

    Args:
        model: Any module, in the modes it is to be measured in; of one that is compiled or wrapped for data-parallel
            training, the module within. A LightningModule needs no `loss_fn`: its ``training_step(batch, 0)`` is run.
        batches: A list of batches, on the model's device, with two samples or more in all. What BatchNorm sees at
            once is one batch. A loss may take a batch apart or write to it: the next evaluation meets it whole.
        loss_fn: See `LossFn`.
        parameters: fnmatch patterns on the parameters' paths: those to differentiate by. None takes all that
            require a gradient. Frozen ones are never taken.
        min_samples: 1 for batches that training took, whatever they hold.
        allow_complex: Whether complex parameters may be among them; for losses alone, without gradients.

    Attributes:
        model: The module that is run.
        parameters: The parameters at the model's present point, by path, each shared one once.
        samples: How many samples there are.
        evaluations: Passes over all batches so far; each is a forward and a backward.

    Raises:
        TypeError: If `batches` is one batch, or there is neither a `loss_fn` nor a ``training_step``.
        ValueError: If there are fewer than two samples, no trainable parameter, one that is complex or whose shape is
            not known yet, or a ``training_step`` that optimizes manually or takes an iterator.
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
        min_samples: int = 2,
        allow_complex: bool = False,
    ) -> None:
        if not isinstance(batches, list):
            raise TypeError(
                f"A probe set is a list of batches, got a {type(batches).__name__}; wrap a single batch as [batch]."
            )
        self.model = _within(model)
        self._loss_fn = training_step_of(self.model) if loss_fn is None else loss_fn
        self._weights = [batch_samples(batch) for batch in batches]
        self.batches = batches
        self.samples = sum(self._weights)
        if self.samples < min_samples:
            raise ValueError(f"A probe set needs two samples or more, got {self.samples}.")
        self.parameters = trainable_parameters(self.model, parameters, allow_complex=allow_complex)
        self.evaluations = 0
        self._guard: Guard | None = None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Protect everything of the model while it is evaluated inside (see `guarded_model`); once for many points."""
        # Points are met once each; compiling for them would cost more than it saves, and drop the hooks of probes.
        with (
            guarded_model(self.model, self.parameters) as guard,
            torch.enable_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            self._guard, outer = guard, self._guard
            try:
                yield
            finally:
                self._guard = outer

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
            ValueError: If the loss is not one number, depends on no trainable parameter, or hides some behind a
                reentrant checkpoint.
        """
        self.evaluations += 1
        names = list(self.parameters) if wrt is None else list(wrt)
        total = 0.0
        gradient: dict[str, Tensor] = {}
        with self._entered() as guard, torch.enable_grad():
            for share, loss, leaves in self.losses(point, names):
                parts = parameter_gradients(loss, list(leaves.values()), self.model, independent=wrt is not None)
                total += share * float(loss.detach())
                for name, part in zip(names, parts, strict=True):
                    weighted = part if share == 1 else share * part
                    gradient[name] = gradient[name] + weighted if name in gradient else weighted
            guard.rewind()
        return torch.tensor(total, dtype=torch.float64), gradient

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
        with self._entered() as guard, torch.no_grad():
            total = sum(share * float(loss) for share, loss, _ in self.losses(point, ()))
            guard.rewind()
        return float(total)

    def losses(
        self, point: Point | None, names: Sequence[str], *, keep_graphs: bool = False
    ) -> Iterator[tuple[float, Tensor, dict[str, Tensor]]]:
        """Each batch's share of the samples, its loss with a graph, and the leaves it can be differentiated by.

        For callers that differentiate in their own way, inside `guarded`, with gradients enabled; `rewind` makes the
        next evaluation meet the same random numbers.

        Args:
            point: Where; the model stands there until the iteration is over.
            names: Paths of the leaves; none where only the loss is wanted.
            keep_graphs: Whether the graph of one batch is needed after the next one has run.

        Yields:
            Share, loss and leaves, batch by batch, so that one graph at a time is in memory.

        Raises:
            TypeError: If the loss function returns no loss.
            ValueError: If the loss is not one number, or depends on no trainable parameter where all are leaves.
        """
        leaves = {name: self.parameters[name] for name in names}
        with self._entered() as guard, guard.at(point or {}, names or None):
            for weight, batch in zip(self._weights, self.batches, strict=True):
                guard.begin(keep_graphs=keep_graphs)
                returned = self._loss_fn(self.model, copied_batch(batch))
                whole = bool(names) and len(names) == len(self.parameters)
                loss = scalar_loss(returned, self.model, with_graph=whole)
                yield weight / self.samples, loss, leaves

    @contextmanager
    def standing_at(self, point: Point) -> Iterator[None]:
        """Leave the model at a point for several evaluations; only inside `guarded`.

        What is written to the point's memory meanwhile moves the model.

        Args:
            point: Where.

        Yields:
            Nothing.

        Raises:
            RuntimeError: Outside `guarded`.
            ValueError: If a value has another shape than its parameter.
        """
        if self._guard is None:
            raise RuntimeError("A model stands at a point inside guarded() only, which brings it back.")
        with self._guard.at(point):
            yield

    def rewind(self) -> None:
        """Set global random states back to where `guarded` began; only inside it."""
        if self._guard is not None:
            self._guard.rewind()

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of `parameters`, to compare with after a step."""
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def _entered(self) -> AbstractContextManager[Guard]:
        return guarded_model(self.model, self.parameters) if self._guard is None else nullcontext(self._guard)


def _within(model: nn.Module) -> nn.Module:
    # Compiled wrappers would be compiled for every point; data-parallel ones wait for backward passes of all ranks.
    inner: Any = model
    while isinstance(inner, DistributedDataParallel | DataParallel) or hasattr(inner, "_orig_mod"):
        inner = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    return inner
