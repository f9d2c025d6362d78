"""The command `bn-lightning`: typed functions, whose arguments jsonargparse turns into flags.

Exit status: 0 done, 1 some cells failed (they are named), 2 bad usage, 130 interrupted.
"""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from json import dumps
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # jsonargparse follows these when it builds the command that was asked for, and only then
    from bn_lightning.analysis.factories import DataFactory, ModuleFactory
    from bn_lightning.analysis.runner import Run
    from bn_lightning.analysis.study import Study

DONE, SOME_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def demo(
    *,
    data_dir: str | None = None,
    target: float | None = None,
    max_steps: int | None = None,
    seeds: int = 6,
    jobs: int = 2,
    engine: str = "loky",
    out: str = "bn_lightning_runs",
    redo: bool = False,
) -> int:
    """Train one network with batch norm nowhere, before and after its nonlinearities, and compare.

    The network is the one of the paper's first experiment, on real digits. What is finished is not trained again.

    Args:
        data_dir: Folder with mnist.npz, or to download MNIST into; the embedded digits if not given.
        target: Test accuracy to time, in place of the one fixed beforehand.
        max_steps: Optimizer steps of a run.
        seeds: Number of seeds.
        jobs: Number of processes.
        engine: How processes are run, a joblib backend.
        out: Folder for results.
        redo: Train finished cells again.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.prepare import prepare_study

    study = prepare_study("placement", target=target, max_steps=max_steps, data_dir=data_dir)
    return _run(study, seeds=seeds, jobs=jobs, engine=engine, out=out, redo=redo)


def compare(
    study: str,
    *,
    model: "ModuleFactory | None" = None,
    data: "DataFactory | None" = None,
    monitor: str | None = None,
    mode: Literal["max", "min"] = "max",
    target: float | None = None,
    max_steps: int | None = None,
    eval_every: int | None = None,
    seeds: int = 6,
    jobs: int = 2,
    engine: str = "loky",
    out: str = "bn_lightning_runs",
    data_dir: str | None = None,
    redo: bool = False,
) -> int:
    """Run a study, on digits or on your own model and data.

    Args:
        study: Name of the study.
        model: Import path of a LightningModule; its arguments follow as --model.lr=0.1.
        data: Import path of a LightningDataModule; its arguments follow as --data.batch_size=32.
        monitor: Validation metric that your module logs.
        mode: Whether higher or lower is better.
        target: Value of the metric to time.
        max_steps: Optimizer steps of a run.
        eval_every: Optimizer steps between evaluations.
        seeds: Number of seeds.
        jobs: Number of processes.
        engine: How processes are run, a joblib backend.
        out: Folder for results.
        data_dir: Folder with MNIST, in place of the embedded digits.
        redo: Train finished cells again.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.prepare import prepare_study

    chosen = prepare_study(
        study,
        model=model,
        data=data,
        monitor=monitor,
        mode=mode,
        target=target,
        max_steps=max_steps,
        eval_every=eval_every,
        data_dir=data_dir,
    )
    return _run(chosen, seeds=seeds, jobs=jobs, engine=engine, out=out, redo=redo)


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
        _say(dumps(found.to_dict(), indent=2))
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
        _say(f"{name}: {before:.4g} before, {done.after[name]:.4g} after")
    _say(f"Checkpoint: {done.path}")
    return DONE


def report(folder: str) -> int:
    """Write the report of a run folder again, from its files alone.

    Args:
        folder: The folder that was given as --out.

    Returns:
        Exit status.
    """
    from bn_lightning.analysis.console import show_comparison
    from bn_lightning.analysis.publish import publish_folder

    published = publish_folder(folder)
    show_comparison(published.summary, published.comparisons)
    _say(f"Report: {published.path}")
    return DONE


COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "plan": plan,
    "compare": compare,
    "recalibrate": recalibrate,
    "report": report,
}


def _run(study: "Study", *, seeds: int, jobs: int, engine: str, out: str, redo: bool) -> int:
    from bn_lightning.analysis.console import show_comparison
    from bn_lightning.analysis.publish import publish
    from bn_lightning.analysis.runner import CellsFailedWarning, execute

    with warnings.catch_warnings():
        # The failed cells are named below.
        warnings.simplefilter("ignore", CellsFailedWarning)
        run = execute(study, seeds=seeds, jobs=jobs, engine=engine, out=out, redo=redo)
    _say(f"{run.trained} cells trained, {run.skipped} were finished already.")
    if not run.results.empty:
        published = publish(run.out, study=run.study, results=run.results, cells=run.cells)
        show_comparison(published.summary, published.comparisons)
        _say(f"Report:  {published.path}\nFigures: {run.out / 'figures'}\n")
        _say(f"tensorboard --logdir {_quoted(run.out)}")
    return _say_what_failed(run)


def _say_what_failed(run: "Run") -> int:
    for cell in run.failures:
        place = run.out / cell.arm / f"seed_{cell.seed}" / "cell.json"
        print(f"failed: {cell.arm}, seed {cell.seed}: {cell.error} ({place})", file=sys.stderr)
    return SOME_FAILED if run.failures else DONE


def _say(text: str) -> None:
    print(text)


def _quoted(path: Any) -> str:
    import shlex

    return shlex.quote(str(path))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its arguments; by default those of the process.

    Returns:
        Exit status: 0 done, 1 some cells failed, 2 bad usage, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        # A command, unlike `python -m`, does not look for --model=my.LitNet in the folder it is called from.
        sys.path.insert(0, os.getcwd())
    with _one_line_warnings():
        try:
            command, options = _parse(arguments)
            return COMMANDS[command](**options)
        except KeyboardInterrupt as error:
            print(f"\n{error or 'Interrupted.'}", file=sys.stderr)
            return INTERRUPTED
        except SystemExit as error:  # how the parser ends, after its help or its message
            return error.code if isinstance(error.code, int) else BAD_USAGE
        except Exception as error:
            if not _is_bad_usage(error):
                raise
            print(f"bn-lightning: error: {error}", file=sys.stderr)
            return BAD_USAGE


def _parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    from jsonargparse import ArgumentParser

    from bn_lightning._version import __version__

    parser = ArgumentParser(
        prog="bn-lightning",
        version=__version__,
        formatter_class=_dashed_formatter(),
        description="Insert batch norm into PyTorch Lightning models, and compare training with and without it.",
    )
    commands = parser.add_subcommands(required=True, dest="command")
    asked = next((argument for argument in arguments if argument in COMMANDS), None)
    for name, function in COMMANDS.items():
        words = str(function.__doc__).splitlines()
        own = ArgumentParser(description=words[0])
        if name == asked:
            # The others' types would import Lightning, which takes seconds, for nothing.
            added = own.add_function_arguments(function, as_positional=True, skip={"redo"})
            if added and "redo" in inspect.signature(function).parameters:
                own.add_argument("--redo", action="store_true", help="Train finished cells again.")
        commands.add_subcommand(name, own, help=words[0])
    parsed = parser.parse_args([_with_underscores(argument) for argument in arguments])
    # Its name before jsonargparse 4.49 is deprecated since.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    made = instantiate(parsed)
    return str(made.command), dict(made[made.command].as_dict())


def _with_underscores(argument: str) -> str:
    """Turn --max-steps into the --max_steps that the parser made of the function's argument."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument[2:].partition("=")
    head, dot, rest = flag.partition(".")
    return "--" + head.replace("-", "_") + dot + rest + equals + value


def _dashed_formatter() -> type:
    """A help formatter that shows --max-steps, as is usual."""
    from jsonargparse import DefaultHelpFormatter

    class DashedHelpFormatter(DefaultHelpFormatter):
        def format_help(self) -> str:
            return re.sub(r"--[a-z_]+", lambda found: found.group().replace("_", "-"), super().format_help())

    return DashedHelpFormatter


def _is_bad_usage(error: Exception) -> bool:
    """Whether an error tells the user what to ask for instead, as those of this package do."""
    if isinstance(error, OSError) and error.filename is not None:
        return True  # a folder that cannot be written to, a file that cannot be read
    if not isinstance(error, ValueError | TypeError | RuntimeError):
        return type(error).__name__ == "MisconfigurationException"
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__", "")).startswith("bn_lightning.")


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"bn-lightning: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
