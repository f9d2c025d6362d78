"""Keep the insertion plan in Lightning checkpoints, so that they rebuild the structure before weights are loaded.

Nothing here imports Lightning: a LightningModule is met only through its checkpoint hooks, which run
with `save_weights_only=True` too, and before the weights are loaded. What is written are plain JSON
types, so that checkpoints load with `weights_only=True`.
"""

from collections.abc import Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.local_response_norm import remove_as_in
from bn_lightning.surgery.plan import InsertionPlan, NormFactory

CHECKPOINT_KEY = "bn_lightning"
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def write_plan(model: nn.Module, checkpoint: MutableMapping[str, Any]) -> None:
    """Write the plan that a model carries, if any, into a checkpoint dictionary.

    Args:
        model: The module whose weights are saved.
        checkpoint: The dictionary; changed in place.
    """
    plan = plan_of(model)
    if plan is not None:
        checkpoint[CHECKPOINT_KEY] = {**checkpoint.get(CHECKPOINT_KEY, {}), "plan": plan.to_dict()}


def match_plan(model: nn.Module, checkpoint: MutableMapping[str, Any], *, norm: NormFactory | None = None) -> None:
    """Give a model the norms that a checkpoint was written with, before its weights are loaded.

    Local response norms that were removed in the checkpoint's model are removed here too.

    Args:
        model: The module; changed in place where it has no norms yet and the checkpoint has.
        checkpoint: The loaded dictionary.
        norm: The factory that the plan was made with, if it was made with one.

    Raises:
        PlanMismatchError: If the model carries norms and the checkpoint none, or others.
    """
    remove_as_in(model, checkpoint.get("state_dict", {}))
    written = checkpoint.get(CHECKPOINT_KEY, {}).get("plan")
    present = plan_of(model)
    if written is None:
        if present is not None:
            raise PlanMismatchError(
                f"The checkpoint was written without inserted norms, and the model carries {len(present.inserted)}. "
                "Load it into the plain model first, without BatchNormInsertion, and insert afterwards."
            )
        return
    # A class may have been renamed since; the paths, the channels and the weights say whether it is the same model.
    plan = replace(InsertionPlan.from_dict(written), model=type(model).__name__)
    if present is None:
        apply_plan(model, plan, norm=norm)
    elif present.structure != plan.structure:
        names = {site.name for site in present.inserted} ^ {site.name for site in plan.inserted}
        detail = f"sites {', '.join(sorted(names))}" if names else "the placement, the kind of norm or its channels"
        raise PlanMismatchError(
            f"The checkpoint's norms ({plan.norm}, {plan.placement}: {len(plan.inserted)} sites) are not those of the "
            f"model ({present.norm}, {present.placement}: {len(present.inserted)} sites); they differ in {detail}. "
            "Use the settings the checkpoint was trained with, or a fresh module, which takes them from the checkpoint."
        )


class _SavingHook:
    """Stands in for `on_save_checkpoint`; a plain object, so that modules stay copyable and picklable."""

    def __init__(self, module: nn.Module, original: Callable[..., Any]) -> None:
        self.module = module
        self.original = original

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        write_plan(self.module, checkpoint)
        self.original(checkpoint)


class _LoadingHook:
    """Stands in for `on_load_checkpoint`."""

    def __init__(self, module: nn.Module, original: Callable[..., Any], norm: NormFactory | None) -> None:
        self.module = module
        self.original = original
        self.norm = norm

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        match_plan(self.module, checkpoint, norm=self.norm)
        self.original(checkpoint)


def keep_plan_in_checkpoints(module: nn.Module, *, norm: NormFactory | None = None) -> None:
    """Let a LightningModule write its plan into every checkpoint and take it from each one it loads.

    Its `on_save_checkpoint` and `on_load_checkpoint` are wrapped on this instance; a second call does nothing.

    Args:
        module: The LightningModule.
        norm: The norm factory in use, if there is one; checkpoints cannot hold it.
    """
    attributes = vars(module)
    lightning: Any = module
    if not isinstance(attributes.get("on_save_checkpoint"), _SavingHook):
        attributes["on_save_checkpoint"] = _SavingHook(module, lightning.on_save_checkpoint)
    if not isinstance(attributes.get("on_load_checkpoint"), _LoadingHook):
        attributes["on_load_checkpoint"] = _LoadingHook(module, lightning.on_load_checkpoint, norm)


def forget_plan_in_checkpoints(module: nn.Module) -> None:
    """Take the hooks of `keep_plan_in_checkpoints` out again.

    Args:
        module: The LightningModule.
    """
    for name, kind in (("on_save_checkpoint", _SavingHook), ("on_load_checkpoint", _LoadingHook)):
        hook = vars(module).get(name)
        if isinstance(hook, kind):
            del vars(module)[name]
            if getattr(hook.original, "__func__", None) is not getattr(type(module), name):
                vars(module)[name] = hook.original


def load_from_checkpoint(
    module_class: type[ModuleT], path: str | Path, *, norm: NormFactory | None = None, **kwargs: Any
) -> ModuleT:
    """Load a LightningModule from a checkpoint that was written with inserted norms.

    Like `module_class.load_from_checkpoint(path, **kwargs)`, which cannot know of the norms and
    refuses their weights; here the checkpoint's plan is carried out before they are loaded.

    Args:
        module_class: The LightningModule's class, unmodified.
        path: The checkpoint.
        norm: The norm factory the checkpoint was trained with, if it was one.
        **kwargs: Passed on to Lightning's `load_from_checkpoint`.

    Returns:
        The module, of exactly that class, with its norms.

    Raises:
        PlanMismatchError: If the plan does not fit the class.
    """
    lightning_class: Any = module_class

    def on_load_checkpoint(self: nn.Module, checkpoint: dict[str, Any]) -> None:
        match_plan(self, checkpoint, norm=norm)
        lightning_class.on_load_checkpoint(self, checkpoint)

    namespace = {"on_load_checkpoint": on_load_checkpoint, "__module__": module_class.__module__}
    loading_class: Any = type(module_class.__name__, (module_class,), namespace)
    module: ModuleT = loading_class.load_from_checkpoint(path, **kwargs)
    module.__class__ = module_class
    keep_plan_in_checkpoints(module, norm=norm)
    return module
