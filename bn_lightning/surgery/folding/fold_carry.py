"""Carry a folding plan out on a model."""

from collections.abc import Mapping

from torch import nn

from bn_lightning.surgery.attach import detach
from bn_lightning.surgery.carried import containers
from bn_lightning.surgery.folding.fold_frozen import frozen_norm, hang_on_layer, pair_with_activation, rewrite_owner
from bn_lightning.surgery.folding.fold_layers import FoldedLayer, affine_of
from bn_lightning.surgery.folding.fold_plan import Fold, FoldingPlan, KeptNorm
from bn_lightning.surgery.plan_match import host_path


def carry_out(model: nn.Module, plan: FoldingPlan, *, partial: bool = False) -> nn.Module:
    """Multiply norms into layers and take them out of a model.

    Norms written by hand become `nn.Identity`, so that indices and keys of everything else stay.
    Inserted norms go with all their hooks; those that no layer took come back in plain torch.

    Args:
        model: The model of the plan, or one of the same structure; changed in place.
        plan: The plan.
        partial: Whether inserted norms that would need a rewritten forward stay as inserted. Then folded ones become
            `nn.Identity` where they were.

    Returns:
        The model, or what replaces it where its own forward was rewritten.
    """
    layers: dict[str, FoldedLayer] = {}
    for fold in plan.folds:
        _multiply(model, fold, layers)
    for layer in layers.values():
        layer.write()
    gone = {fold.norm: nn.Identity().eval() for fold in plan.folds}
    if partial and any(norm.place in ("graph", "none") for norm in plan.kept):
        _replace(model, gone)
        _unfreeze(model)
        return model
    frozen = [(kept, frozen_norm(model, kept)) for kept in plan.kept if kept.place in ("beside", "graph")]
    _replace(model, gone)
    detach(model)
    return _put_back(model, frozen)


def _put_back(model: nn.Module, frozen: list[tuple[KeptNorm, nn.Module]]) -> nn.Module:
    owners: dict[str, list[tuple[KeptNorm, str | nn.Module, nn.Module]]] = {}
    for kept, norm in frozen:
        assert kept.site is not None  # noqa: S101 - only inserted norms are taken out and put back
        if kept.place == "graph":
            called = kept.site.function or model.get_submodule(kept.site.activation)
            owners.setdefault(kept.site.owner, []).append((kept, called, norm))
        else:
            host = model.get_submodule(host_path(kept.site))
            if kept.site.attach == "activation":
                _replace(model, {host_path(kept.site): pair_with_activation(host, kept, norm)})
            else:
                hang_on_layer(host, norm, on_input=kept.site.attach == "input")
    # The innermost first, so that what holds them holds the new ones.
    for path in sorted(owners, key=lambda path: -path.count(".") if path else 1):
        rewritten = rewrite_owner(model.get_submodule(path), owners[path])
        if not path:
            return rewritten
        _replace(model, {path: rewritten})
    return model


def _multiply(model: nn.Module, fold: Fold, layers: dict[str, FoldedLayer]) -> None:
    affine = affine_of(model.get_submodule(fold.norm))
    for number, path in enumerate(fold.into):
        if path not in layers:
            layers[path] = FoldedLayer(model.get_submodule(path))
        if fold.direction == "preceding":
            layers[path].take_following(affine)
        else:
            layers[path].take_preceding(affine, fold.channels[number])


def _replace(model: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put new modules at paths, and wherever else the old ones are."""
    by_old = {id(model.get_submodule(path)): module for path, module in new.items()}
    for parent in list(model.modules()):
        # Not named_children, which gives a module of two names only once.
        for name, child in list(parent._modules.items()):
            if id(child) in by_old:
                setattr(parent, name, by_old[id(child)])


def _unfreeze(model: nn.Module) -> None:
    for host, norms in containers(model):
        if norms.froze_bias and all(isinstance(norm, nn.Identity) for norm in norms):
            host.get_parameter("bias").requires_grad_(True)
            norms.froze_bias = False
