"""`nn.DataParallel` copies a module's attributes into replicas; a stand-in for its forward must run the replica."""

from torch import nn

from bn_lightning.surgery.running.owner_forward import OwnerForward
from bn_lightning.surgery.running.symbolic_tracing import STAND_IN_ATTRIBUTE

REPLICATE_ATTRIBUTE = "_replicate_for_data_parallel"


class Replicate:
    """Stands in for the method that makes a module's replica, and gives that a stand-in of its own.

    A plain object, so that the module stays copyable and picklable. Nothing of this costs anything in a forward.

    Args:
        owner: The module with a stand-in for its forward.
    """

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner

    def __call__(self) -> nn.Module:
        """Make a replica whose stand-in runs it, rather than the owner it was made from."""
        replica: nn.Module = type(self.owner)._replicate_for_data_parallel(self.owner)
        attributes = vars(replica)
        attributes.pop(REPLICATE_ATTRIBUTE, None)
        forward = attributes.get("forward")
        if isinstance(forward, OwnerForward):
            attributes["forward"] = attributes[STAND_IN_ATTRIBUTE] = forward.for_owner(replica)
        return replica
