import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pandas as pd
import pytest
from browser import browse, screenshot
from PIL import Image
from runs import ARMS, made_up_cells, made_up_results, made_up_times

from bn_lightning.analysis.plots import plot_curves, plot_percentile_bands, plot_steps_to_target
from bn_lightning.analysis.report import write_report
from bn_lightning.analysis.study import Arm, Budget, Figure, Problem, Study
from bn_lightning.errors import NoEffectWarning

RESULTS = made_up_results(seeds=6, max_steps=300)
SUMMARY = pd.DataFrame({"arm": list(ARMS), "test accuracy": [0.91, 0.97, 0.98], "median_steps": [None, 150.0, 100.0]})
COMPARISONS = pd.DataFrame({"arm": ["before", "after"], "difference": [0.06, 0.07], "Holm p": [0.0625, 0.00001]})
FIGURES = (
    Figure(
        name="accuracy",
        caption="Test accuracy.",
        draw=lambda results, cells, study: plot_curves(results, "test_accuracy", target=0.95, arms=ARMS).figure,
    ),
    Figure(
        name="percentiles",
        caption="Percentiles of one unit's input.",
        draw=lambda results, cells, study: plot_percentile_bands(results, layer="net.4", unit=12, arms=ARMS)[0].figure,
    ),
    Figure(
        name="steps_to_target",
        caption="Steps to the target.",
        draw=lambda results, cells, study: plot_steps_to_target(made_up_times(results, 0.95), arms=ARMS).figure,
    ),
)


def made_up_study(**changes):
    problem = Problem(
        name="digits",
        module=object,
        data=object,
        monitor="test_accuracy",
        target=0.95,
        budget=Budget(max_steps=300, eval_every=50, seeds=6),
    )
    arms = tuple(
        Arm(name=name, label=label, factors={"placement": name}, options={"lr": 0.1}) for name, label in ARMS.items()
    )
    settings = {
        "name": "placement",
        "question": "Does it train better before or after the nonlinearity?",
        "source": "Ioffe & Szegedy (2015), section 4.1",
        "reference": "none",
        "arms": arms,
        "problem": problem,
        "figures": FIGURES,
    }
    return Study(**settings | changes)


def write(out, **changes):
    arguments = {
        "study": made_up_study(),
        "results": RESULTS,
        "cells": made_up_cells(RESULTS),
        "summary": SUMMARY,
        "comparisons": COMPARISONS,
        "figures": FIGURES[:1],
    }
    return write_report(out, **arguments | changes)


class Page(HTMLParser):
    """What a page refers to, its text, and whether its tags close in order."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.addresses, self.links, self.text, self.open, self.tags = [], [], "", [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        references = ("src", "href", "srcset", "action", "data", "poster")
        # A link is followed by a reader's click alone; all else a browser loads for itself.
        (self.links if tag == "a" else self.addresses).extend(v for name, v in attributes if name in references)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run"), figures=None)


def test_the_page_refers_to_nothing_outside_itself(page):
    text = page.read_text(encoding="utf-8")
    read = Page(text)
    assert len(read.addresses) == 4
    assert all(address.startswith("data:") for address in read.addresses)
    assert not {"script", "iframe", "object", "embed"} & set(read.tags)
    assert len(read.links) == len(ARMS) * 6
    assert all(address.startswith("http://localhost:6006/?runFilter=") for address in read.links)
    [style] = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    # A browser would refuse to load anything even if a reference slipped in.
    assert "default-src 'none'" in text


def test_every_figure_is_on_the_page_and_beside_it(page):
    addresses = [address for address in Page(page.read_text(encoding="utf-8")).addresses if len(address) > 100]
    assert len(addresses) == len(FIGURES)
    for address, figure in zip(addresses, FIGURES, strict=True):
        svg = base64.b64decode(address.removeprefix("data:image/svg+xml;base64,"))
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        with Image.open(page.parent / "figures" / f"{figure.name}.png") as picture:
            assert picture.size[0] >= 1400
        assert figure.caption in Page(page.read_text(encoding="utf-8")).text
    assert sorted(path.name for path in (page.parent / "figures").iterdir()) == sorted(f"{f.name}.png" for f in FIGURES)


def test_question_tables_setting_and_commands_are_in_words(page):
    text = Page(page.read_text(encoding="utf-8")).text
    for words in (
        "Does it train better before or after the nonlinearity?",
        "After Ioffe & Szegedy (2015), section 4.1",
        "median steps",
        "0.9700",
        "< 0.0001",
        "6 seeds per arm",
        "it cannot be smaller than 0.031",
        "the 2 comparisons of the table together, so the smallest of them cannot be below 0.062",
        "censored",
        "300 optimizer steps per run, evaluated every 50",
        "18 of 18 finished",
        "placement=before",
        "lr=0.1",
        f"bn-lightning report {page.parent}",
        f"tensorboard --logdir {page.parent}",
        "bn-lightning compare placement --max-steps=300 --seeds=6",
    ):
        assert words in text, words
    assert text.index("median steps") < text.index("Holm p") < text.index("Figure 1.") < text.index("What was run")
    assert "Read the result with this in mind" not in text


def test_writing_again_gives_the_same_page_and_leaves_no_other_file(tmp_path):
    first = write(tmp_path).read_bytes()
    assert write(tmp_path).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.html"]


def test_text_of_users_is_text_and_not_markup(tmp_path):
    study = made_up_study(
        name="<i>mine</i>",
        question="Is a < b & c?",
        arms=(Arm(name="<b>", label="<script>alert(1)</script>", options={"lr": "<u>"}),),
        reference="<b>",
    )
    figures = (Figure(name="one", caption="<img src=x>", draw=FIGURES[0].draw),)
    text = write(tmp_path, study=study, figures=figures, summary=pd.DataFrame({"<em>": ["<s>x</s>"]})).read_text(
        encoding="utf-8"
    )
    read = Page(text)
    assert not {"i", "script", "u", "em", "s"} & set(read.tags)
    assert len([tag for tag in read.tags if tag == "img"]) == 1
    for words in ("<i>mine</i>", "Is a < b & c?", "<b>", "<script>alert(1)</script>", "lr=<u>", "<em>", "<s>x</s>"):
        assert words in read.text, words


def test_failed_and_diverged_cells_are_named_above_the_result(tmp_path):
    results = made_up_results(seeds=6, max_steps=300, diverged=(("none", 2),))
    cells = made_up_cells(results)
    failed = (cells["arm"] == "after") & (cells["seed"] == 4)
    cells.loc[failed, ["status", "label"]] = ["failed", ""]
    record = tmp_path / "after" / "seed_4" / "cell.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"status": "failed", "error": "RuntimeError: out of <memory>"}))
    text = Page(write(tmp_path, results=results, cells=cells).read_text(encoding="utf-8")).text
    assert "none, seed 2: diverged" in text
    assert "after, seed 4: failed (RuntimeError: out of <memory>); its results are missing here." in text
    assert text.index("after, seed 4") < text.index("Result\n")
    assert "17 of 18 finished" in text
    assert "5 to 6 seeds per arm" in text


def test_versions_come_from_the_cells_and_differences_are_said(tmp_path):
    for seed, torch in enumerate(["2.6.0", "2.13.0"]):
        record = tmp_path / "none" / f"seed_{seed}" / "cell.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"versions": {"torch": torch, "python": "3.11.2"}}))
    (tmp_path / "none" / "seed_2").mkdir()
    (tmp_path / "none" / "seed_2" / "cell.json").write_text("{broken")
    text = Page(write(tmp_path).read_text(encoding="utf-8")).text
    assert "2.13.0, 2.6.0 (differs between cells)" in text
    assert "3.11.2" in text


def test_comparisons_show_what_each_compares_and_holm_counts_those_with_a_p(tmp_path):
    comparisons = pd.DataFrame(
        {
            "arm": ["before"] * 3,
            "reference": "none",
            "quantity": ["test_accuracy", "steps to target", "seconds to target"],
            "kind": ["difference", "ratio", "ratio"],
            "estimate": [0.04, 12.0, float("nan")],
            "low": [0.03, 10.0, float("nan")],
            "high": [0.05, 14.0, float("nan")],
            "method": "t",
            "p": [0.03125, 0.03125, float("nan")],
            "smallest_p": 0.03125,
            "verdict": ["better", "faster", "censored in 6 of 6 pairs"],
        }
    )
    text = Page(write(tmp_path, comparisons=comparisons).read_text(encoding="utf-8")).text
    for words in ("test accuracy, difference", "steps to target, ratio", "[10.00, 14.00]", "censored in 6 of 6 pairs"):
        assert words in text, words
    assert "the 2 comparisons of the table together, so the smallest of them cannot be below 0.062" in text
    assert "above one the arm is faster" in text
    assert "smallest p" not in text


def test_too_few_seeds_for_a_verdict_are_said(tmp_path):
    results = made_up_results(seeds=3, max_steps=100)
    text = Page(write(tmp_path, results=results, cells=made_up_cells(results)).read_text(encoding="utf-8")).text
    assert "it cannot be smaller than 0.25" in text
    assert "Below six seeds" in text


def test_a_study_without_target_figures_or_comparisons_is_still_reported(tmp_path):
    problem = Problem(
        name="mine", module=object, data=object, monitor="val_loss", mode="min", budget=Budget(max_steps=1_000)
    )
    text = Page(
        write(
            tmp_path, study=made_up_study(problem=problem, source=""), comparisons=COMPARISONS.iloc[:0], figures=()
        ).read_text(encoding="utf-8")
    ).text
    assert "val loss, lower is better" in text
    assert "There is nothing to compare: no arm besides the reference none has results." in text
    assert "This study draws no figures." in text
    assert "Target" not in text


def test_a_target_that_no_run_reached_is_said_above_the_result(tmp_path):
    problem = Problem(
        name="digits",
        module=object,
        data=object,
        monitor="test_accuracy",
        target=0.9999,
        budget=Budget(max_steps=300),
    )
    text = Page(write(tmp_path, study=made_up_study(problem=problem)).read_text(encoding="utf-8")).text
    assert text.index("No run reached the target, test_accuracy 0.9999") < text.index("Result\n")


def test_a_figure_that_cannot_be_drawn_is_named_and_warned_about(tmp_path):
    wrong = Figure(
        name="wrong", caption="Nothing.", draw=lambda results, *_: plot_curves(results, "test_acuracy").figure
    )
    with pytest.warns(NoEffectWarning, match=r"'placement' lacks a figure. Figure wrong .*'test_acuracy'"):
        path = write(tmp_path, figures=[FIGURES[0], wrong])
    read = Page(path.read_text(encoding="utf-8"))
    assert "Figure wrong could not be drawn: No results of quantity 'test_acuracy'" in read.text
    assert read.tags.count("img") == 1
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["accuracy.png"]


def test_words_that_no_picture_can_show_cost_their_figure_and_not_the_report(tmp_path):
    def draw(results, cells, study):
        return plot_curves(results, "test_accuracy", ylabel="x$^$").figure

    unreadable = Figure(name="unreadable", caption="Nothing.", draw=draw)
    with pytest.warns(NoEffectWarning, match="Figure unreadable could not be drawn: .*Exception"):
        path = write(tmp_path, figures=[unreadable, FIGURES[0]])
    assert Page(path.read_text(encoding="utf-8")).tags.count("img") == 1
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["accuracy.png"]


def test_a_study_without_figures_gets_those_that_suit_every_study(tmp_path):
    write(tmp_path, study=made_up_study(figures=()), figures=None)
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"metric", "steps_to_target", "differences"}


def test_two_figures_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"The figures accuracy, accuracy share a name"):
        write(tmp_path, figures=[FIGURES[0], FIGURES[0]])


def test_an_interrupted_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = write(tmp_path)
    old = path.read_bytes()

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, summary=SUMMARY.iloc[:1])
    assert path.read_bytes() == old
    assert not list(tmp_path.rglob("*.part"))


def test_no_display_and_no_pyplot_figure_is_needed(tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'tests/analysis'); sys.path.insert(0, 'tests'); import test_report\n"
        "from pathlib import Path\n"
        f"test_report.write(Path({str(tmp_path)!r}))\n"
        "import matplotlib.pyplot as plt; assert not plt.get_fignums(), plt.get_fignums()"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_lays_the_page_out_without_sideways_scrolling(page, tmp_path, width):
    # The page itself may run no script, so a frame of the asked width is measured from outside.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="{page.resolve().as_uri()}" style="width:{width}px;height:900px"></iframe>'
        "<style>iframe { border: 0 }</style><script>"
        "f.onload = () => { const d = f.contentDocument; const images = [...d.images];"
        "document.title = JSON.stringify([d.documentElement.scrollWidth, d.documentElement.scrollHeight,"
        "images.map(i => [i.naturalWidth > 0, Math.round(i.getBoundingClientRect().width)])]) }</script>"
    )
    dom = browse(frame.as_uri(), "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    scroll_width, scroll_height, images = json.loads(re.search(r"<title>(.*)</title>", dom)[1])
    assert scroll_width == width
    assert scroll_height > 2_000
    assert len(images) == len(FIGURES)
    for loaded, drawn_width in images:
        assert loaded
        assert drawn_width >= 500


def test_a_photograph_of_the_page_shows_the_arms_colours(page, tmp_path):
    with Image.open(screenshot(page, tmp_path / "page.png", width=1200, height=2600)) as photograph:
        colors = {color: count for count, color in photograph.convert("RGB").getcolors(maxcolors=1 << 24)}
    for wanted in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert colors.get(wanted, 0) > 200, wanted
