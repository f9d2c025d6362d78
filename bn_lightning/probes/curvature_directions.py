"""Directions in the space of a network's parameters: random ones of its own scale, and from solution to solution."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.objective import trainable_parameters

Direction = Mapping[str, Tensor]
"""A step of each parameter by path; those that are missing do not move."""


def random_direction(
    model: nn.Module,
    *,
    vectors: Literal["zero", "scale"] = "zero",
    parameters: str | Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A random direction whose filters are as long as the model's.

    Source: Li et al. (2018), "Visualizing the Loss Landscape of Neural Nets", section 4: normal noise, each filter
    d_{i,j} scaled to d_{i,j}/‖d_{i,j}‖·‖θ_{i,j}‖, a filter being one output of a layer. So plots of networks with
    different scales of weights can be compared. Biases and the parameters of norms do not move in the paper.

    Args:
        model: The module.
        vectors: What becomes of parameters with fewer than two axes, of layer norms, and with one element a filter:
            "zero", as published, or "scale", each as a whole to the length of the parameter.
        parameters: fnmatch patterns on the parameters' paths; by default all that are trained.
        seed: Of the noise.

    Returns:
        The direction.

    Raises:
        UnknownNameError: If `vectors` is neither word, or a pattern matches nothing.
        ValueError: If no parameter is trained.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> direction = random_direction(model)
        >>> torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1)), direction["bias"].tolist()
        (True, [0.0, 0.0])
    """
    if vectors not in ("zero", "scale"):
        raise UnknownNameError(
            f"Parameters with one axis are left alone by 'zero' or moved by 'scale', not {vectors!r}."
        )
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, value in trainable_parameters(model, parameters).items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        lengths = value.detach().cpu().double()
        owner = model.get_submodule(name.rpartition(".")[0])
        filters = _filters(noise, owner)
        if filters.shape[2:].numel() > 1 and not isinstance(owner, nn.LayerNorm | nn.RMSNorm):
            scale = _filters(lengths, owner).flatten(2).norm(dim=2) / filters.flatten(2).norm(dim=2)
            filters.mul_(scale.reshape(*scale.shape, *[1] * (filters.dim() - 2)))
        else:
            noise = noise * (lengths.norm() / noise.norm() if vectors == "scale" else 0.0)
        direction[name] = noise.to(value)
    return direction


def _filters(value: Tensor, owner: nn.Module) -> Tensor:
    """A view with groups on axis 0 and the outputs of each on axis 1."""
    if isinstance(owner, _ConvTransposeNd) and value.dim() > 1:
        return value.unflatten(0, (owner.groups, -1)).transpose(1, 2)
    return value.unsqueeze(0)


def direction_between(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The straight way from one solution to another: coordinate 0 is the start, 1 the end.

    Source: Goodfellow et al. (2015); Im et al. (2016) draw it between the ends of different optimizers. Parameters of
    norms move like all others; buffers, so running statistics, do not: measure in training mode, or recalibrate.

    Args:
        start: Parameters by path, as `named_parameters` gives them.
        end: The same elsewhere.

    Returns:
        The direction.

    Raises:
        UnknownNameError: If the two differ in names or shapes.

    Example:
        >>> direction_between({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])})
        {'w': tensor([2.])}
    """
    shapes, others = ({name: tuple(value.shape) for name, value in part.items()} for part in (start, end))
    if shapes != others:
        differing = sorted(name for name in {*shapes, *others} if shapes.get(name) != others.get(name))
        raise UnknownNameError(
            f"Two solutions of one network have the same parameters, and these differ in {', '.join(differing[:5])}. "
            "Build both with the same norms inserted."
        )
    return {name: end[name].detach() - value.detach() for name, value in start.items()}
