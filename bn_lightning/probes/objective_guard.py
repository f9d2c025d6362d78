"""A model whose parameters stand elsewhere for a while, and that is as it was afterwards."""

import ctypes
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bn_lightning.surgery.sandbox import IN_SANDBOX

_DATA: Any = Tensor.data


class Guard:
    """Moves the parameters of one model, and gives each evaluation the same buffers and random numbers.

    Made by `guarded_model`. Values are moved by pointing a parameter at other memory: the parameter stays the same
    object, so shared ones, parametrizations, recurrent cells and lists of parameters kept by the model all see the
    point, also when an activation is computed again in a backward pass (checkpointing).

    Args:
        parameters: Those that can be moved, by path.
        slots: Each dictionary of buffers with a name in it and the buffer there.

    Attributes:
        closed: Whether everything has been put back for good.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], slots: Sequence[tuple[dict[str, Tensor | None], str, Tensor]]
    ) -> None:
        self._parameters = parameters
        self._home = {name: part.data for name, part in parameters.items()}
        self._slots = slots
        # Of the values too: a step may reach a buffer past the module, by a list that holds it.
        self._buffers = {id(buffer): buffer.detach().clone() for _, _, buffer in slots}
        self._versions = {id(buffer): _version(buffer) for _, _, buffer in slots}
        self._scratch: dict[int, Tensor] = {}
        self.closed = False
        self._random = RandomStates()

    @contextmanager
    def at(self, point: Mapping[str, Tensor], names: Collection[str] | None = None) -> Iterator[None]:
        """Move to a point, and back afterwards.

        Args:
            point: Values by path; parameters that are missing stay where they are.
            names: Paths of the parameters that require a gradient meanwhile; None leaves that as it is. It saves the
                graph of the layers before the first of these.

        Yields:
            Nothing.

        Raises:
            ValueError: If a value has another shape than its parameter.
        """
        if not point and (names is None or len(names) == len(self._parameters)):
            torch.clear_autocast_cache()
            yield
            return
        others = []
        if names is not None and len(names) < len(self._parameters):
            others = [part for name, part in self._parameters.items() if name not in names]
        values = {name: self._fitting(name, value) for name, value in point.items()}
        try:
            for part in others:
                part.requires_grad_(False)
            for name, value in values.items():
                self._parameters[name].data = value
            # Autocast remembers the low-precision copy of a parameter by its object, whatever it points at.
            torch.clear_autocast_cache()
            yield
        finally:
            # An iteration that an exception left half way may be cleaned up long after the guard was.
            if not self.closed:
                _all(_DATA.__set__, [self._parameters[name] for name in point], [self._home[name] for name in point])
                for part in others:
                    part.requires_grad_(True)
                torch.clear_autocast_cache()

    def _fitting(self, name: str, value: Tensor) -> Tensor:
        home = self._home[name]
        if value.shape != home.shape:
            raise ValueError(
                f"The parameter {name!r} has shape {tuple(home.shape)} and cannot be moved to a value of shape "
                f"{tuple(value.shape)}; take the point from this model as it is now."
            )
        return value if value.dtype == home.dtype and value.device == home.device else value.to(home)

    def begin(self, *, keep_graphs: bool = False) -> None:
        """Give the model copies of its buffers as they were.

        Args:
            keep_graphs: Whether graphs that hold the copies of the last time are needed still.
        """
        if keep_graphs or not self._scratch:
            self._scratch = {key: buffer.clone() for key, buffer in self._buffers.items()}
        else:
            with torch.no_grad():
                torch._foreach_copy_(list(self._scratch.values()), list(self._buffers.values()))
        for owner, name, buffer in self._slots:
            owner[name] = self._scratch[id(buffer)]

    def rewind(self) -> None:
        """Set global random states back to where the guard began."""
        self._random.rewind()

    def refill(self) -> None:
        """Give those of the model's own buffers that were written to their values back."""
        with torch.no_grad():
            for _, _, buffer in self._slots:
                if _version(buffer) != self._versions[id(buffer)]:
                    buffer.copy_(self._buffers[id(buffer)])


class RandomStates:
    """The states of torch's, NumPy's and Python's global generators at one moment.

    Example:
        >>> states = RandomStates()
        >>> first = torch.rand(1)
        >>> states.rewind()
        >>> torch.equal(torch.rand(1), first)
        True
    """

    def __init__(self) -> None:
        self._torch = torch.get_rng_state()
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._cuda = torch.cuda.get_rng_state_all() if cuda else None
        self._numpy: Any = np.random.get_state()  # noqa: NPY002 - the legacy global one is what user code draws from
        self._numpy_bytes = _numpy_bytes()
        self._python = random.getstate()

    def rewind(self) -> None:
        """Go back, for another run of the same code."""
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        # A normal number that NumPy keeps for later is used up without a change of the bytes.
        if self._numpy_bytes is None or self._numpy[3] or _numpy_bytes() != self._numpy_bytes:
            np.random.set_state(self._numpy)  # noqa: NPY002 - see above
        random.setstate(self._python)


def _numpy_bytes() -> bytes | None:
    # To get or set the state takes NumPy as long as a small layer its forward; all but the cached normal is in here.
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined] # numpy's stubs leave it out
    return ctypes.string_at(generator.ctypes.state_address, 2500) if type(generator) is np.random.MT19937 else None


@contextmanager
def guarded_model(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[Guard]:
    """Let a model be evaluated at other parameters, without any lasting effect on it or on the global generators.

    As `bn_lightning.surgery.sandbox.sandbox`, at a fraction of its time, and with parameters that can be moved: on
    exit, also by an exception or Ctrl-C, the memory that each parameter points at, gradients, flags that require
    them, buffers, modes and random states are as they were. Buffers are replaced for a while; one that the model
    writes to all the same, by a list that holds it, gets its values back. Hooks on parameters' gradients do not run:
    what is measured is the gradient of the loss.

    Args:
        model: The module.
        parameters: Those that will be moved, by path.

    Yields:
        What moves them.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> here = model.weight.item()
        >>> with guarded_model(model, {"weight": model.weight}) as guard:
        ...     with guard.at({"weight": torch.tensor([[7.0]])}):
        ...         model(torch.ones(1, 1)).item()
        7.0
        >>> model.weight.item() == here
        True
    """
    modules = list(model.modules())
    found = {id(part): part for module in modules for part in module._parameters.values() if part is not None}
    everything = list(found.values())
    slots = [
        (module._buffers, name, buffer)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    guard = Guard(parameters, slots)
    hooked = [part for part in everything if part._backward_hooks]
    with ExitStack() as stack:
        stack.callback(IN_SANDBOX.reset, IN_SANDBOX.set(True))
        stack.callback(guard.rewind)
        stack.callback(_set_modes, modules, [module.training for module in modules])
        if slots:
            stack.callback(guard.refill)
            stack.callback(_all, dict.__setitem__, *zip(*slots, strict=True))
        stack.callback(_all, setattr, hooked, repeat("_backward_hooks"), [part._backward_hooks for part in hooked])
        for name in ("grad", "requires_grad"):
            stack.callback(_all, setattr, everything, repeat(name), [getattr(part, name) for part in everything])
        stack.callback(torch.clear_autocast_cache)
        stack.callback(setattr, guard, "closed", True)
        # First of all to come back, and of all parameters: a loss may move a frozen copy by assigning to its data.
        stack.callback(_all, _DATA.__set__, everything, [part.data for part in everything])
        for part in hooked:
            part._backward_hooks = None
        for part in everything:
            part.grad = None
        yield guard


def _version(tensor: Tensor) -> int | None:
    # Those made in inference mode count no writes, and cannot be written to outside of it.
    return None if tensor.is_inference() else tensor._version


def _all(function: Callable[..., object], *arguments: Any) -> None:
    # Where the function is C too, no Python runs in between that Ctrl-C could interrupt half way.
    deque(map(function, *arguments), maxlen=0)


def _set_modes(modules: Sequence[nn.Module], modes: Sequence[bool]) -> None:
    for module, training in zip(modules, modes, strict=True):
        if module.training != training:
            module.training = training
