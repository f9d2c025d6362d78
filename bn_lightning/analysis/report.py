"""One page that says what a comparison asked, what it found, how sure that is, and how to run it again."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from bn_lightning.analysis.number_format import table_text
from bn_lightning.analysis.plots.saving import figure_data_uri, figure_png
from bn_lightning.analysis.plots.standard import standard_figures
from bn_lightning.analysis.report_markdown import Verbatim, markdown_path, markdown_text
from bn_lightning.analysis.report_runs import run_links, unreached_target
from bn_lightning.analysis.report_text import (
    arms_table,
    commands,
    comparisons_table,
    reading,
    setting,
    troubled_cells,
    versions,
)
from bn_lightning.analysis.study import Figure, Study
from bn_lightning.errors import NoEffectWarning


@dataclass(frozen=True)
class Picture:
    """A drawn figure, ready for the page.

    Args:
        name: Name of its file under `figures/`, without the ending.
        caption: What it shows, in words.
        address: The picture itself as a `data:` address.
        width: Natural width in CSS pixels.
        height: Natural height in CSS pixels.
    """

    name: str
    caption: str
    address: str
    width: int
    height: int


def write_report(
    out: str | Path,
    *,
    study: Study,
    results: pd.DataFrame,
    cells: pd.DataFrame,
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    figures: Sequence[Figure] | None = None,
    form: Literal["html", "markdown"] = "html",
    remarks: Sequence[str] = (),
) -> Path:
    """Write a study's report into its run folder, as one page that needs no other file and no network.

    Writes `report.html` and, for every figure, `figures/<name>.png` under `out`; each file is replaced in one step. As
    Markdown it is `report.md`, which shows the figures from their files. A
    figure that cannot be drawn from these results (its quantity was not recorded) is left out, named on the page
    with the reason, and warned about; cells that failed or diverged are named above the result.

    Args:
        out: The run folder.
        study: The study; its question, arms and figures are shown.
        results: Long table with the columns study, arm, seed, step, layer, quantity and value.
        cells: One row per cell with the columns arm, seed, label, status and seconds.
        summary: One row per arm, shown first; any columns, their names being words.
        comparisons: One row per comparison with the reference arm; any columns.
        figures: What to draw in place of the study's figures; a study without any gets those that suit every study.
        form: "html" or "markdown".
        remarks: What else is to be said above the result.

    Returns:
        Path of the page.

    Raises:
        ValueError: If two figures have the same name, or there is no such form.
    """
    if form not in _FILES:
        raise ValueError(f"A report is written as {' or '.join(map(repr, _FILES))}, not as {form!r}.")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = tuple(figures if figures is not None else study.figures or standard_figures(study))
    names = [figure.name for figure in wanted]
    if len(set(names)) < len(names):
        raise ValueError(f"The figures {', '.join(names)} share a name, so one file would replace another.")
    pictures, failures = _draw(folder / "figures", wanted, results, cells, study)
    troubles = [*troubled_cells(folder, cells), *unreached_target(results, study), *remarks, *failures]
    page = _template(form).render(
        study=study,
        reference=study.reference,
        troubles=troubles,
        troubles_headline="Read the result with this in mind:",
        summary=table_text(summary),
        summary_caption="One row per arm.",
        comparisons=table_text(comparisons_table(comparisons)),
        comparisons_caption=f"Every arm against the reference, {study.reference}, in pairs of equal seeds.",
        reading=list(reading(study, cells, comparisons)),
        pictures=pictures,
        setting=list(setting(study, cells)),
        arms=table_text(arms_table(study)),
        cells=table_text(cells.drop(columns=["study", "factors"], errors="ignore")),
        links=list(run_links(cells)),
        commands=commands(folder, study, cells),
        versions=list(versions(folder, cells)),
    )
    path = folder / _FILES[form][0]
    _replace(path, page.encode("utf-8"))
    return path


_FILES = {"html": ("report.html", "report.html.j2"), "markdown": ("report.md", "report.md.j2")}


def _template(form: str) -> Any:
    loader = PackageLoader("bn_lightning.analysis", ".")
    if form == "html":
        environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    else:
        # Whatever is put in is escaped, as autoescape does for HTML, so that no name is taken for markup.
        environment = Environment(
            loader=loader, autoescape=False, undefined=StrictUndefined, finalize=markdown_text, trim_blocks=True
        )
        environment.filters.update(verbatim=Verbatim, path=markdown_path)
    return environment.get_template(_FILES[form][1])


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that no reader finds half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _draw(
    folder: Path, figures: Sequence[Figure], results: pd.DataFrame, cells: pd.DataFrame, study: Study
) -> tuple[list[Picture], list[str]]:
    """Draw what can be drawn, and say what could not."""
    pictures, failures = [], []
    for figure in figures:
        try:
            drawn = figure.draw(results, cells, study)
            # Text is laid out only now, and a label that is no valid formula fails there.
            png, address = figure_png(drawn), figure_data_uri(drawn)
        except Exception as reason:  # a user's figure may raise whatever it likes
            said = " ".join(str(reason).split())  # matplotlib points at the place in a formula over several lines
            said = said if isinstance(reason, ValueError) else f"{type(reason).__name__}: {said}"
            failures.append(f"Figure {figure.name} could not be drawn: {said}")
            warnings.warn(f"The report of {study.name!r} lacks a figure. {failures[-1]}", NoEffectWarning, stacklevel=3)
            continue
        folder.mkdir(exist_ok=True)
        _replace(folder / f"{figure.name}.png", png)
        width, height = (round(96 * inches) for inches in drawn.get_size_inches())
        pictures.append(Picture(figure.name, figure.caption, address, width, height))
    return pictures, failures
