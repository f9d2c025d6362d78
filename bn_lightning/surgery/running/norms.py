"""The container that holds inserted norms, and hands each of them its input in the form it expects.

Norms are plain modules (`nn.BatchNorm1d` and its kin) under `<owner>.bn_lightning_norm.<n>`, so that
SyncBatchNorm conversion, checkpoints and other tools treat them like any other. What each reduces is said in
`norm_kinds`; whatever the place of the channels, a norm receives one of three arrangements:

- "rows": `[N, C, ...]` as it is, and where the channels are not on axis 1, as in `[B, T, C]`, all other axes
  flattened into one: `[B·T, C]`. For batch norms and for factories.
- "last": the channels on the last axis, for norms over the channels of one position.
- "samples": `[N, C, ...]` with the channels moved to axis 1, for norms over the positions of one sample.
"""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.errors import InsertionWarning
from bn_lightning.surgery.plan import CUSTOM_NORM, Site
from bn_lightning.surgery.running.norm_modules import cancels_bias, channels_second
from bn_lightning.surgery.running.recompute import graph_task, held_buffers
from bn_lightning.surgery.running.small_batches import FEW, describe_two, normalize_few, values_per_statistic
from bn_lightning.surgery.running.symbolic_tracing import refuse_as_root, untraceable
from bn_lightning.surgery.sandbox import IN_SANDBOX

Arrangement = Literal["rows", "last", "samples"]


@dataclass(frozen=True)
class Slot:
    """Where one norm of a container acts.

    Args:
        site: Name of the site.
        channels: Number of channels.
        channel_dim: Channel axis of the pre-activation, counted from the end.
        ndim: Number of axes that the norm expects; of the pre-activation, where it is arranged as "last".
        arrangement: The form the norm expects, see above.
        direct: With so many axes the norm takes the tensor as it comes; 0 where it never does.
        flattens: Whether the norm takes `[N, C]`, and all axes but the last are flattened into N.
        few: Up to so many elements a look at the number of values is due.
        shared: Whether the activation module is called several times, so that the call must be told apart.
        activation: Path of the activation module; empty for a function or a layer.
        owner: Path of the calling module.
        call_index: Number of the call there.
        after: Whether it acts on the output of the nonlinearity.
        is_custom: Whether a factory made the norm.
    """

    site: str
    channels: int
    channel_dim: int
    ndim: int
    arrangement: Arrangement
    direct: int
    flattens: bool
    few: int
    shared: bool
    activation: str
    owner: str
    call_index: int
    after: bool
    is_custom: bool


class InsertedNorms(nn.ModuleList):
    """The norms that hang under one module, each with the place where it acts."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: list[Slot] = []
        self.froze_bias = False
        self.of_output = 0
        """Number of the norm on a layer's output, and of that on its input; read where they are applied."""
        self.of_input = 0
        self._warned: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        """Hand `x` on: owners that run all their children in turn meet this container among them."""
        return x

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """The container and the norms, as of any module; refuses a torch.fx tracer that would drop them."""
        refuse_as_root()
        yield from super().named_modules(*args, **kwargs)

    def add(self, norm: nn.Module, site: Site, *, after: bool, kind: str = CUSTOM_NORM) -> int:
        """Hold `norm`, of that kind, for `site`; its number in this container."""
        number = len(self)
        self.slots.append(_slot(norm, site, after, kind))
        self.append(norm)
        if site.attach == "producer":
            self.of_output = number
        elif site.attach == "input":
            self.of_input = number
        return number

    def normalize(self, number: int, x: Tensor) -> Tensor:
        """Apply one of the norms along the channel axis of its site.

        In training mode, running statistics move, except within a backward pass: there gradient checkpointing
        computes a forward again. A batch too small for a variance is normalised by the running statistics, with a
        warning. An empty one comes back empty.

        Args:
            number: Which norm.
            x: A tensor with as many channels as the norm has, of any shape around them.

        Returns:
            A tensor of the same shape.

        Raises:
            BatchSizeError: If a batch norm without running statistics receives a single value per channel.
            RuntimeError: If `x` stands for a tensor in a torch.fx trace.
        """
        # Not self[number], whose index arithmetic costs as much as a small norm's own Python code.
        slot, norm = self.slots[number], self._modules[str(number)]
        try:
            # The two common cases, with as little Python as they need: this runs at every call of a layer.
            if not is_compiling() and x.numel() > slot.few and graph_task() == -1:
                if x.ndim == slot.direct:
                    return norm(x)
                if slot.flattens and x.ndim > 2:
                    return norm(x.flatten(0, -2)).reshape(x.shape)
            return self._with_care(slot, norm, x)
        except (RuntimeError, ValueError) as error:
            # Asked here and not before, where it would cost every call its time.
            if isinstance(x, Tensor) and x.is_nested:
                return self._by_parts(slot, norm, x)
            _explain(error, slot, x)
            raise

    def _with_care(self, slot: Slot, norm: nn.Module, x: Tensor) -> Tensor:
        if x.ndim == slot.direct:
            return self._run(slot, norm, x)
        if slot.arrangement == "samples":
            return self._by_samples(slot, norm, x)
        moved = x if slot.channel_dim == -1 else x.movedim(slot.channel_dim, -1)
        arranged = moved
        if slot.arrangement == "rows":
            arranged = moved.reshape(-1, moved.shape[-1], *[1] * (slot.ndim - 2))
        result = self._run(slot, norm, arranged).reshape(moved.shape)
        return result if slot.channel_dim == -1 else _as_dense_as(x, result.movedim(-1, slot.channel_dim))

    def _by_parts(self, slot: Slot, norm: nn.Module, x: Tensor) -> Tensor:
        """Normalise sequences of different lengths, as torch's transformer nests them behind a padding mask."""
        parts = x.unbind()
        whole = self._with_care(slot, norm, torch.cat(parts)[None])[0]
        return torch.nested.as_nested_tensor(list(whole.split([len(part) for part in parts])), layout=x.layout)

    def _by_samples(self, slot: Slot, norm: nn.Module, x: Tensor) -> Tensor:
        lead = x.ndim - slot.ndim
        batched = x if lead == 0 else (x.unsqueeze(0) if lead == -1 else x.flatten(0, lead))
        moved = batched.movedim(slot.channel_dim, 1)
        arranged = moved.flatten(2) if isinstance(norm, nn.InstanceNorm1d) else moved
        result = self._run(slot, norm, arranged).reshape(moved.shape).movedim(1, slot.channel_dim)
        return _as_dense_as(x, result.reshape(x.shape))

    def _run(self, slot: Slot, norm: nn.Module, x: Tensor) -> Tensor:
        values = values_per_statistic(norm, x)
        compiling = is_compiling()
        # A compiled graph is not to be bound to batches of more than two.
        if values is not None and values <= (1 if compiling else FEW):
            if values < FEW:
                return normalize_few(norm, x, values, slot.site, self._warn_once)
            self._warn_once(norm, slot.site, describe_two(norm, x, slot.site))
        if x.numel() == 0 and slot.is_custom:  # an expert without a token; what a factory made may not take that
            return x
        if compiling or not norm.training or graph_task() == -1:
            return norm(x)
        with held_buffers(norm):
            return norm(x)

    def _warn_once(self, norm: nn.Module, site: str, message: str) -> None:
        # Whoever replaced the norm's own forward, as recalibration does, counts small batches itself.
        if not is_compiling() and not IN_SANDBOX.get() and site not in self._warned and "forward" not in vars(norm):
            self._warned.add(site)
            warnings.warn(f"{message} This is said once for each norm.", InsertionWarning, stacklevel=5)


def _slot(norm: nn.Module, site: Site, after: bool, kind: str) -> Slot:
    second, ndim = channels_second(site), len(site.shape)
    over_samples = kind == "instance" or (kind in ("layer", "group") and second and ndim > 2)
    arrangement: Arrangement = "samples" if over_samples else ("last" if kind in ("layer", "rms") else "rows")
    if arrangement == "rows" and (not second or (kind == "batch" and ndim > 5)):
        ndim = 2
    in_place = site.channel_dim == -1 if arrangement == "last" else ndim + site.channel_dim == 1
    few = FEW * site.channels if isinstance(norm, _BatchNorm) else 0
    if cancels_bias(norm) and not isinstance(norm, _BatchNorm):
        few = sys.maxsize  # each sample has a mean of its own, so the number of positions is always looked at
    return Slot(
        site=site.name,
        channels=site.channels,
        channel_dim=site.channel_dim,
        ndim=ndim,
        arrangement=arrangement,
        direct=ndim if in_place and not (arrangement == "samples" and ndim > 5) else 0,
        flattens=arrangement == "rows" and ndim == 2 and site.channel_dim == -1,
        few=few,
        shared=site.attach == "shared",
        activation=site.activation,
        owner=site.owner,
        call_index=site.call_index,
        after=after,
        is_custom=kind == CUSTOM_NORM,
    )


def _as_dense_as(x: Tensor, result: Tensor) -> Tensor:
    """`result` in one block if `x` is: what follows may want a view that the moved axes do not allow."""
    return result.contiguous() if x.is_contiguous() else result


def _explain(error: Exception, slot: Slot, x: Any) -> None:
    """Say at which site an error arose where the input does not have the channels of the plan."""
    if isinstance(x, torch.fx.Proxy):
        raise untraceable(f"the module with the norm {slot.site!r}") from error
    found = x.shape[slot.channel_dim] if x.ndim >= -slot.channel_dim else None
    if found != slot.channels:
        error.add_note(
            f"This happened at the inserted norm {slot.site!r}, which was planned for {slot.channels} channels on axis "
            f"{slot.channel_dim} and received a tensor of shape {tuple(x.shape)}."
        )
