"""The command ensemble: several checkpoints, alone and averaged."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from bn_lightning.cli.saying import DONE, say

if TYPE_CHECKING:  # jsonargparse follows these when it builds the command that was asked for, and only then
    from bn_lightning.analysis.factories import DataFactory, ModuleFactory


def ensemble(
    checkpoints: list[str],
    *,
    model: "ModuleFactory",
    data: "DataFactory",
    split: Literal["test", "val"] = "test",
    views: str = "whole",
    own_views: Callable[[Any], Any] | None = None,
    size: int | None = None,
    outputs: Literal["auto", "logits", "probabilities"] = "auto",
    inputs: int | str = 0,
    target: int | str = 1,
    output: int | str | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    out: str | None = None,
    trust: bool = False,
) -> int:
    """Average the class probabilities of several checkpoints and several crops; no checkpoint changes.

    Args:
        checkpoints: Files written by Lightning, with or without inserted norms.
        model: Import path of the LightningModule of all of them; its arguments follow as --model.lr=0.1.
        data: Import path of a LightningDataModule.
        split: Which of its loaders is read: test or val.
        views: What is averaged of each image: whole, centre, 5-crop, 10-crop or 144-crop.
        own_views: Import path of a function from a batch of inputs to its views, in place of these.
        size: Side of a crop in pixels; by default the shorter side of the images.
        outputs: What the module returns: logits, probabilities, or auto, which sees whether rows sum to 1.
        inputs: Place or key of the inputs in a batch.
        target: Place or key of the classes in a batch.
        output: Place or key of the class outputs in what the module returns, if that is no tensor.
        forward: Import path of a function of module and inputs that returns the class outputs.
        out: File of the table; by default ensemble.csv beside the first checkpoint.
        trust: Read checkpoints with pickled objects too, which can run code.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.ensemble_checkpoints import ensemble_checkpoints
    from bn_lightning.analysis.ensemble_console import show_ensemble, summary_of

    done = ensemble_checkpoints(
        checkpoints,
        model=model,
        data=data,
        split=split,
        views=views if own_views is None else own_views,
        size=size,
        outputs=outputs,
        inputs=inputs,
        target=target,
        output=output,
        forward=forward,
        out=out,
        progress=sys.stderr.isatty(),
        trust=trust,
    )
    show_ensemble(done)
    for line in summary_of(done.table, classes=done.probabilities.shape[1]):
        say(line)
    say(f"Table: {done.out}")
    return DONE
