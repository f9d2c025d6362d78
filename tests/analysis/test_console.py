import pandas as pd

from bn_lightning.analysis.console import as_table, show, show_comparison


def test_a_table_holds_headers_in_words_and_every_cell(capsys):
    show(as_table(pd.DataFrame({"arm": ["BN before"], "median_steps": [1137.0]}), "Steps"))
    said = capsys.readouterr().out
    for words in ("Steps", "arm", "median steps", "BN before", "1,137"):
        assert words in said


def test_nothing_to_compare_prints_the_arms_alone(capsys):
    show_comparison(pd.DataFrame({"arm": ["none"], "label": ["without"]}), pd.DataFrame())
    said = capsys.readouterr().out
    assert "without" in said
    assert "Against" not in said
