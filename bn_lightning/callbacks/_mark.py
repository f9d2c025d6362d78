"""Write a mark into every checkpoint of a module, also into those with `save_weights_only=True`.

Callbacks are not asked for these; only the module's own `on_save_checkpoint` always runs, so it is
wrapped on the instance for as long as it is needed.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

NAME = "on_save_checkpoint"
Mark = Callable[[dict[str, Any]], None]


class _MarkingHook:
    """Stands in for `on_save_checkpoint`."""

    def __init__(self, original: Callable[..., Any], replaced: Any, mark: Mark, owner: object) -> None:
        self.original = original
        self.replaced = replaced
        self.mark: Mark | None = mark
        self.owner = owner

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        if self.mark is not None:
            self.mark(checkpoint)
        self.original(checkpoint)


def mark_checkpoints(module: nn.Module, mark: Mark, *, owner: object) -> None:
    """Call `mark` on every checkpoint of `module` before it is written.

    Side effect: ``module.on_save_checkpoint`` is wrapped on the instance until `unmark_checkpoints`.

    Args:
        module: A LightningModule.
        mark: Gets the checkpoint's dictionary.
        owner: Who asks; a second call of the same owner replaces the first.
    """
    unmark_checkpoints(module, owner=owner)
    attributes = vars(module)
    original: Any = module.on_save_checkpoint
    attributes[NAME] = _MarkingHook(original, attributes.get(NAME), mark, owner)


def unmark_checkpoints(module: nn.Module, *, owner: object) -> None:
    """Take the wrapper of `mark_checkpoints` away; nothing happens where there is none.

    Args:
        module: The LightningModule.
        owner: Who asked for the mark.
    """
    attributes = vars(module)
    hook = attributes.get(NAME)
    if isinstance(hook, _MarkingHook) and hook.owner is owner:
        if hook.replaced is None:
            del attributes[NAME]
        else:
            attributes[NAME] = hook.replaced
        return
    # Someone wrapped the wrapper: it can only be made to do nothing.
    while hook is not None:
        if isinstance(hook, _MarkingHook) and hook.owner is owner:
            hook.mark = None
        hook = getattr(hook, "original", None)
