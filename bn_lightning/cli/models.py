"""Commands about one model or checkpoint that change no weight: plan, recalibrate."""

import sys
from json import dumps
from typing import TYPE_CHECKING, Any, Literal

from bn_lightning.cli.saying import DONE, say

if TYPE_CHECKING:  # jsonargparse follows these when it builds the command that was asked for, and only then
    from bn_lightning.analysis.factories import DataFactory, ModuleFactory


def plan(
    *,
    model: "ModuleFactory",
    data: "DataFactory | None" = None,
    placement: str = "before",
    norm: str = "batch",
    norm_options: dict[str, Any] | None = None,
    site: str = "nonlinearity",
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    inputs: bool = False,
    json: bool = False,
) -> int:
    """Show where batch norm would be inserted into a model, and why not elsewhere; trains nothing.

    Args:
        model: Import path of a LightningModule; its arguments follow as --model.lr=0.1.
        data: Import path of a LightningDataModule, to trace a module without example_input_array on a batch.
        placement: "before" or "after" the nonlinearity.
        norm: Name of the norm: batch, layer, group, instance or rms.
        norm_options: Arguments of the norm, as --norm_options.momentum=0.01.
        site: "nonlinearity", or "affine" for the layers that feed it through residual adds.
        include: Patterns of site names that alone get norms.
        exclude: Patterns of site names to leave as they are.
        inputs: Put norms in front of the layers that read the raw inputs too.
        json: Print the plan as JSON, which `InsertionPlan.from_dict` reads, in place of the table.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.console import show
    from bn_lightning.analysis.planning import plan_of_module

    found = plan_of_module(
        model(),
        None if data is None else data(),
        placement=placement,
        norm=norm,
        norm_options=norm_options,
        site=site,
        include=include,
        exclude=exclude or (),
        inputs=inputs,
    )
    if json:
        say(dumps(found.to_dict(), indent=2))
    else:
        show(found.table())
    return DONE


def recalibrate(
    checkpoint: str,
    *,
    model: "ModuleFactory",
    data: "DataFactory",
    out: str | None = None,
    estimator: Literal["pooled", "paper", "fixed_point", "ema"] = "pooled",
    num_batches: int | None = None,
    regroup: int | None = None,
    entry: Literal["training_step", "forward"] = "training_step",
    trust: bool = False,
) -> int:
    """Write a new checkpoint whose batch norms hold the population statistics of the data; no weight moves.

    Args:
        checkpoint: File written by Lightning; it is kept.
        model: Import path of its LightningModule; its arguments follow as --model.lr=0.1.
        data: Import path of a LightningDataModule; another domain's adapts the model to that domain.
        out: The new file; by default <name>.recalibrated.ckpt beside the old one.
        estimator: What to estimate: pooled, paper, fixed_point or ema.
        num_batches: Training batches to use, in place of all.
        regroup: Merge small batches up to so many samples.
        entry: What is run on a batch: training_step, or forward, which needs no labels.
        trust: Read checkpoints with pickled objects too, which can run code.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.console import as_table, show
    from bn_lightning.analysis.recalibrate_checkpoint import recalibrate_checkpoint

    done = recalibrate_checkpoint(
        checkpoint,
        model=model,
        data=data,
        out=out,
        estimator=estimator,
        num_batches=num_batches,
        regroup=regroup,
        entry=entry,
        progress=sys.stderr.isatty(),
        trust=trust,
    )
    show(as_table(done.report.table(), f"{done.report.batches} batches, {done.report.estimator}"))
    for name, before in done.before.items():
        say(f"{name}: {before:.4g} before, {done.after[name]:.4g} after")
    say(f"Checkpoint: {done.path}")
    return DONE
