"""Class probabilities of one module over a loader, averaged over views of every batch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bn_lightning.analysis.crops import Views, whole
from bn_lightning.analysis.ensemble import Outputs, average_probabilities, class_probabilities, sum_to_one
from bn_lightning.errors import NonFiniteError

Key = int | str


@dataclass(frozen=True)
class Reading:
    """How batches are laid out, and what a module does with them.

    Args:
        inputs: Place or key of the inputs in a batch.
        target: Place or key of the classes.
        views: From the inputs to their views.
        forward: ``forward(module, view)`` runs the module in place of ``module(view)``.
        output: Place or key of the class outputs in what it returns; None where it returns just them.
        outputs: Whether these are logits or probabilities.
    """

    inputs: Key = 0
    target: Key = 1
    views: Views = whole
    forward: Callable[[Any, Any], Any] | None = None
    output: Key | None = None
    outputs: Outputs = "auto"


@dataclass
class MemberStep:
    """Stands in for a module's `predict_step`, and keeps what the batches gave.

    Probabilities are averaged over views batch by batch. "auto" is decided once, by all views of the first batch.

    Args:
        module: The module; in evaluation mode and without gradients, as a Trainer predicts.
        name: What it is called in messages.
        reading: How to read batches.
        advance: Called after each batch.

    Example:
        >>> step = MemberStep(torch.nn.Identity(), "a.ckpt", Reading())
        >>> step((torch.tensor([[0.25, 0.75]]), torch.tensor([1])), 0)
        >>> step.probabilities(), step.targets()
        (tensor([[0.2500, 0.7500]], dtype=torch.float64), tensor([1]))
    """

    module: Any
    name: str
    reading: Reading
    advance: Callable[[], None] = lambda: None
    views: int = 0
    _kind: Outputs | None = None
    _probabilities: list[Tensor] = field(default_factory=list)
    _targets: list[Tensor] = field(default_factory=list)

    def __call__(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take one batch.

        Args:
            batch: As the loader yields it, on the device of the module.
            batch_idx: Its number.
            dataloader_idx: Not used: there is one loader.

        Raises:
            ValueError: If inputs or classes are not where they are said to be, or the outputs are of no use.
            TypeError: If the module does not return a tensor.
            NonFiniteError: If a probability is NaN; it says which member and which batch.
        """
        inputs = self._part(batch, self.reading.inputs, "batch", "inputs")
        target = self._part(batch, self.reading.target, "batch", "target")
        if not isinstance(target, Tensor):
            raise ValueError(
                f"The target of a batch is a tensor of classes, but {self.reading.target!r} holds a "
                f"{type(target).__name__}. Name its place or key in the batch (target=, --target)."
            )
        try:
            self._probabilities.append(average_probabilities(self._of_views(inputs)))
        except NonFiniteError as error:
            raise NonFiniteError(
                f"Member {self.name} cannot be averaged: in batch {batch_idx}, {str(error)[0].lower()}{str(error)[1:]} "
                "Leave it out of the ensemble."
            ) from error
        self._targets.append(target.detach().cpu())
        self.advance()

    def probabilities(self) -> Tensor:
        """Of all batches, `[N, C]`, float64.

        Raises:
            ValueError: If there was no batch.
        """
        if not self._probabilities:
            raise ValueError(f"There is nothing to evaluate {self.name} on: the loader holds no batch.")
        return torch.cat(self._probabilities)

    def targets(self) -> Tensor:
        """Of all batches, `[N]`."""
        return torch.cat(self._targets)

    def _of_views(self, inputs: Any) -> Iterator[Tensor]:
        if self._kind is None:
            self._kind, outputs = self._decided(inputs)
        else:
            outputs = self._outputs(inputs)
        self.views = 0
        for output in outputs:
            self.views += 1
            yield class_probabilities(output, self._kind)

    def _decided(self, inputs: Any) -> tuple[Outputs, Iterator[Tensor]]:
        if self.reading.outputs != "auto":
            return self.reading.outputs, self._outputs(inputs)
        outputs = list(self._outputs(inputs))
        for output in outputs:
            class_probabilities(output)  # which says so if these are no class outputs at all
        return ("probabilities" if all(map(sum_to_one, outputs)) else "logits"), iter(outputs)

    def _outputs(self, inputs: Any) -> Iterator[Any]:
        for view in self.reading.views(inputs):
            returned = self.module(view) if self.reading.forward is None else self.reading.forward(self.module, view)
            if self.reading.output is None:
                yield returned
            else:
                yield self._part(returned, self.reading.output, "output", "output")

    def _part(self, whole: Any, key: Key, kind: str, option: str) -> Any:
        if isinstance(whole, Mapping):
            found = f"a mapping with the keys {', '.join(map(str, whole)) or 'none'}"
            present = key in whole
        elif isinstance(whole, list | tuple):
            found = f"a {type(whole).__name__} of {len(whole)}"
            present = isinstance(key, int) and -len(whole) <= key < len(whole)
        else:
            found, present = f"a {type(whole).__name__}", False
        if not present:
            raise ValueError(
                f"The {kind} of {self.name} has no {option} {key!r}: it is {found}. Name the key or place "
                f"({option}=, --{option})."
            )
        return whole[key]
