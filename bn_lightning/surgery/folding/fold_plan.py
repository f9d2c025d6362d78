"""Which batch norms of a model go into which layers, and which stay, with the reason."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bn_lightning.surgery.plan import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Fold:
    """A norm that disappears into its neighbours.

    Attributes:
        norm: Path of the norm.
        into: Paths of the affine layers that take it.
        direction: "preceding" where these feed it, "following" where it feeds them.
        between: Operations between the norm and the layers, which its affine map commutes with.
        channels: For following layers, the norm's channel at each input of each of them; else empty.
    """

    norm: str
    into: tuple[str, ...]
    direction: Literal["preceding", "following"]
    between: tuple[str, ...] = ()
    channels: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class KeptNorm:
    """A norm that no layer can take without changing what the model computes.

    Attributes:
        norm: Path of the norm.
        reason: Why, from both sides.
        place: Where it stands once this package is gone: "own" where the model's author wrote it, "beside" its
            activation module in an `nn.Sequential` or its layer as a hook, "graph" in the forward of its owner, which
            is rewritten as a graph of torch, or "none".
        site: Where it acts, for an inserted norm; None for one written by hand.
        after: Whether an inserted norm acts on the output of the nonlinearity.
    """

    norm: str
    reason: str
    place: Literal["own", "beside", "graph", "none"] = "own"
    site: Site | None = None
    after: bool = False


@dataclass(frozen=True)
class FoldingPlan:
    """What folding does to a model.

    Attributes:
        folds: The norms that disappear, in the order in which they are multiplied in.
        kept: The norms that stay.
    """

    folds: tuple[Fold, ...]
    kept: tuple[KeptNorm, ...]

    def table(self) -> "pd.DataFrame":
        """One row a norm.

        Returns:
            Columns ``norm, direction, into, reason``; `direction` is "preceding", "following" or "kept", `into`
            the layers separated by commas, `reason` why a norm stays.
        """
        import pandas as pd

        rows: list[tuple[str, str, str, str]] = [
            (fold.norm, fold.direction, ", ".join(fold.into), "") for fold in self.folds
        ]
        rows += [(norm.norm, "kept", "", norm.reason) for norm in self.kept]
        return pd.DataFrame(rows, columns=["norm", "direction", "into", "reason"])
