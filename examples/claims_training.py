"""What the examples on the claims of Santurkar et al. (2018) share: train an arm and measure it at stages.

Arms differ in their norms alone: for a seed they start from equal weights and see equal batches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import bn_lightning as bnl
from bn_lightning.functional.covariate_shift import activation_shift
from bn_lightning.layers.noisy_batch_norm import NoisyBatchNorm
from bn_lightning.probes.covariate_shift import gradient_covariate_shift
from bn_lightning.probes.gradient_norms import gradient_norms
from bn_lightning.probes.loss_smoothness import loss_smoothness
from bn_lightning.probes.objective import Objective
from bn_lightning.probes.scale_invariance import scale_invariant_blocks

Batch = tuple[Tensor, Tensor]
ARMS: dict[str, str | Callable[[int], nn.Module] | None] = {
    "no norm": None,
    "batch norm": "batch",
    "noisy batch norm": NoisyBatchNorm,
}


def batches_of(data: Batch, size: int, seed: int) -> Iterator[Batch]:
    """Batches without end, each epoch in another order; all of the data where `size` is none smaller."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data[1]), generator=generator)
        for rows in order.split(size):
            if len(rows) == min(size, len(data[1])):
                yield data[0][rows], data[1][rows]


def with_norm(model: nn.Module, arm: str) -> nn.Module:
    """The arm's norm before each nonlinearity; nothing for the arm without."""
    norm = ARMS[arm]
    if norm is not None:
        bnl.insert_batch_norm(model, (model.example_input_array,), norm=norm)
    return model


class Run:
    """Trains one cell by gradient descent and takes measurements at stages, as rows of one table."""

    def __init__(
        self, model: nn.Module, *, lr: float, batches: Iterator[Batch], probe: list[Batch], multiples: Sequence[float]
    ) -> None:
        self.model, self.lr, self.batches, self.probe, self.multiples = model, lr, batches, probe, multiples
        self.optimizer = torch.optim.SGD([part for part in model.parameters() if part.requires_grad], lr=lr)
        self.rows: list[dict[str, object]] = []
        self.step = 0
        # Which weights a norm makes scale-free does not change in training, and is seen on a few samples.
        few = [(probe[0][0][:100], probe[0][1][:100])]
        self.blocks = scale_invariant_blocks(model, few)

    def train(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            self._optimize(next(self.batches))

    def _optimize(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        self.model.training_step(batch, 0).backward()
        self.optimizer.step()
        self.step += 1

    def note(self, stage: str, numbers: Mapping[str, float]) -> None:
        for quantity, value in numbers.items():
            self.rows.append({"stage": stage, "step": self.step, "quantity": quantity, "value": value})

    def measure(self, stage: str, *, small: list[Batch] | None = None, max_step_size: float | None = None) -> None:
        """Smoothness at the present point on the probe set, then one step and the shifts that it makes."""
        self.model.train()
        options = {"learning_rate": self.lr, "multiples": self.multiples, "max_step_size": max_step_size}
        found = loss_smoothness(self.model, self.probe, **options, normalised=self.blocks)
        self.note(stage, _named(found))
        if small is not None:
            fewer = loss_smoothness(self.model, small, **options, normalised=False)
            self.note(stage, {"effective beta, small probe": fewer.path.beta})
        norms = gradient_norms(self.model, self.probe)
        self.note(stage, {"gradient norm, decades per layer": norms.decades_per_layer()})
        batch = next(self.batches)
        before, received = {name: part.detach().clone() for name, part in self.model.named_parameters()}, self._inputs()
        self._optimize(batch)
        self.step -= 1  # the measurements belong to the point before
        shifts = gradient_covariate_shift(self.model, [batch], before)
        finite = pd.DataFrame([layer.numbers() for layer in shifts]).replace([np.inf, -np.inf], np.nan)
        for name in ("", "_relative", "_cosine"):
            self.note(stage, {f"gradient shift{name.replace('_', ', ')}": finite[f"gradient_shift{name}"].mean()})
        moved = [activation_shift(one, other).numbers() for one, other in zip(received, self._inputs(), strict=True)]
        for quantity, name in (("W1", "wasserstein"), ("W1 / std", "wasserstein_normalised")):
            if moved:
                distance = float(np.mean([numbers[name] for numbers in moved]))
                self.note(stage, {f"activation shift {quantity}": distance})
        self.step += 1

    def _inputs(self) -> list[Tensor]:
        """What each nonlinearity receives on the probe set now, noise included; at most 2,000 values a unit."""
        received: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = args[0].detach().movedim(1, -1).flatten(0, -2)
            received.append(values[:: -(-len(values) // 2000)].clone())

        nonlinear = [part for part in self.model.modules() if isinstance(part, nn.Sigmoid | nn.ReLU)]
        handles = [part.register_forward_pre_hook(note) for part in nonlinear]
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        try:
            with torch.no_grad():
                self.model(self.probe[0][0])
        finally:
            for handle in handles:
                handle.remove()
            for name, value in self.model.named_buffers():
                value.copy_(buffers[name])
        return received

    def probe_loss(self) -> float:
        """Loss on the probe set in training mode, by batch statistics that the running ones do not follow."""
        objective = Objective(self.model, self.probe)
        with objective.guarded():
            return objective.loss()

    def evaluate(self, stage: str, train: Iterable[Batch], test: Batch) -> None:
        """Accuracy on the test set, with population statistics of the training batches given."""
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.model.modules()):
            bnl.recalibrate_batch_norm(self.model, list(train), warn_drift=None)
        self.model.eval()
        with torch.no_grad():
            hits = [self.model(x).argmax(1) == y for x, y in zip(test[0].split(500), test[1].split(500), strict=True)]
        self.model.train()
        self.note(stage, {"test accuracy": float(torch.cat(hits).double().mean())})

    def table(self, arm: str, seed: int, **factors: object) -> pd.DataFrame:
        return pd.DataFrame(self.rows).assign(arm=arm, seed=seed, **factors)


def _named(found) -> dict[str, float]:
    path = found.path
    return {
        "loss": found.loss,
        "loss range": path.loss_range,
        "gradient change, largest": path.predictiveness_max,
        # Over ‖g‖: gradients of arms differ in length, and a short one changes little.
        "gradient change / gradient": path.predictiveness_max / found.gradient_norm,
        "effective beta": path.beta,
        "effective beta, normalised": found.beta_normalised,
    }
