import json
from dataclasses import replace

import pandas as pd
import pytest
from runs import made_up_cells, made_up_results

from bn_lightning.analysis import report_text
from bn_lightning.analysis.catalog import find_study
from bn_lightning.analysis.results import write_json
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


def test_commands_survive_a_shell(tmp_path):
    cells = made_up_cells(made_up_results(seeds=2, max_steps=0))
    study = find_study("placement").only("none,before")
    folder = tmp_path / "my runs"
    assert report_text.commands(folder, study, cells) == [
        f"bn-lightning compare placement --max-steps=2000 --seeds=2 '--out={folder}_again' --arms=none,before",
        f"bn-lightning report '{folder}'",
        f"tensorboard --logdir '{folder}'",
    ]


@pytest.mark.parametrize("out", [["--out", "x"], ["--out=x"], []])
def test_the_command_as_it_was_typed_is_the_one_to_repeat_into_another_folder(tmp_path, out):
    cells = made_up_cells(made_up_results(seeds=2, max_steps=0))
    typed = ["compare", "placement", *out, "--model", "my.Net", "--redo", "--model.name=a b"]
    write_json(tmp_path / "run" / "study.json", {"command": typed})
    anew = report_text.commands(tmp_path / "run", STUDY, cells)[0]
    assert anew == (f"bn-lightning compare placement --model my.Net '--model.name=a b' --out={tmp_path / 'run_again'}")


@pytest.mark.parametrize("named", [[], ["--data-dir", "there"], ["--data", "my.Digits"]])
def test_the_data_that_the_environment_named_are_named_in_the_command(tmp_path, named):
    cells = made_up_cells(made_up_results(seeds=2, max_steps=0))
    said = {"command": ["compare", "depth", *named], "environment": {"BN_LIGHTNING_DATA": "/my data"}}
    write_json(tmp_path / "run" / "study.json", said)
    anew = report_text.commands(tmp_path / "run", STUDY, cells)[0]
    assert anew.startswith("bn-lightning compare" if named else "BN_LIGHTNING_DATA='/my data' bn-lightning compare")


def test_a_study_run_from_python_names_no_command_that_would_train_something_else(tmp_path):
    cells = made_up_cells(made_up_results(seeds=2, max_steps=0))
    words = "# The study was run from Python"
    assert report_text.commands(tmp_path, STUDY, cells)[0].startswith(words)
    named = replace(find_study("placement"), problem=replace(PROBLEM, name="my model"))
    assert report_text.commands(tmp_path, named, cells)[0].startswith(words)


def test_neither_seconds_nor_versions_of_outdated_cells_are_told_as_those_of_the_study(tmp_path):
    cells = made_up_cells(made_up_results(seeds=2, max_steps=0))
    cells.loc[1:, "status"] = "outdated"
    cells["seconds"] = [2.0, *[1_000.0] * (len(cells) - 1)]
    for cell, version in zip(cells.itertuples(), ("2", *"1" * (len(cells) - 1)), strict=True):
        write_json(tmp_path / cell.arm / f"seed_{cell.seed}" / "cell.json", {"versions": {"torch": version}})
    assert dict(report_text.setting(STUDY, cells))["Runs"] == f"1 of {len(cells)} finished, 2 s of training in all"
    assert dict(report_text.versions(tmp_path, cells)) == {"torch": "2"}


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
