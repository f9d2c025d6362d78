"""Act once a LightningModule has all its layers, wherever it builds them."""

from collections.abc import Callable
from typing import Any

from bn_lightning.callbacks._compat import LightningModule, Trainer, namespace_of


class OnceBuilt:
    """Calls a function at the end of the last hook in which a module may build layers.

    Lightning calls the hooks `setup` and `configure_model` after `Callback.setup`. Those that the module
    overrides are replaced on the instance until they have run once.

    Args:
        trainer: The Trainer that is setting up.
        module: Its LightningModule.
        then: What to do when the layers are there.
    """

    def __init__(self, trainer: "Trainer", module: "LightningModule", then: Callable[[], None]) -> None:
        self._module = module
        self._then = then
        base = namespace_of(trainer).LightningModule
        # An instance attribute counts: another callback may have put one there.
        overridden = [
            name
            for name in ("setup", "configure_model")
            if name in vars(module) or getattr(type(module), name) is not getattr(base, name)
        ]
        self.waited = bool(overridden)
        self._remaining = overridden
        self._restore: Callable[[], None] | None = None

    def arm(self) -> None:
        """Wait for the next hook, or act now where none is left."""
        if not self._remaining:
            self._then()
            return
        # One at a time: callbacks that copy the model call configure_model themselves, before setup has run.
        name = self._remaining.pop(0)
        attributes, original = vars(self._module), getattr(self._module, name)
        previous = attributes.get(name)

        def restore() -> None:
            attributes.pop(name, None)
            if previous is not None:
                attributes[name] = previous

        # A closure, because a bound method would take the Trainer along when another callback copies the module.
        def hook(*args: Any, **kwargs: Any) -> None:
            self.restore()
            original(*args, **kwargs)
            self.arm()

        attributes[name], self._restore = hook, restore

    def restore(self) -> None:
        """Take the replacement out: left on the module it would not pickle, and stay bound to this one in copies."""
        if self._restore is not None:
            self._restore()
            self._restore = None
