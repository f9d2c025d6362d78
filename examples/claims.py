"""What the examples on the claims of Santurkar et al. (2018) share: judge claims over seeds, draw, write down.

A claim is judged over pairs of equal seeds, by the 95 % t interval of the mean log ratio (or difference): *reproduced*
where it lies on the claimed side, *reversed* where it lies on the other, *not reproduced* where it holds both.
"""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bn_lightning.analysis.configuration import versions
from bn_lightning.analysis.number_format import table_text
from bn_lightning.analysis.statistics import mean_interval


@dataclass(frozen=True)
class Claim:
    """One arm against another in one quantity: "lower", "higher", or "same" within a margin of the difference."""

    text: str
    quantity: str
    arm: str = "batch norm"
    reference: str = "no norm"
    expects: str = "lower"
    margin: float = math.nan

    def judge(self, table: pd.DataFrame, stage: str) -> dict[str, object]:
        of_stage = table[(table["stage"] == stage) & (table["quantity"] == self.quantity)]
        values = of_stage.pivot_table(index="seed", columns="arm", values="value").reindex(
            columns=[self.arm, self.reference]
        )
        pairs = values.dropna()
        # Ratios where both are positive lengths; accuracies, cosines and slopes are compared by their difference.
        ratio = self.expects != "same" and bool((pairs > 0).all(axis=None)) and "accuracy" not in self.quantity
        ratio = ratio and "cosine" not in self.quantity and "decades" not in self.quantity
        transformed = np.log(pairs) if ratio else pairs
        found = mean_interval((transformed[self.arm] - transformed[self.reference]).to_numpy())
        back = math.exp if ratio else float
        return {
            "claim": self.text,
            "stage": stage,
            self.reference_column: pairs[self.reference].median(),
            self.arm_column: pairs[self.arm].median(),
            "compared by": "ratio" if ratio else "difference",
            "mean": back(found.mean),
            "low": back(found.low),
            "high": back(found.high),
            "pairs": len(pairs),
            "verdict": self._verdict(found.low, found.high, len(pairs)),
        }

    reference_column = "reference (median)"
    arm_column = "arm (median)"

    def _verdict(self, low: float, high: float, pairs: int) -> str:
        if pairs < 2:
            return "not measured"
        if self.expects == "same":
            inside = -self.margin <= low and high <= self.margin
            return "reproduced" if inside else ("reversed" if high < -self.margin else "not reproduced")
        if low <= 0 <= high:
            return "not reproduced"
        return "reproduced" if (high < 0) == (self.expects == "lower") else "reversed"


def judged(table: pd.DataFrame, claims: Sequence[Claim], stages: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame([claim.judge(table, stage) for claim in claims for stage in stages])


def markdown(table: pd.DataFrame) -> str:
    # Neighbouring columns called low and high are shown as one interval.
    text = table_text(table)
    lines = [text.headers, ["--:" if numeric else ":--" for numeric in text.numeric], *text.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(table: pd.DataFrame, path: Path, quantities: Sequence[str], **facets: object) -> None:
    """One panel a quantity over steps: the mean over seeds with its standard error, by arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    shown = table[table["quantity"].isin(quantities)]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        options = {"col": "quantity", "col_wrap": 3, "col_order": list(quantities), **facets}
        grid = sns.relplot(
            shown, x="step", y="value", hue="arm", style="arm", kind="line", markers=True, dashes=False, height=2.4,
            aspect=1.3, errorbar="se", palette="colorblind", facet_kws={"sharey": False}, **options,
        )  # fmt: skip
        grid.set_titles("{col_name}").set_axis_labels("step", "")
        for axes, name in zip(grid.axes.flat, quantities, strict=False):
            if (shown.loc[shown["quantity"] == name, "value"] > 0).all() and "accuracy" not in name:
                axes.set_yscale("log")
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.savefig(path, dpi=75)
        plt.close(grid.figure)


def write_down(folder: Path, title: str, words: str, sections: Mapping[str, str], table: pd.DataFrame) -> Path:
    """The page and the long table in the script's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    table.round(9).to_csv(folder / "results.csv", index=False, float_format="%.6g")
    command = shlex.join(["python", f"examples/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    installed = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("torch", "python"))
    parts = [f"# {title}\n", words, f"- command: `{command}`\n- versions: {installed}\n"]
    for heading, text in sections.items():
        parts += [f"## {heading}\n", text]
    path = folder / "README.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path
