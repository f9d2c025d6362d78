import pytest
from tiny import TinyData, TinyNet, tiny_study

from bn_lightning.analysis import load_results, run_study
from bn_lightning.errors import UnknownNameError


def test_one_call_trains_writes_the_files_and_returns_the_table(tmp_path):
    results = run_study(tiny_study(), out=tmp_path, seeds=1, progress=False)
    assert list(results.columns) == ["study", "arm", "seed", "step", "layer", "quantity", "value"]
    assert load_results(tmp_path).equals(results)
    assert {"results.csv", "cells.csv", "report.html", "study.json"} <= {path.name for path in tmp_path.iterdir()}


def test_a_model_and_data_of_the_user(tmp_path):
    results = run_study(
        "placement",
        arms=["none", "before*"],
        model=lambda: TinyNet(lr=0.05),
        data=TinyData,
        monitor="val_loss",
        mode="min",
        max_steps=8,
        seeds=1,
        out=tmp_path,
        progress=False,
        report=False,
        trainer_options={"accelerator": "cpu"},
    )
    assert set(results["arm"]) == {"none", "before", "before_plain"}
    assert not (tmp_path / "report.html").exists()


def test_an_unknown_study_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="no study 'plasement'"):
        run_study("plasement", out=tmp_path)


def test_progress_is_shown_and_failures_with_it(tmp_path, capsys):
    run_study(tiny_study(), out=tmp_path, seeds=1, report=False)
    assert "2/2 cells" in capsys.readouterr().out
