"""Points of lines and planes in the space of the parameters, as rows of the long table and back."""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import pandas as pd
from torch import Tensor

SURFACES = {
    "start_line": "around the initial weights",
    "end_line": "around the solution",
    "way": "from start (0) to solution (1)",
    "start_plane": "around the initial weights",
    "end_plane": "around the solution",
}
"""What is recorded, in words."""
_NAME = r"^loss_on_(?P<surface>[a-z_]+)_(?P<norm_mode>train|eval)\((?P<first>[^,)]+)(?:,(?P<second>[^,)]+))?\)$"


def point_quantities(
    surface: str, norm_mode: str, coordinates: Sequence[Sequence[float]], losses: Tensor
) -> Iterator[tuple[str, float]]:
    """Name the loss at each point of a line or plane.

    Args:
        surface: A name of `SURFACES`.
        norm_mode: "train" or "eval".
        coordinates: The multiples of each direction.
        losses: The loss, ``[len(first)]`` or ``[len(first), len(second)]``.

    Yields:
        Quantity and value.

    Example:
        >>> list(point_quantities("end_line", "train", [(0.0, 0.5)], Tensor([2.0, 3.0])))
        [('loss_on_end_line_train(0)', 2.0), ('loss_on_end_line_train(0.5)', 3.0)]
    """
    for point, loss in zip(product(*coordinates), losses.flatten().tolist(), strict=True):
        yield f"loss_on_{surface}_{norm_mode}({','.join(f'{value:g}' for value in point)})", loss


def landscape_points(results: pd.DataFrame) -> pd.DataFrame:
    """Read the points back.

    Args:
        results: The long table.

    Returns:
        One row a point with the columns arm, seed, surface, norm_mode, first, second (NaN on lines) and loss; empty
        where there is none.

    Example:
        >>> rows = [("none", 0, 9, "", "loss_on_end_plane_eval(-0.5,1)", 2.0)]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> landscape_points(table).drop(columns=["arm", "seed"]).to_dict("records")
        [{'surface': 'end_plane', 'norm_mode': 'eval', 'first': -0.5, 'second': 1.0, 'loss': 2.0}]
    """
    chosen = results[results["quantity"].astype(str).str.startswith("loss_on_")]
    parts = chosen["quantity"].astype(str).str.extract(_NAME)
    points = pd.concat([chosen[["arm", "seed"]], parts, chosen["value"].rename("loss")], axis="columns")
    points = points.dropna(subset="surface").reset_index(drop=True)
    numbers = {
        name: points[name].map(lambda text: math.nan if text is None else float(text)) for name in ("first", "second")
    }
    return points.assign(**numbers).astype({"first": "float64", "second": "float64", "loss": "float64"})
