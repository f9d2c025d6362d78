import json
from pathlib import Path

import pandas as pd
import pytest
from runs import made_up_cells, made_up_results

from bn_lightning.analysis import report_text
from bn_lightning.analysis.study import Arm, Budget, Problem, Study

PROBLEM = Problem(name="digits", module=object, data=object, monitor="val_acc", budget=Budget(max_steps=2_000))
STUDY = Study(name="my study", question="?", arms=(Arm(name="none"),), reference="none", problem=PROBLEM)


@pytest.mark.parametrize(
    ("seeds", "tests", "smallest", "smallest_of_all"),
    [(6, 2, "0.031", "0.062"), (5, 6, "0.062", "0.38"), (20, 1, "1e-05", "1e-05")],
)
def test_the_smallest_p_is_that_of_so_many_seeds_and_comparisons(seeds, tests, smallest, smallest_of_all):
    cells = made_up_cells(made_up_results(seeds=seeds, max_steps=0))
    words = " ".join(report_text.reading(STUDY, cells, pd.DataFrame({"p": [0.5] * tests + [None]})))
    assert f"with {seeds} seeds it cannot be smaller than {smallest}." in words
    assert f"cannot be below {smallest_of_all}." in words
    assert ("Below six seeds" in words) == (seeds < 6)


def test_commands_survive_a_shell():
    cells = made_up_cells(made_up_results(seeds=2, max_steps=0))
    assert report_text.commands(Path("/tmp/my runs"), STUDY, cells) == [
        "bn-lightning compare 'my study' --max-steps=2000 --seeds=2 '--out=/tmp/my runs_again'",
        "bn-lightning report '/tmp/my runs'",
        "tensorboard --logdir '/tmp/my runs'",
    ]


def test_an_unfinished_cell_is_named_with_its_reason(tmp_path):
    cells = made_up_cells(made_up_results(seeds=2, max_steps=0))
    cells.loc[0, "status"] = "running"
    cells.loc[1, "status"] = "failed"
    (tmp_path / "none" / "seed_1").mkdir(parents=True)
    (tmp_path / "none" / "seed_1" / "cell.json").write_text(json.dumps({"error": "OSError: disk"}))
    assert list(report_text.troubled_cells(tmp_path, cells)) == [
        "none, seed 0: running; its results are missing here.",
        "none, seed 1: failed (OSError: disk); its results are missing here.",
    ]
