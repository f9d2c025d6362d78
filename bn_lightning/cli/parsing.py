"""Turns typed functions into commands: jsonargparse reads their signatures and docstrings."""

import inspect
import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any


def parse(arguments: list[str], functions: Mapping[str, Callable[..., int]]) -> tuple[str, dict[str, Any]]:
    """Read the name of a command and the arguments of its function.

    Args:
        arguments: As typed.
        functions: The functions by the name of the command.

    Returns:
        The name, and the function's keyword arguments.
    """
    from jsonargparse import ArgumentParser

    from bn_lightning._version import __version__

    parser = ArgumentParser(
        prog="bn-lightning",
        version=__version__,
        formatter_class=_dashed_formatter(),
        description="Insert batch norm into PyTorch Lightning models, and compare training with and without it.",
    )
    commands = parser.add_subcommands(required=True, dest="command")
    asked = next((argument for argument in arguments if argument in functions), None)
    for name, function in functions.items():
        words = str(function.__doc__).splitlines()
        own = ArgumentParser(description=words[0])
        if name == asked:
            # The others' types would import Lightning, which takes seconds, for nothing.
            parameters = inspect.signature(function).parameters
            if "checkpoints" in parameters:
                # Of the function's own type it would be one argument, a list in brackets.
                own.add_argument("checkpoints", nargs="+", type=str, help="Files written by Lightning.")
            added = own.add_function_arguments(function, as_positional=True, skip={"redo", "checkpoints", "typed"})
            if added and "redo" in parameters:
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
    # No argument of a function can be called `and`.
    name = head.replace("-", "_") + "_" * keyword.iskeyword(head)
    return "--" + name + dot + rest + equals + value


def _dashed_formatter() -> type:
    """A help formatter that shows --max-steps, as is usual."""
    from jsonargparse import DefaultHelpFormatter

    class DashedHelpFormatter(DefaultHelpFormatter):
        def format_help(self) -> str:
            return re.sub(r"--[a-z_]+", _as_typed, super().format_help())

    return DashedHelpFormatter


def _as_typed(found: re.Match[str]) -> str:
    return found.group().rstrip("_").replace("_", "-")
