"""The folder of a run: whose it is, which cells are finished, where each one keeps its files."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bn_lightning.analysis.process_lock import held
from bn_lightning.analysis.results import (
    CELL_COLUMNS,
    read_results,
    results_table,
    write_json,
    write_table,
)
from bn_lightning.analysis.study import Study
from bn_lightning.errors import RunFolderError

Key = tuple[str, int]  # arm and seed


@dataclass(frozen=True)
class RunFolder:
    """The files of one study's cells.

    `out/study.json` says whose folder it is; `out/<arm>/seed_<k>/` holds a cell's `cell.json`, `results.csv` and
    TensorBoard logs; `out/results.csv` and `out/cells.csv` gather them.

    Args:
        path: The folder.
    """

    path: Path

    def claim(self, study: Study, *, extra: dict[str, Any] | None = None) -> None:
        """Make the folder `study`'s, or check that it is.

        Args:
            study: The study.
            extra: Further entries for `study.json`.

        Raises:
            RunFolderError: If it belongs to another study or problem, or holds files of something else.
        """
        if self.path.is_file():
            raise RunFolderError(
                f"{self.path} is a file, not a folder for results. Name another folder by out (--out)."
            )
        mine = {"study": study.name, "problem": study.problem.name}
        # Hidden files do not count: another process that claims the folder at this moment makes some.
        foreign = self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir())
        if foreign and self.owner() is None:
            raise RunFolderError(
                f"{self.path} holds files but no study.json, so it is no run folder. Name a new or empty folder by "
                "out (--out)."
            )
        with held(self.path, "study"):
            owner = self.owner()
            if owner is not None and {name: owner.get(name) for name in mine} != mine:
                raise RunFolderError(
                    f"{self.path} belongs to the study {owner.get('study')!r} on the problem {owner.get('problem')!r}; "
                    f"asked was {study.name!r} on {study.problem.name!r}. Name another folder by out (--out), or "
                    "remove this one."
                )
            write_json(self.path / "study.json", {**mine, "question": study.question, **(extra or {})})

    def owner(self) -> dict[str, Any] | None:
        """What `study.json` says, or None if there is no such file.

        Returns:
            Its content.

        Raises:
            RunFolderError: If the file cannot be read.
        """
        path = self.path / "study.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} cannot be read: {error}. Name another folder by out (--out).") from error
        if not isinstance(content, dict):
            raise RunFolderError(f"{path} is not a study's. Name another folder by out (--out).")
        return content

    def cell(self, key: Key) -> Path:
        """Folder of one cell."""
        return self.path / key[0] / f"seed_{key[1]}"

    def record(self, key: Key) -> dict[str, Any]:
        """What `cell.json` says, or nothing if the cell was never begun or its file is broken."""
        try:
            content = json.loads((self.cell(key) / "cell.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _record_against(self, key: Key, configuration_hash: str) -> dict[str, Any]:
        """What `cell.json` says, with the status "outdated" if it is of another configuration."""
        record = self.record(key)
        outdated = record and record.get("configuration_hash") != configuration_hash
        return {**record, "status": "outdated"} if outdated else record

    def is_finished(self, key: Key, configuration_hash: str) -> bool:
        """Whether a cell was trained to its end with this very configuration."""
        record = self.record(key)
        done = record.get("status") == "done" and record.get("configuration_hash") == configuration_hash
        return done and self._is_whole(key, record)

    def _is_whole(self, key: Key, record: dict[str, Any]) -> bool:
        """Whether a finished cell's results are as they were written; else the cell is to be trained again."""
        path = self.cell(key) / "results.csv"
        try:
            text = path.read_bytes()
        except OSError:
            return False
        return text.endswith(b"\n") and text.count(b"\n") == record.get("rows", text.count(b"\n") - 1) + 1

    def begin(self, key: Key, record: dict[str, Any]) -> Path:
        """Empty a cell's folder, so that no old log mixes with the new, and write that it has begun.

        Args:
            key: Arm and seed.
            record: Content of `cell.json`.

        Returns:
            The cell's folder.
        """
        folder = self.cell(key)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "cell.json", record)
        return folder

    def gather(self, study: Study, hashes: Mapping[Key, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Read the cells' files, write `results.csv` and `cells.csv`, and return both tables.

        A cell that was last trained with another configuration is "outdated": none of its results are in the table.

        Args:
            study: The study.
            hashes: The cells, in the order of the tables, with the hashes of their configurations.

        Returns:
            The long table of the finished cells' results, and one row per cell that was begun.
        """
        tables, cells = [results_table([])], []
        for key, configuration_hash in hashes.items():
            record = self._record_against(key, configuration_hash)
            if not record:
                continue
            if record.get("status") == "done" and self._is_whole(key, record):
                try:
                    tables.append(read_results(self.cell(key) / "results.csv"))
                except RunFolderError:
                    if self._is_whole(key, record):
                        raise
                    # Another process began the cell again at this moment.
                    record = self._record_against(key, configuration_hash) or record
            cells.append(
                {
                    "study": study.name,
                    "arm": key[0],
                    "seed": key[1],
                    "factors": json.dumps(record.get("factors", {})),
                    **{name: record.get(name) for name in ("label", "status", "seconds", "configuration_hash")},
                }
            )
        kept = [table for table in tables if len(table)] or tables[:1]
        results = pd.concat(kept, ignore_index=True)
        table = pd.DataFrame(cells, columns=list(CELL_COLUMNS)).astype({"seed": "int64", "seconds": "float64"})
        write_table(self.path / "results.csv", results)
        write_table(self.path / "cells.csv", table)
        return results, table
