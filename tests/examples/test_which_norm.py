import sys
from pathlib import Path

from bn_lightning.analysis.results import load_cells, load_results
from bn_lightning.cli import main

SCRIPT = Path(__file__).parents[2] / "examples" / "which_norm.py"


def test_the_command_runs_a_study_file_and_reports_it_again(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    out = tmp_path / "run"
    short = ["--max-steps=50", "--eval-every=25", "--seeds=1", "--jobs=1"]
    assert main(["compare", str(SCRIPT), *short, f"--out={out}"]) == 0
    assert load_cells(out)["arm"].tolist() == ["none", "batch", "layer", "group", "rms"]
    final = load_results(out).query("quantity == 'test_accuracy' and step == 50").set_index("arm")["value"]
    assert final["batch"] > final["none"] + 0.3
    assert main(["report", str(out)]) == 0
    assert "which_norm.py" in (out / "report.html").read_text(encoding="utf-8")
    assert "could not be used" not in capsys.readouterr().out


def test_the_command_names_the_files_near_one_that_is_not_there(capsys):
    assert main(["compare", str(SCRIPT.with_name("wich_norm.py"))]) == 2
    assert "Did you mean 'which_norm.py'" in capsys.readouterr().err
