"""Average the class probabilities of several checkpoints, over several views of the data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from bn_lightning.analysis.checkpoint_file import read_checkpoint
from bn_lightning.analysis.checkpoint_loading import CheckpointLoader
from bn_lightning.analysis.crops import Views, views_of
from bn_lightning.analysis.ensemble import Outputs, average_probabilities, top_k_error
from bn_lightning.analysis.ensemble_member import Key, MemberStep, Reading
from bn_lightning.analysis.measure_progress import measure_progress
from bn_lightning.analysis.results import results_table, write_table
from bn_lightning.analysis.split_data import SplitData
from bn_lightning.analysis.training import namespace_of_module
from bn_lightning.callbacks.offline import LoadOnceBuilt
from bn_lightning.surgery.sandbox import preserve_random_state

STUDY = "ensemble"
TOP = (1, 5)


@dataclass(frozen=True)
class Ensemble:
    """What an ensemble and each of its members gets wrong.

    Attributes:
        table: The long table: study, arm, seed, step, layer, quantity, value. Arms are the members and "ensemble";
            quantities are `top_1_error` and, of more than five classes, `top_5_error`, between 0 and 1. The step of the
            ensemble is the last of its members'.
        members: Names of the members, in the order given.
        probabilities: Of the ensemble, `[N, C]`, float64.
        target: `[N]`, the classes.
        views: Views that were averaged of each batch.
        out: The table's file.
    """

    table: pd.DataFrame
    members: tuple[str, ...]
    probabilities: Tensor
    target: Tensor
    views: int
    out: Path


# A module that is made draws its first weights.
@preserve_random_state()
def ensemble_checkpoints(
    checkpoints: Sequence[str | Path],
    *,
    model: Callable[[], Any],
    data: Callable[[], Any],
    split: Literal["test", "val"] = "test",
    views: str | Views = "whole",
    size: int | None = None,
    outputs: Outputs = "auto",
    inputs: Key = 0,
    target: Key = 1,
    output: Key | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    trust: bool = False,
) -> Ensemble:
    r"""Evaluate checkpoints alone and together: the arithmetic mean of their class probabilities.

    $\bar p = \frac{1}{MV} \sum_{m, v} p_{m, v}$ over members and views, in float64 (Ioffe & Szegedy 2015, section
    4.2.3, which averages six members). Modules run in evaluation mode and without gradients, one at a time; no file but
    the table is written. Every member sees the batches of the same random state.

    Args:
        checkpoints: Files written by Lightning, with or without inserted norms.
        model: Makes the LightningModule that all of them are checkpoints of.
        data: Makes the LightningDataModule.
        split: Which of its loaders is read: "test" or "val".
        views: "whole", "centre", "5-crop", "10-crop", "144-crop", or a function from a batch of inputs to its views.
        size: Side of a view by name, in pixels; by default the shorter side of the images.
        outputs: What the module returns: "logits", "probabilities", or "auto", which sees whether rows sum to 1.
        inputs: Place or key of the inputs in a batch.
        target: Place or key of the classes in a batch, `[N]`, whole numbers.
        output: Place or key of the class outputs, `[N, C]`, in what the module returns, if that is no tensor.
        forward: ``forward(module, inputs)`` runs the module in place of ``module(inputs)``.
        out: File of the table; by default `ensemble.csv` beside the first checkpoint. One that is there is replaced.
        progress: Show a progress bar.
        trust: Whether to read checkpoints with pickled objects, which can run code.

    Returns:
        The errors, and the ensemble's probabilities.

    Raises:
        RunFolderError: If a checkpoint cannot be read.
        PlanMismatchError: If one is of another model.
        UnknownNameError: If there is no such split, set of views or kind of outputs.
        TypeError: If `model` makes no LightningModule, `data` no LightningDataModule, or the module returns no tensor.
        ValueError: If there is no checkpoint, or one twice, or members disagree in samples or classes, or batches or
            outputs are not of the form described.
        NonFiniteError: If a member's probabilities are NaN; it says which member's.
        KeyboardInterrupt: On Ctrl-C.
    """
    sources = _distinct(checkpoints)
    reading = Reading(inputs, target, views_of(views, size=size), forward, output, outputs)
    members = _Members(sources, _names(sources), model, data, split, reading, progress, trust)
    averaged = average_probabilities(members)
    errors = [*members.errors, errors_of(averaged, members.target)]
    arms, steps = [*members.names, "ensemble"], [*members.steps, max(members.steps)]
    table = results_table(
        (STUDY, arm, 0, step, "", quantity, value)
        for arm, step, found in zip(arms, steps, errors, strict=True)
        for quantity, value in found.items()
    )
    path = sources[0].with_name("ensemble.csv") if out is None else Path(out)
    write_table(path, table)
    return Ensemble(table, members.names, averaged, members.target, members.views, path)


def errors_of(probabilities: Tensor, target: Tensor) -> dict[str, float]:
    """Top-1 error and, where there are more than five classes, top-5 error.

    Args:
        probabilities: `[N, C]`.
        target: `[N]`, the classes.

    Returns:
        The errors, between 0 and 1, by quantity.

    Raises:
        ValueError: If the target is not of that form.

    Example:
        >>> errors_of(torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]), torch.tensor([0, 1]))
        {'top_1_error': 0.5}
    """
    return {f"top_{k}_error": top_k_error(probabilities, target, k) for k in TOP if k < probabilities.shape[1]}


@dataclass
class _Members:
    """The probabilities of one member after the other, each read and run only when it is asked for."""

    sources: Sequence[Path]
    names: tuple[str, ...]
    model: Callable[[], Any]
    data: Callable[[], Any]
    split: str
    reading: Reading
    progress: bool
    trust: bool
    steps: list[int] = field(default_factory=list)
    errors: list[dict[str, float]] = field(default_factory=list)
    target: Tensor = field(default_factory=lambda: torch.empty(0))
    classes: int = 0
    views: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        run: SplitData | None = None
        for source, name in zip(self.sources, self.names, strict=True):
            saved = read_checkpoint(source, trust=self.trust)
            # Read off now: loading may change what was saved.
            step = max(0, int(saved.get("global_step", 0)))
            module = self.model()
            namespace = namespace_of_module(module)  # which says so if it is no LightningModule
            run = run or SplitData(namespace, self.data(), self.split)
            member = MemberStep(module, str(source), self.reading)
            with measure_progress({name: run.batches}, shown=self.progress) as advance:
                member.advance = partial(advance, name)
                run.predict(module, member, [LoadOnceBuilt(CheckpointLoader(saved, source))])
            probabilities, target = member.probabilities(), member.targets()
            if self.steps:
                self._refuse_other(source, probabilities, target)
            self.target, self.classes, self.views = target, probabilities.shape[1], member.views
            self.errors.append(errors_of(probabilities, target))
            self.steps.append(step)
            yield probabilities

    def _refuse_other(self, source: Path, probabilities: Tensor, target: Tensor) -> None:
        classes = probabilities.shape[1]
        if classes != self.classes:
            raise ValueError(
                f"Members of an ensemble tell the same classes apart, but {source} has {classes} and {self.sources[0]} "
                f"has {self.classes}. Leave one of them out."
            )
        if not torch.equal(target, self.target):
            raise ValueError(
                f"{source} was given other samples, or another order of them, than {self.sources[0]}. Let the "
                f"{self.split}_dataloader give the same each time it is read: shuffle=False, no generator of its own."
            )


def _distinct(checkpoints: Sequence[str | Path]) -> list[Path]:
    if isinstance(checkpoints, str | Path) or not checkpoints:
        raise ValueError("An ensemble is made of a list of checkpoints, of one at least; name their files.")
    sources = [Path(checkpoint) for checkpoint in checkpoints]
    for place, source in enumerate(sources):
        if source.resolve() in {other.resolve() for other in sources[:place]}:
            raise ValueError(f"{source} is named twice, and would count twice; name each checkpoint once.")
    return sources


def _names(sources: Sequence[Path]) -> tuple[str, ...]:
    """As short as tells them apart: of seed_0/last.ckpt and seed_1/last.ckpt, the paths."""
    stems = tuple(source.stem for source in sources)
    unique = len({*stems, "ensemble"}) > len(stems)
    return stems if unique else tuple(str(source) for source in sources)
