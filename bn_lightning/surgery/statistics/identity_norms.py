"""Inserted norms as the identity: which can be, and the scale and shift that make them so.

A batch norm in evaluation mode computes y = γ·(x − μ)/√(σ² + ε) + β, per channel. With γ = √(σ² + ε) and β = μ
that is y = x, whatever μ and σ² are.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from bn_lightning.errors import NonFiniteError, NoNormError
from bn_lightning.surgery.running.norms import InsertedNorms
from bn_lightning.surgery.sandbox import sandbox
from bn_lightning.surgery.statistics.running_statistics import running_statistics

MeanAndVariance = tuple[Tensor, Tensor]


def inserted_batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every inserted norm of a model by its path, if all of them can be made the identity.

    Args:
        model: Any module.

    Returns:
        The norms, in the order of the modules.

    Raises:
        NoNormError: If there is none.
        ValueError: If one is no batch norm, has no scale and shift or keeps no running statistics.
    """
    norms: dict[str, _BatchNorm] = {}
    refused: list[str] = []
    for path, container in _containers(model):
        for number, norm in container.named_children():
            reason = _why_not(norm)
            if reason:
                refused.append(f"{path}.{number} ({type(norm).__name__}) {reason}")
            elif isinstance(norm, _BatchNorm):
                norms[f"{path}.{number}"] = norm
    if refused:
        raise ValueError(
            f"Not every inserted norm can start as the identity: {'; '.join(refused)}. Insert norms that can, such as "
            "norm='batch'."
        )
    if not norms:
        raise NoNormError(
            f"{type(model).__name__} has no inserted norms that could start as the identity; insert_batch_norm puts "
            "them in."
        )
    return norms


def make_identity(model: nn.Module, statistics: Mapping[str, MeanAndVariance]) -> None:
    """Write statistics into inserted norms, and the scale and shift that undo the normalisation by them.

    ``running_mean``, ``running_var``, ``weight`` and ``bias`` are overwritten in place, of all these norms or, after
    an exception or Ctrl-C, of none.

    Args:
        model: The module that `inserted_batch_norms` found the norms in.
        statistics: Mean and variance, ``[C]``, for each norm by its path.

    Raises:
        NonFiniteError: If a statistic is NaN or infinite, maybe after rounding to the type of the buffer.
        ValueError: If a norm's own forward does more than to normalise, scale and shift.
    """
    new: list[tuple[Tensor, Tensor]] = []
    broken: list[str] = []
    norms = inserted_batch_norms(model)
    for name, (mean, variance) in statistics.items():
        norm = norms[name]
        targets = (*running_statistics(norm), norm.weight, norm.bias)
        # Rounded first, so that scale and shift undo what the norm will subtract and divide by.
        rounded = mean.to(targets[0].dtype), variance.to(targets[1].dtype)
        values = (*rounded, *_undoing(norm, *rounded))
        if not all(bool(value.isfinite().all()) for value in values):
            broken.append(repr(name))
        new += zip(targets, values, strict=True)
    if broken:
        raise NonFiniteError(
            f"The statistics of {', '.join(broken)} are NaN or infinite, so all norms were left as they were; look for "
            "NaN in the data and in the weights."
        )
    old = [(target, target.detach().clone()) for target, _ in new]
    written = False
    try:
        _copy(new)
        _verify(model)
        written = True
    finally:
        if not written:
            _copy(old)


def keeps_function(norm: _BatchNorm) -> bool:
    """Whether a norm's scale and shift are as they were made, or undo its normalisation.

    Args:
        norm: A norm with running statistics, scale and shift.

    Returns:
        False where something learned would be lost by making it the identity.
    """
    made = bool((norm.weight == torch.ones_like(norm.weight)).all() and (norm.bias == 0).all())
    return made or is_identity(norm)


def is_identity(norm: nn.Module) -> bool:
    """Whether a norm in evaluation mode hands its input on, by exactly the scale and shift of `make_identity`.

    Args:
        norm: Any norm.

    Returns:
        False for norms that cannot be made the identity, too.
    """
    if _why_not(norm) or not isinstance(norm, _BatchNorm):
        return False
    scale, shift = _undoing(norm, *statistics_of_norm(norm))
    return torch.equal(norm.weight.detach().cpu(), scale) and torch.equal(norm.bias.detach().cpu(), shift)


def statistics_of_norm(norm: _BatchNorm) -> MeanAndVariance:
    """Copies of a norm's running mean and variance.

    Args:
        norm: A norm that keeps them.

    Returns:
        The two, on the CPU, where there always is a float64.
    """
    mean, variance = running_statistics(norm)
    return mean.detach().clone().cpu(), variance.detach().clone().cpu()


def _undoing(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> MeanAndVariance:
    return (variance.double() + norm.eps).sqrt().to(norm.weight.dtype), mean.to(norm.bias.dtype)


def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for target, value in pairs:
            target.copy_(value)


def _verify(model: nn.Module) -> None:
    for path, container in _containers(model):
        for slot, norm in zip(container.slots, container, strict=True):
            plain = type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) and "forward" not in vars(norm)
            if plain or not isinstance(norm, _BatchNorm):
                continue
            spread = torch.stack((-norm.weight.detach(), norm.weight.detach()))
            x = (norm.bias.detach() + spread).reshape(2, -1, *[1] * (slot.ndim - 2))
            with sandbox(norm), torch.no_grad():
                norm.training = False
                y = norm(x)
            # Rounding of the subtraction and of the scale, in units of the largest value.
            if not torch.allclose(x, y, rtol=0, atol=8 * torch.finfo(x.dtype).eps * float(x.abs().max())):
                raise ValueError(
                    f"The norm at {slot.site!r} (in {path}: {type(norm).__name__}) does not hand its input on with "
                    "γ = √(σ² + ε) and β = μ, so its own forward does more than to normalise, scale and shift; all "
                    "norms were left as they were. Insert one that does not, such as norm='batch'."
                )


def _containers(model: nn.Module) -> Iterator[tuple[str, InsertedNorms]]:
    for path, module in model.named_modules():
        if isinstance(module, InsertedNorms):
            yield path, module


def _why_not(norm: nn.Module) -> str:
    if not isinstance(norm, _BatchNorm):
        return "is no batch norm"
    if isinstance(norm, LazyModuleMixin) and norm.has_uninitialized_params():
        return "has not been initialised"
    if norm.running_mean is None or norm.running_var is None:
        return "keeps no running statistics (track_running_stats=False)"
    if any(getattr(norm, name, None) is None for name in ("weight", "bias")):
        return "has no scale and shift to undo the normalisation with (affine=False)"
    return ""
