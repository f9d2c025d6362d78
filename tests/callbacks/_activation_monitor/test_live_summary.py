"""The table on the console, beside Lightning's bars, without one, and in a log file."""

import io
import re
import sys

import pytest
import torch
from monitored import SmallNet, quiet_trainer, small_data
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console
from torch import nn

from bn_lightning.callbacks._activation_monitor import live_summary as _live_summary
from bn_lightning.callbacks._activation_monitor.live_summary import LiveSummary, summary_table
from bn_lightning.callbacks._activation_monitor.series import Series
from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.functional.activations import empty_summary
from bn_lightning.functional.summarise import summarise

TITLE = r"ActivationMonitor at step (\d+)"


def recording(*, terminal, width=120, height=40):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=height, _environ={"TERM": "xterm"})


def fit(tmp_path, monitor, module=None, **options):
    torch.manual_seed(0)
    callbacks = [monitor, *options.pop("callbacks", [])]
    trainer = quiet_trainer(tmp_path, **{"callbacks": callbacks, "max_epochs": 2, **options})
    trainer.fit(module or SmallNet(), small_data())
    return trainer


def titles(text):
    return [int(step) for step in re.findall(TITLE, plain(text))]


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def screen(text, height=60):
    """What a terminal shows in the end: as much of one as rich and tqdm use."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            row, column = row + 1, 0
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b"):
            number = int(re.sub(r"\D", "", token) or 1)
            if token.endswith("A"):
                row = max(0, row - number)
            elif token.endswith("K"):
                lines[row] = ""
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
        lines += [""] * (row + 1 - len(lines))
    return "\n".join(line.rstrip() for line in lines)


def test_without_a_bar_one_table_is_redrawn_in_place(tmp_path):
    console, monitor = recording(terminal=True), ActivationMonitor(every_n_steps=3, console=True)
    monitor.console = console
    fit(tmp_path, monitor)
    text = console.file.getvalue()
    assert sorted(set(titles(text))) == [0, 3, 6, 9]
    assert titles(screen(text)) == [9]
    assert "net.0" in screen(text)
    values = monitor.table().set_index(["step", "layer", "quantity"])["value"]
    row = next(line for line in screen(text).splitlines() if "net.3" in line).split()
    assert row[1] == f"{values[9, 'net.3', 'preactivation_mean']:.3g}"
    assert row[2] == f"{values[9, 'net.3', 'preactivation_var'] ** 0.5:.3g}"
    assert sys.stdout is not console.file


def test_text_that_is_printed_meanwhile_stays(tmp_path, monkeypatch):
    class Talks(SmallNet):
        def on_train_batch_end(self, *args):
            sys.stdout.write(f"loss at {self.trainer.global_step}\n")

    console = recording(terminal=True)
    fit(tmp_path, ActivationMonitor(every_n_steps=3, console=console), Talks())
    shown = screen(console.file.getvalue())
    assert [f"loss at {step}" in shown for step in range(1, 13)] == [True] * 12
    assert titles(shown) == [9]


def test_under_a_rich_bar_the_table_belongs_to_the_bars_display(tmp_path):
    file = io.StringIO()
    options = {"file": file, "force_terminal": True, "width": 120, "height": 40, "_environ": {"TERM": "xterm"}}
    bar = RichProgressBar(console_kwargs=options, leave=True)
    fit(tmp_path, ActivationMonitor(every_n_steps=3, console=True), callbacks=[bar], enable_progress_bar=True)
    text = file.getvalue()
    shown = screen(text)
    assert set(titles(text)) == {0, 3, 6, 9}
    assert titles(shown)[-1] == 9
    assert "Epoch 1/1" in shown
    assert shown.index("Epoch 1/1") < shown.rindex("net.0")


def test_beside_the_default_bar_tables_are_printed_above_it_now_and_then(tmp_path, monkeypatch):
    console = recording(terminal=True)
    monkeypatch.setattr(sys, "stdout", console.file)
    options = {"callbacks": [TQDMProgressBar()], "enable_progress_bar": True}
    fit(tmp_path, ActivationMonitor(every_n_steps=3, console=console), **options)
    text = console.file.getvalue()
    assert titles(text) == [0, 9]  # the first, none within ten seconds, and the last
    assert "Epoch 1: 100%" in screen(text)
    before = len(text)
    monkeypatch.setattr(_live_summary, "SECONDS_BETWEEN", 0)
    fit(
        tmp_path,
        ActivationMonitor(every_n_steps=3, console=console),
        callbacks=[TQDMProgressBar()],
        enable_progress_bar=True,
    )
    assert titles(console.file.getvalue()[before:]) == [0, 3, 6, 9]
    lines = screen(console.file.getvalue()).splitlines()
    assert not [line for line in lines if "Epoch" in line and ("net." in line or "Activation" in line)]


@pytest.mark.parametrize("bar", [None, TQDMProgressBar, RichProgressBar])
def test_a_log_file_gets_one_table_at_the_end(tmp_path, bar):
    console = recording(terminal=False)
    callbacks = [bar()] if bar else []
    monitor = ActivationMonitor(every_n_steps=3, console=console)
    fit(tmp_path, monitor, callbacks=callbacks, enable_progress_bar=bar is not None)
    text = console.file.getvalue()
    assert titles(text) == [9]
    assert "\x1b" not in text


def test_the_last_table_stays_after_ctrl_c(tmp_path):
    class Fails(SmallNet):
        def on_after_backward(self):
            if self.trainer.global_step == 5:
                raise RuntimeError("stop")

    out, err = sys.stdout, sys.stderr
    for terminal in (True, False):
        console = recording(terminal=terminal)
        with pytest.raises(RuntimeError, match="stop"):
            fit(tmp_path, ActivationMonitor(every_n_steps=3, console=console), Fails())
        assert titles(screen(console.file.getvalue())) == [3]
        assert (sys.stdout, sys.stderr) == (out, err)


def test_two_monitors_share_a_terminal(tmp_path):
    console = recording(terminal=True)
    monitors = [ActivationMonitor(every_n_steps=n, console=console, name=name) for n, name in ((3, "a"), (4, "b"))]
    fit(tmp_path, monitors[0], callbacks=monitors[1:])
    shown = screen(console.file.getvalue())
    assert "ActivationMonitor a at step 9" in shown
    assert "ActivationMonitor b at step 8" in shown


def test_other_ranks_show_nothing(tmp_path):
    class Other:
        is_global_zero = False

    console = recording(terminal=True)
    summary = LiveSummary((50,), console=console, title="x")
    summary.show(Other(), 0, [(Series("output", "a", 1), summary_of(torch.zeros(4)))])
    assert console.file.getvalue() == ""


def summary_of(x, channels=1):
    number = torch.arange(len(x)) % channels
    kept = x[x.isfinite()]
    options = {"channels": channels, "elements": len(x)}
    if len(kept) < len(x):
        options["nonfinite"] = int((~x.isfinite()).sum())
    return summarise(x, number, **options)


def test_of_many_layers_the_most_conspicuous_are_shown():
    torch.manual_seed(0)
    rows = [(Series("preactivation", f"calm{at}", 1, "tanh"), summary_of(torch.randn(200))) for at in range(30)]
    rows[17] = Series("preactivation", "flat", 1, "tanh"), summary_of(9 + torch.randn(200))
    rows[11] = Series("preactivation", "tiny", 1, "tanh"), summary_of(1e-4 * torch.randn(200))
    rows += [(Series("preactivation_gradient", "calm0", 1), summary_of(torch.full((9,), 1e9)))]
    rows += [(Series("output", "absent", 1), empty_summary(1))]
    table = summary_table(rows, (15, 50, 85), title="t")
    names = list(table.columns[0].cells)
    assert names[:2] == ["flat", "tiny"]
    assert len(names) == 20
    assert table.caption == "10 more layers, less conspicuous, are left out"
    assert next(iter(table.columns[6].cells)) == "100%"
    assert summary_table(rows[:3], (50,), title="t").caption is None


def test_all_columns_fit_into_eighty():
    rows = [
        (Series("preactivation", f"layers.{at}.linear", 1, "tanh"), summary_of(-torch.rand(99) / 30)) for at in (8, 9)
    ]
    console = recording(terminal=False, width=80)
    console.print(summary_table(rows, (15, 50, 85), title="t"))
    lines = console.file.getvalue().splitlines()
    assert lines[1].split() == ["layer", "mean", "std", "p15", "p50", "p85", "sat.", "dead", "NaN/inf"]
    assert [line for line in lines if line.startswith("layers.8.li")]
    assert not [line for line in lines if "…" in line or len(line) > 80]


def test_kinds_are_told_apart_where_there_are_several():
    x = summary_of(torch.ones(4))
    rows = [(Series("preactivation", "a", 1, "relu"), x), (Series("activation", "a", 1), x)]
    table = summary_table(rows, (50,), title="t")
    assert list(table.columns[0].cells) == ["a preactivation", "a activation"]
    assert list(table.columns[4].cells) == ["0%", ""]


def test_a_low_terminal_gets_fewer_rows(tmp_path):
    class Deep(SmallNet):
        def __init__(self):
            super().__init__(dropout=0)
            hidden = [layer for _ in range(14) for layer in (nn.Linear(6, 6), nn.Tanh())]
            self.net = nn.Sequential(*hidden, nn.Linear(6, 3))

    console = recording(terminal=True, height=20)
    fit(tmp_path, ActivationMonitor(every_n_steps=20, console=console), Deep(), max_epochs=1)
    assert "3 more layers, less conspicuous, are left out" in plain(console.file.getvalue())
