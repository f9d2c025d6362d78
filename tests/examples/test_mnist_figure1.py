import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "mnist_figure1.py"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    spec = importlib.util.spec_from_file_location("mnist_figure1", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "GRID", (0.5, 2.0))
    return module


def test_the_whole_example_on_the_embedded_digits_in_short(example, tmp_path, capsys):
    settings = {"steps": 50, "eval_every": 25, "seeds": 1, "jobs": 1, "tune_steps": 25, "lr": 1.0}
    example.main(**settings, out=str(tmp_path / "runs"), results=str(tmp_path / "tables"))
    page = (tmp_path / "tables" / "README.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    for words in ("One learning rate, 1, for all arms", "tuned per arm", "| 97% | BN after |", "commit:", "torch"):
        assert words in page
    # Three arms and three targets or percentiles in each of two settings; a row per arm and rate of the grid.
    lines = page.splitlines()
    assert sum(line.startswith(("| 90%", "| 95%", "| 97%")) for line in lines) == 18
    assert sum(line.startswith(("| none | ", "| before | ", "| after | ")) for line in lines) == 6
    drifts = [line for line in lines if line.startswith(("| without BN | ", "| BN before | ", "| BN after | "))]
    assert len(drifts) == 2 * (3 + 9)
    for setting in ("one_rate", "tuned_rates"):
        assert f"![percentiles]({setting}_percentiles.png)" in page
        assert (tmp_path / "tables" / f"{setting}_percentiles.png").is_file()
