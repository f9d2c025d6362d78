"""Read off the Python stack where a call is made: within a checkpoint, or within a custom autograd function."""

import sys
from dataclasses import dataclass

import torch.autograd.function
import torch.utils.checkpoint
from torch import nn

_CHECKPOINT_FILE = torch.utils.checkpoint.__file__
_FUNCTION_FILE = torch.autograd.function.__file__
_MODULE_CALL = nn.Module._wrapped_call_impl.__code__


@dataclass(frozen=True)
class Surroundings:
    """What stands between a call and the module whose own code makes it.

    Args:
        checkpointed: Whether `torch.utils.checkpoint`, which repeats the call in the backward pass, outside the
            module's forward.
        in_autograd_function: Whether the forward of a `torch.autograd.Function`, whose backward is written by hand.
    """

    checkpointed: bool
    in_autograd_function: bool


def surroundings(*, module_calls: int) -> Surroundings:
    """Look up the stack from here to the module whose own code is running.

    Args:
        module_calls: How many calls of modules lie in between on the stack: none for a function, one where the
            running code belongs to an activation module and its caller is asked about.

    Returns:
        What was met on the way.
    """
    frame = sys._getframe(1)
    checkpointed = in_autograd_function = False
    inner_file = ""
    while frame.f_back is not None:
        frame = frame.f_back
        file = frame.f_code.co_filename
        if frame.f_code is _MODULE_CALL:
            if module_calls == 0:
                break
            module_calls -= 1
        elif module_calls == 0:
            checkpointed |= file == _CHECKPOINT_FILE
            # The reentrant checkpoint is an autograd function too, one that keeps the graph.
            in_autograd_function |= file == _FUNCTION_FILE and inner_file != _CHECKPOINT_FILE
        inner_file = file
    return Surroundings(checkpointed, in_autograd_function)


def is_checkpointed(*, module_calls: int) -> bool:
    """Whether the module whose own code is running has opened a checkpoint around the present call.

    Args:
        module_calls: As for `surroundings`, counted from the caller.

    Returns:
        The answer.
    """
    return surroundings(module_calls=module_calls).checkpointed
