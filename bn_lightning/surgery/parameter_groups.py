"""Which parameters an optimizer decays: all but those of norms."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from bn_lightning.surgery.running.norms import InsertedNorms

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_biases: bool = True,
    norm_types: tuple[type[nn.Module], ...] = (),
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer that decays weights, but not the scale and shift of norms.

    Source: Goyal et al. (2017), section 5.1, leave the γ and β of batch norm out of weight decay; He et al. (2019),
    section 3.1, leave out all biases as well, which is ``decay_biases=False``.

    Call it in `configure_optimizers`, where the norms of `BatchNormInsertion` are there already. Every trainable
    parameter is in exactly one group, tied ones once, in the order of ``model.parameters()``.

    Frozen parameters (``requires_grad=False``) are in none, among them the biases that insertion froze. After
    `remove_batch_norm`, which gives these their gradients back, or after other parameters have been unfrozen, make
    the groups and the optimizer anew.

    Args:
        model: Any module, with inserted norms, hand-written ones or none.
        weight_decay: The decay of the first group, as the optimizer takes it; 0 or more.
        decay_biases: Whether biases of other layers are decayed: parameters with "bias" in their own name,
            such as ``bias``, ``in_proj_bias`` or ``bias_ih_l0``.
        norm_types: Further classes that count as norms by the parameters that they hold themselves. Batch,
            instance, layer, group and RMS norms of torch, their subclasses and whatever was inserted count anyway.

    Returns:
        Always two groups, ``{"params": [...], "weight_decay": weight_decay}`` and ``{"params": [...],
        "weight_decay": 0.0}``; the second is empty where there is nothing to spare.

    Raises:
        ValueError: If `weight_decay` is negative or NaN, or no parameter is trainable.

    Example:
        >>> import torch
        >>> from bn_lightning import insert_batch_norm
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> plan = insert_batch_norm(model, (torch.randn(16, 8),))
        >>> optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-3)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(3, 0.01), (2, 0.0)]
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay} would let the weights grow; give 0 or a positive number.")
    spared: set[int] = set()
    for module in model.modules():
        if isinstance(module, InsertedNorms):
            spared.update(map(id, module.parameters()))
        elif isinstance(module, (*_NORMS, *norm_types)):
            spared.update(map(id, module.parameters(recurse=False)))
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = id(parameter) in spared or (not decay_biases and _is_bias(name))
            (others if spare else decayed).append(parameter)
    if not decayed and not others:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter among its {len(list(model.parameters()))}, so there "
            "is nothing to optimize; unfreeze some, or build the layers before the optimizers."
        )
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2].split("_")
