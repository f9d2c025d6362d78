import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from tensorboard_server import tensorboard
from tiny import TinyData, TinyNet, modified

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.cli import main
from bn_lightning.surgery.plan import InsertionPlan

TINY = ["--model=tiny.TinyNet", "--data=tiny.TinyData", "--monitor=val_loss", "--mode=min", "--max-steps=10"]


@pytest.fixture(autouse=True)
def _embedded_digits(monkeypatch):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)


def compare(out, *more):
    return main(["compare", "placement", *TINY, "--seeds=1", "--jobs=1", f"--out={out}", *more])


def test_the_demo_prints_its_table_its_report_and_the_line_for_tensorboard(tmp_path, capsys):
    out = tmp_path / "run"
    # Below 100 steps there are no figures of the recordings.
    arguments = ["demo", "--max-steps=100", "--seeds=1", "--jobs=1", f"--out={out}"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for words in ("without BN", "BN before", "BN after", "test accuracy", "steps to target", "seconds to target"):
        assert words in said
    assert f"tensorboard --logdir {out}\n" in said
    assert f"{out / 'report.html'}\n" in said
    assert (out / "report.html").is_file()
    assert len(list((out / "figures").glob("*.png"))) == 4
    assert list((out / "before" / "seed_0").glob("events.out.tfevents.*"))
    with tensorboard(out, runs={"none/seed_0", "before/seed_0", "after/seed_0"}) as ask:
        scalars, layout = ask("plugin/scalars/tags"), ask("plugin/custom_scalars/layout")
        images = ask("plugin/images/tags")
    charts = {category["title"]: category["chart"] for category in layout["category"]}
    titles = [chart["title"] for chart in charts["pre-activation percentiles"]]
    assert sorted(titles) == ["00.net.0", "01.net.2", "02.net.4"]
    for run in ("none/seed_0", "before/seed_0", "after/seed_0"):
        assert {"test_accuracy", "preactivation_p50/02.net.4", "preactivation_typical_p50/02.net.4"} <= set(
            scalars[run]
        )
        assert {"preactivation_heatmap/std", "preactivation_typical/02.net.4"} <= set(images[run])
    before = modified(out)
    assert main(arguments) == 0
    assert "0 cells trained, 3 were finished already" in capsys.readouterr().out
    assert modified(out) == before


def test_a_users_model_by_import_path_with_arguments(tmp_path, capsys):
    assert compare(tmp_path / "run", "--model.lr=0.25", "--target=0.01") == 0
    assert "BN after" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "none" / "seed_0" / "cell.json").read_text())
    assert record["configuration"]["module"]["with"]["lr"] == 0.25
    assert record["configuration"]["problem"] == "TinyNet"
    assert json.loads((tmp_path / "run" / "study.json").read_text())["target"] == 0.01


def test_chosen_arms_alone_are_trained_and_the_report_says_so(tmp_path):
    assert compare(tmp_path / "run", "--arms=before*") == 0
    assert {path.split("/")[0] for path in modified(tmp_path / "run")} == {"before", "before_plain"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "compare placement --model=tiny.TinyNet" in page
    assert "--arms=before*" in page
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").read_text() == page


def test_every_arm_gets_a_rate_of_a_grid_chosen_on_held_out_data(tmp_path, capsys):
    asked = ("--arms=none,before", "--rates=[0.01, 2]", "--rate-steps=4")
    assert compare(tmp_path / "run", *asked) == 0
    said = capsys.readouterr().out
    assert "Learning rates tried on held-out training data" in said
    tried = tmp_path / "run_rates"
    assert sorted(path.name for path in tried.iterdir() if path.is_dir() and path.name[0] != ".") == [
        "before_x0.01", "before_x2", "none_x0.01", "none_x2",
    ]  # fmt: skip
    factors = json.loads((tmp_path / "run" / "none" / "seed_0" / "cell.json").read_text())["factors"]
    assert factors["rate_multiple"] in (0.01, 2)
    before = modified(tmp_path / "run"), modified(tried)
    assert compare(tmp_path / "run", *asked) == 0
    assert (modified(tmp_path / "run"), modified(tried)) == before
    assert compare(tmp_path / "run", *asked, "--redo") == 0
    assert not modified(tried).items() & before[1].items()
    assert "rate_multiple" in (tmp_path / "run" / "report.html").read_text()


def test_finished_cells_are_trained_again_when_told_to(tmp_path):
    assert compare(tmp_path / "run") == 0
    before = modified(tmp_path / "run")
    assert compare(tmp_path / "run") == 0
    assert modified(tmp_path / "run") == before
    assert compare(tmp_path / "run", "--redo") == 0
    assert not set(modified(tmp_path / "run").items()) & set(before.items())


def test_a_failed_cell_is_named_and_the_status_is_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tiny.TinyNet.validation_step", lambda self, batch, batch_idx: 1 / 0)
    assert compare(tmp_path / "run") == 1
    trouble = capsys.readouterr().err
    for arm in ("none", "before", "after"):
        assert f"failed: {arm}, seed 0: ZeroDivisionError: division by zero" in trouble
    assert "Traceback" not in trouble


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "placment"], "no study 'placment'. Did you mean 'placement'"),
        (["compare", "placement", "--model=tiny.TinyNet"], "missing: data, monitor"),
        (["compare", "placement", "--arms=none,befor"], "no arm of study 'placement' 'befor'. Did you mean 'before'"),
        (["compare", "placement", "--engine=loki"], "no engine 'loki'. Did you mean 'loky'"),
        (["compare", "placement", "--seeds=0"], "seeds is how many"),
        (["compare", "placement", "--mode=min"], "mode (--mode) 'min' says which way"),
        (["compare", "placement", "--engine=dask"], "'dask' needs the address of a scheduler"),
        (["demo", "--address=tcp://127.0.0.1:9"], "but the engine is 'loky'"),
        (["compare", "placement", "--jobs=0"], "jobs is 0"),
        (["compare", "placement", "--rate-steps=5"], "Name those by --rates"),
        (["compare", "placement", "--rates=[0,1]"], "different positive multiples"),
        (["plan", "--model=tiny.TinyNet", "--data=tiny.TinyData", "--placement=befor"], "not 'befor'"),
        (["plan", "--model=tiny.TinyNet"], "has no example_input_array"),
        (["report", "no/such/folder"], "holds no study.json"),
        (["report", "no/such/folder", "--format=pdf"], "pdf"),
        (["plan", "--model", "nowhere.Net"], "which --model nowhere.Net names. It was looked for in"),
        (["demo", "--max-steps=1009"], "multiple of eval_every"),
        (["demo", "--max-stepps=100"], "max_stepps"),
        (["compare", "placement", "--model=tiny.NoNet"], "NoNet"),
        (["demmo"], "demmo"),
        ([], "to be one of {demo,plan,compare,measure,recalibrate"),
    ],
)
def test_bad_usage_is_answered_in_a_line_and_with_status_two(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    trouble = capsys.readouterr().err
    assert words in trouble
    assert "Traceback" not in trouble
    if trouble.startswith("bn-lightning: error"):
        assert len(trouble.splitlines()) == 1


def test_an_error_that_is_nobodys_bad_usage_is_raised(monkeypatch):
    def broken(folder, **_):
        return int("seven")

    monkeypatch.setattr("bn_lightning.analysis.publish.publish_folder", broken)
    with pytest.raises(ValueError, match="seven"):
        main(["report", "x"])


def test_a_folder_of_another_problem_is_bad_usage(tmp_path, capsys):
    assert compare(tmp_path / "run") == 0
    assert main(["demo", "--max-steps=50", "--seeds=1", f"--out={tmp_path / 'run'}"]) == 2
    assert "belongs to the study 'placement' on the problem 'TinyNet'" in capsys.readouterr().err


def test_an_unreadable_data_file_is_named_before_anything_is_trained(tmp_path, capsys):
    (tmp_path / "mnist.npz").write_bytes(b"broken")
    assert main(["demo", f"--data-dir={tmp_path}", "--seeds=1", "--jobs=1", f"--out={tmp_path / 'run'}"]) == 2
    assert "mnist.npz cannot be read as MNIST" in capsys.readouterr().err
    assert not (tmp_path / "run" / "none").exists()


def test_the_plan_is_shown(capsys):
    assert main(["plan", "--model=tiny.TinyNet", "--data=tiny.TinyData", "--placement=after"]) == 0
    said = capsys.readouterr().out
    assert "net.1" in said
    assert "after" in said


def test_the_plan_as_json_is_read_back_with_every_option(capsys):
    options = ["--norm=batch", "--norm_options.momentum=0.01", "--inputs=true", '--include=["*.input","net.1"]']
    assert main(["plan", "--model=tiny.TinyNet", "--data=tiny.TinyData", "--json=true", *options]) == 0
    plan = InsertionPlan.from_dict(json.loads(capsys.readouterr().out))
    assert [site.name for site in plan.inserted] == ["net.0.input", "net.1"]
    assert plan.norm_options == {"momentum": 0.01}


def test_a_plan_whose_every_site_is_skipped_is_shown_with_the_reasons(capsys):
    assert main(["plan", "--model=tiny.TinyNet", "--data=tiny.TinyData", '--exclude=["*"]']) == 0
    assert "excluded" in capsys.readouterr().out


def test_a_checkpoint_is_recalibrated_into_a_new_file(tmp_path, capsys):
    trainer = pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        callbacks=[BatchNormInsertion()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(TinyNet(), datamodule=TinyData())
    old, new = tmp_path / "a.ckpt", tmp_path / "a.recalibrated.ckpt"
    trainer.save_checkpoint(old)
    before = old.read_bytes()
    capsys.readouterr()
    assert main(["recalibrate", str(old), "--model=tiny.TinyNet", "--data=tiny.TinyData"]) == 0
    said = capsys.readouterr().out
    assert "val_loss: " in said
    assert f"Checkpoint: {new}" in said.replace("\n", "")
    assert old.read_bytes() == before
    values = [torch.load(path)["state_dict"] for path in (old, new)]
    moved = {name for name in values[0] if not torch.equal(values[0][name], values[1][name])}
    assert moved <= {f"net.0.bn_lightning_norm.0.{name}" for name in ("running_mean", "running_var")}
    assert len(moved) == 2
    assert main(["recalibrate", str(old), "--model=tiny.TinyNet", "--data=tiny.TinyData", f"--out={old}"]) == 2


def test_a_report_is_written_again_from_the_files(tmp_path, capsys):
    assert compare(tmp_path / "run") == 0
    (tmp_path / "run" / "report.html").unlink()
    shutil.rmtree(tmp_path / "run" / "figures")
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "BN before" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "figures" / "metric.png").is_file()
    assert main(["report", str(tmp_path / "run"), "--format=markdown"]) == 0
    assert f"Report: {tmp_path / 'run' / 'report.md'}\n" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.md").is_file()


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("tiny.TinyData.train_dataloader", interrupted)
    assert compare(tmp_path / "run") == 130
    assert "0 of 5 cells are finished and kept" in capsys.readouterr().err


def test_help_shows_the_flags_as_they_are_typed(capsys):
    assert main(["compare", "--help"]) == 0
    said = capsys.readouterr().out
    for flag in (
        "--model",
        "--data",
        "--monitor",
        "--mode",
        "--target",
        "--max-steps",
        "--seeds",
        "--jobs",
        "--engine",
    ):
        assert flag in said
    assert "--out" in said
    assert "--data-dir" in said
    assert "--max_steps" not in said


def imported(code: str) -> set[str]:
    script = textwrap.dedent(code) + "\nimport sys; print(*sorted(set(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_no_lightning_and_a_command_that_needs_it_does():
    heavy = {"pytorch_lightning", "lightning", "torchmetrics", "matplotlib", "pandas", "scipy", "sklearn"}
    assert not heavy & imported("from bn_lightning.cli import main; main(['--help'])")
    assert "pytorch_lightning" in imported("from bn_lightning.cli import main; main(['compare', '--help'])")


def test_the_module_is_the_command(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "bn_lightning", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "0.1.0" in done.stdout


def test_a_model_in_the_folder_of_the_call_is_found(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import pytorch_lightning as pl, torch\n"
        "class Net(pl.LightningModule):\n"
        "    def __init__(self, width: int = 3):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU())\n"
        "        self.net.append(torch.nn.Linear(width, 1))\n"
        "        self.example_input_array = torch.zeros(2, 4)\n"
        "    def forward(self, x):\n"
        "        return self.net(x)\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return self(batch).sum()\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.SGD(self.parameters(), lr=0.1)\n"
    )
    command = [Path(sys.executable).with_name("bn-lightning"), "plan", "--model", "mine.Net", "--model.width", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "net.1" in done.stdout
    assert "5 (axis" in done.stdout


def test_a_folder_that_cannot_be_made_is_bad_usage(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert compare(tmp_path / "file" / "run") == 2
    assert "file" in capsys.readouterr().err
