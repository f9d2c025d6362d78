"""The two tables that come of measuring a checkpoint: numbers in the long format, and points of lines and surfaces."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from bn_lightning.analysis.results import results_table, write_table
from bn_lightning.functional.plateaus import plateau_share
from bn_lightning.probes.curvature_surface import Surface

SURFACE_COLUMNS = ("arm", "surface", "norm_mode", "first", "second", "loss", "gradient_norm")
STUDY = "measure"


class MeasureRows:
    """Collects what is measured of one checkpoint.

    Args:
        arm: What the checkpoint is called in tables and figures.
        step: Its optimizer step.

    Example:
        >>> rows = MeasureRows("last", 900)
        >>> rows.add({"effective_beta": 1.5})
        >>> rows.table()[["arm", "step", "quantity", "value"]].to_dict("records")
        [{'arm': 'last', 'step': 900, 'quantity': 'effective_beta', 'value': 1.5}]
    """

    def __init__(self, arm: str, step: int) -> None:
        self.arm = arm
        self.step = step
        self._rows: list[tuple[object, ...]] = []
        self._points: list[tuple[object, ...]] = []

    def add(self, numbers: Mapping[str, float], *, layer: str = "") -> None:
        """Add numbers.

        Args:
            numbers: Value by quantity.
            layer: The layer's path; empty for the whole model.
        """
        self._rows.extend((STUDY, self.arm, 0, self.step, layer, name, float(value)) for name, value in numbers.items())

    def add_surface(self, name: str, norm_mode: str, surface: Surface) -> None:
        """Add the points of a line or a surface.

        Args:
            name: What it is called.
            norm_mode: "train" or "eval".
            surface: The points.
        """
        losses = surface.losses.flatten().tolist()
        norms = (
            [math.nan] * len(losses) if surface.gradient_norms is None else surface.gradient_norms.flatten().tolist()
        )
        for point, loss, norm in zip(itertools.product(*surface.coordinates), losses, norms, strict=True):
            first, second = (*point, math.nan)[:2]
            self._points.append((self.arm, name, norm_mode, first, second, loss, norm))

    def plateau_share(self, name: str, norm_mode: str, fraction: float) -> float:
        """The share of a surface's points whose gradient norm is below a fraction of the largest.

        Args:
            name: What the surface is called.
            norm_mode: "train" or "eval".
            fraction: Between 0 and 1.

        Returns:
            The share; a point without a finite gradient counts as none of a plateau. NaN where none has one.
        """
        points = self.points()
        norms = points.loc[(points["surface"] == name) & (points["norm_mode"] == norm_mode), "gradient_norm"]
        return plateau_share(torch.tensor(norms.to_numpy()), fraction)

    def table(self) -> pd.DataFrame:
        """The numbers.

        Returns:
            The long table: study, arm, seed, step, layer, quantity, value.
        """
        return results_table(self._rows)

    def points(self) -> pd.DataFrame:
        """The points of lines and surfaces.

        Returns:
            A table with the columns arm, surface, norm_mode, first, second (NaN on lines), loss and gradient_norm (NaN
            where none was taken, or where it was not finite).
        """
        floats = dict.fromkeys(SURFACE_COLUMNS[3:], "float64")
        return pd.DataFrame(self._points, columns=list(SURFACE_COLUMNS)).astype(floats)

    def write(self, folder: Path) -> None:
        """Write `measurements.csv`, and `surfaces.csv` if there are points.

        Args:
            folder: Where to; it is made if need be.
        """
        write_table(folder / "measurements.csv", self.table())
        if self._points:
            write_table(folder / "surfaces.csv", self.points())
