"""Load a checkpoint, with the norms its plan names, into a module of its class."""

from pathlib import Path
from typing import Any

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.checkpoint import match_plan


class CheckpointLoader:
    """Loads a checkpoint into a module, as often as a Trainer sets it up.

    Args:
        saved: What `read_checkpoint` gave.
        source: Its file, for messages.

    Raises:
        PlanMismatchError: When called, if the checkpoint is of another model.
    """

    def __init__(self, saved: dict[str, Any], source: Path) -> None:
        self.saved = saved
        self.source = source
        self._checked = False

    def __call__(self, module: Any) -> None:
        """Insert the norms the checkpoint was written with, and load its weights.

        Args:
            module: A LightningModule that has built its layers.
        """
        if self._checked:
            # A setup that builds the layers each time has thrown the weights away. Not by the module's own hook, which
            # has changed what was saved already.
            module.load_state_dict(self.saved["state_dict"], strict=False)
        else:
            self._load(module)
            self._checked = True

    def _load(self, module: Any) -> None:
        match_plan(module, self.saved)
        module.on_load_checkpoint(self.saved)
        kind = f"{self.source} is not a checkpoint of {type(module).__name__} with these arguments"
        try:
            missing, unexpected = module.load_state_dict(self.saved["state_dict"], strict=False)
        except RuntimeError as error:
            raise PlanMismatchError(f"{kind}: {str(error).strip().splitlines()[-1].strip()}") from error
        if module.strict_loading and (missing or unexpected):
            raise PlanMismatchError(
                f"{kind}: it lacks {_few(missing)} and has {_few(unexpected)} besides. Name the class, and the "
                "arguments, that it was trained with."
            )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "nothing") + more
