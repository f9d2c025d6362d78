import html
import re

import pandas as pd
import pytest
from runs import ARMS, made_up_cells, made_up_results

from bn_lightning.analysis.plots import plot_curves
from bn_lightning.analysis.report import write_report
from bn_lightning.analysis.report_markdown import Verbatim, markdown_path, markdown_text
from bn_lightning.analysis.study import Arm, Budget, Figure, Problem, Study

NASTY = ["<script>alert(1)</script>", "a|b", "*c* _d_ `e`", "![f](g)", "# h", "- i", "1. j", "k\nl", "~~m~~", "\\o"]


def shown(markdown: str) -> str:
    """What a reader sees of escaped text."""
    return html.unescape(re.sub(r"\\([^a-z0-9\s])", r"\1", markdown))


@pytest.mark.parametrize("text", NASTY)
def test_text_is_shown_as_itself_and_nothing_in_it_is_markup(text):
    written = markdown_text(text)
    # Every character that Markdown would act on stands behind a backslash.
    assert not re.search(r"(?<!\\)(?:\\\\)*[*_`\[\]|~$#]", written)
    assert not set("<>\n") & set(written)
    assert not re.match(r"[-=+]|\d+\. ", written)
    assert shown(written) == " ".join(text.split())


def test_what_is_markdown_already_stays():
    assert markdown_text(Verbatim("*a*")) == "*a*"
    assert markdown_path("figures/a (b).png") == "figures/a%20%28b%29.png"


@pytest.fixture
def page(tmp_path):
    results = made_up_results(seeds=2, max_steps=100)
    arms = tuple(Arm(name=name, label=f"<b>{label}</b>") for name, label in ARMS.items())
    problem = Problem(
        name="mine|yours",
        module=object,
        data=object,
        monitor="test_accuracy",
        target=0.99999,
        budget=Budget(max_steps=100),
    )
    study = Study(name="*s*", question="Is a < b?", arms=arms, reference="none", problem=problem)

    def draw(results, cells, study):
        return plot_curves(results, "test_accuracy", arms=ARMS).figure

    figure = Figure(name="the curve", caption="One [figure].", draw=draw)
    path = write_report(
        tmp_path,
        study=study,
        results=results,
        cells=made_up_cells(results),
        summary=pd.DataFrame({"arm": ["none", "a|b"], "accuracy": [0.5, 0.6]}),
        comparisons=pd.DataFrame({"arm": ["a|b"], "difference": [0.1], "p": [0.5]}),
        figures=[figure],
        form="markdown",
    )
    assert path == tmp_path / "report.md"
    return path


def test_tables_are_whole_and_follow_their_captions(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    start = lines.index("| arm | accuracy |")
    assert lines[start - 1] == ""
    assert lines[start + 1 : start + 4] == ["| --- | ---: |", "| none | 0.5000 |", r"| a\|b | 0.6000 |"]
    assert lines[start + 4] == ""
    columns = {len(re.split(r"(?<!\\)\|", line)) for line in lines if line.startswith("| ") and "seed\\_" in line}
    assert len(columns) == 1
    assert sum("](http://localhost:6006/?runFilter=" in line for line in lines) == 6


def test_the_page_says_what_the_other_one_says_and_shows_the_figures_beside_it(page):
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Is a &lt; b?\n")
    assert "![One \\[figure\\].](figures/the%20curve.png)" in text
    assert (page.parent / "figures" / "the curve.png").is_file()
    assert not (page.parent / "report.html").exists()
    for words in (r"Study \*s\*", r"mine\|yours", "2 seeds per arm", "## Reproduce it", "No run reached the target"):
        assert words in text, words
    assert f"\n    bn-lightning report {page.parent}\n" in text
    assert "<b>" not in text
    assert "&lt;b&gt;no norm&lt;/b&gt;" in text
    # Blank lines set blocks apart, and no block is torn apart by more than one.
    assert "\n\n\n\n" not in text


def test_another_form_is_refused(tmp_path):
    with pytest.raises(ValueError, match="written as 'html' or 'markdown', not as 'pdf'"):
        write_report(tmp_path, study=None, results=None, cells=None, summary=None, comparisons=None, form="pdf")
