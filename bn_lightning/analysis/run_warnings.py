"""What a run warns of: cells that failed, that are trained again, that are kept from other versions."""

import warnings
from collections.abc import Sequence

import bn_lightning.errors as package_errors
from bn_lightning.analysis.cell import Cell, Outcome
from bn_lightning.analysis.configuration import versions
from bn_lightning.analysis.run_folder import RunFolder


class CellsFailedWarning(UserWarning):
    """Some cells of a study ended with an error; the others were kept."""


class ConfigurationChangedWarning(UserWarning):
    """Finished cells of a run folder were trained otherwise than asked, and are trained again."""


class OtherVersionsWarning(UserWarning):
    """Finished cells of a run folder were trained with other versions than those that are installed now."""


def warn_of_changes(folder: RunFolder, todo: Sequence[Cell]) -> bool:
    """Warn of finished cells that are trained again because their configuration changed, and say what did.

    Args:
        folder: The run folder.
        todo: The cells to train.

    Returns:
        Whether there are any.
    """
    changed: set[str] = set()
    count = 0
    for cell in todo:
        record = folder.record(cell.key)
        if record.get("status") == "done" and record.get("configuration_hash") != cell.configuration_hash:
            before = record.get("configuration", {})
            changed |= {name for name, value in cell.configuration.items() if before.get(name) != value}
            count += 1
    if count:
        warnings.warn(
            f"{count} finished cells in {folder.path} were trained otherwise ({', '.join(sorted(changed))} changed), "
            "so they are trained again. To keep both, name another folder by out (--out).",
            ConfigurationChangedWarning,
            stacklevel=3,
        )
    return count > 0


def warn_of_versions(folder: RunFolder, cells: Sequence[Cell], todo: Sequence[Cell]) -> None:
    """Warn of finished cells that are kept though other versions of the libraries are installed now.

    Args:
        folder: The run folder.
        cells: All cells.
        todo: Those to train.
    """
    missing, now = {cell.key for cell in todo}, versions()
    differ: dict[str, set[str]] = {}
    kept = 0
    for cell in cells:
        if cell.key in missing:
            continue
        then = folder.record(cell.key).get("versions", {})
        others = {name: then[name] for name in now.keys() & then.keys() if then[name] != now[name]}
        kept += bool(others)
        for name, version in others.items():
            differ.setdefault(name, set()).add(version)
    if kept:
        said = ", ".join(f"{name} {' and '.join(sorted(old))}, now {now[name]}" for name, old in sorted(differ.items()))
        warnings.warn(
            f"{kept} finished cells in {folder.path} were trained with other versions and are kept: {said}. To train "
            "them again, use redo=True (--redo); to keep both, name another folder by out (--out).",
            OtherVersionsWarning,
            stacklevel=3,
        )


def warn_of_outcomes(outcomes: Sequence[Outcome], failures: Sequence[Outcome], total: int) -> None:
    """Warn once of what the package warned of in the cells; what others warned of stays in the cells' files.

    Args:
        outcomes: How the cells that were run ended.
        failures: Those that failed.
        total: Number of all cells of the study.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        for name, text in outcome.warnings:
            if hasattr(package_errors, name):
                found.setdefault((name, text), []).append(f"{outcome.arm}, seed {outcome.seed}")
    for (name, text), cells in found.items():
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        warnings.warn(f"{text} (cell {cells[0]}{more})", getattr(package_errors, name), stacklevel=3)
    if failures:
        said = "; ".join(f"{cell.arm}, seed {cell.seed}: {cell.error}" for cell in failures)
        text = f"{len(failures)} of {total} cells failed: {said}. Their cell.json holds the tracebacks."
        warnings.warn(text, CellsFailedWarning, stacklevel=3)
