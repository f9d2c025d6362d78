import pandas as pd
import pytest
import pytorch_lightning as pl
from tiny import TinyData, TinyNet

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.cli import main

TINY = ["--model=tiny.TinyNet", "--data=tiny.TinyData", "--points=3"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for steps in (2, 4):
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=[BatchNormInsertion()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(TinyNet(), datamodule=TinyData())
        trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return folder


def measure(checkpoints, tmp_path, *more):
    return main(["measure", str(checkpoints / "4.ckpt"), *TINY, f"--out={tmp_path / 'out'}", *more])


def test_a_checkpoint_is_measured_into_a_table_on_the_terminal_a_file_and_figures(checkpoints, tmp_path, capsys):
    assert measure(checkpoints, tmp_path, "--and", str(checkpoints / "2.ckpt"), "--num-eigenvalues=1") == 0
    said = capsys.readouterr().out
    for words in ("hessian eigenvalue 1", "train", "eval", "effective beta", "per unit step", "wasserstein"):
        assert words in said
    assert f"Tables: {tmp_path / 'out' / 'measurements.csv'}" in said
    table = pd.read_csv(tmp_path / "out" / "measurements.csv", keep_default_na=False)
    assert {"hessian_eigenvalue_1_eval", "gradient_shift", "activation_shift_wasserstein"} <= set(table["quantity"])
    pictures = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert pictures == {"eigenvalues", "gradient", "random", "plane", "interpolation", "shift"}


def test_few_kinds_can_be_chosen_with_commas(checkpoints, tmp_path):
    assert measure(checkpoints, tmp_path, "--which=smoothness,surface", "--step-sizes=[0.1,0.2]") == 0
    points = pd.read_csv(tmp_path / "out" / "surfaces.csv")
    assert set(points["surface"]) == {"gradient", "random", "plane"}
    assert points.loc[points["surface"] == "gradient", "first"].max() == 0.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--which=shift"], "name the other one too (--and)"),
        (["--which=beta"], "There is no measurement 'beta'"),
        (["--probe-size=1"], "needs two samples or more"),
        (["--and=nowhere.ckpt"], "There is no checkpoint nowhere.ckpt"),
    ],
)
def test_bad_usage_is_answered_in_a_line_and_with_status_two(checkpoints, tmp_path, capsys, arguments, words):
    assert measure(checkpoints, tmp_path, *arguments) == 2
    trouble = capsys.readouterr().err
    assert words in trouble
    assert len(trouble.splitlines()) == 1


def test_without_data_it_is_bad_usage(checkpoints, capsys):
    assert main(["measure", str(checkpoints / "4.ckpt"), "--model=tiny.TinyNet"]) == 2
    assert "data" in capsys.readouterr().err


def test_what_fails_is_named_and_the_status_is_one(checkpoints, tmp_path, capsys, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no second derivative")

    monkeypatch.setattr("bn_lightning.analysis.measure_kinds.hessian_trace", broken)
    assert measure(checkpoints, tmp_path, "--which=curvature,smoothness") == 1
    heard = capsys.readouterr()
    assert "failed: curvature: RuntimeError: no second derivative" in heard.err
    assert "effective beta" in heard.out


def test_ctrl_c_ends_with_130_and_says_what_is_kept(checkpoints, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("bn_lightning.analysis.measure_kinds.loss_surface", interrupted)
    assert measure(checkpoints, tmp_path, "--which=curvature,surface") == 130
    assert "Measured until then: curvature; kept in" in capsys.readouterr().err


def test_help_shows_the_flag_that_is_a_word_of_python(capsys):
    assert main(["measure", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--and " in said
    assert "--plateau-fraction" in said
