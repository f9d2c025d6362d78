"""The examples on the claims of Santurkar et al.: how claims are judged, and each script in short."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)

    def script(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return script


def table(quantity, none, normed):
    rows = [
        {"stage": "end", "quantity": quantity, "arm": arm, "seed": seed, "value": value}
        for arm, values in (("no norm", none), ("batch norm", normed))
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def claims(load, monkeypatch):
    import sys

    module = load("claims")
    # A dataclass looks its module up by name.
    monkeypatch.setitem(sys.modules, "claims", module)
    return module


@pytest.fixture
def training(load):
    return load("claims_training")


def claim(claims, **options):
    return claims.Claim("words", "loss", **options)


@pytest.mark.parametrize(
    ("normed", "expects", "verdict"),
    [
        ([1.0, 2.0, 4.0], "lower", "reproduced"),
        ([1.0, 2.0, 4.0], "higher", "reversed"),
        ([40.0, 70.0, 160.0], "lower", "reversed"),
        ([1.0, 20.0, 400.0], "lower", "not reproduced"),
        ([1.0, math.nan, math.nan], "lower", "not measured"),
    ],
)
def test_verdicts_follow_the_interval_of_the_log_ratio(claims, normed, expects, verdict):
    none = [10.0, 20.0, 40.0]
    row = claim(claims, expects=expects).judge(table("loss", none, normed), "end")
    assert row["verdict"] == verdict
    assert row["pairs"] == np.isfinite(normed).sum()


def test_a_ratio_is_the_geometric_mean_and_signed_quantities_are_differences(claims):
    row = claim(claims).judge(table("loss", [1.0, 1.0, 1.0], [2.0, 8.0, 4.0]), "end")
    assert (row["compared by"], row["mean"]) == ("ratio", pytest.approx(4.0))
    # By hand: log2 ratios 1, 3, 2; s = 1, t(.975, 2) = 4.302653.
    assert row["high"] == pytest.approx(2 ** (2 + 4.302653 / math.sqrt(3)))
    row = claim(claims).judge(table("loss", [1.0, -1.0, 1.0], [2.0, 0.0, 2.0]), "end")
    assert (row["compared by"], row["mean"]) == ("difference", pytest.approx(1.0))


@pytest.mark.parametrize(
    ("normed", "verdict"),
    [
        ([0.90, 0.91, 0.92], "reproduced"),
        ([0.70, 0.71, 0.72], "reversed"),
        ([0.70, 0.91, 1.12], "not reproduced"),
        ([1.0, 1.01, 1.02], "not reproduced"),
    ],
)
def test_the_same_is_an_interval_within_the_margin(claims, normed, verdict):
    found = claims.Claim("words", "loss", expects="same", margin=0.05)
    assert found.judge(table("loss", [0.90, 0.91, 0.92], normed), "end")["verdict"] == verdict


def test_arms_start_from_equal_weights_and_see_equal_batches(training):
    from bn_lightning.analysis.problems.digits_model import DigitsMLP

    weights = {}
    for arm in training.ARMS:
        torch.manual_seed(5)
        model = training.with_norm(DigitsMLP(), arm)
        weights[arm] = model.net[4].weight.detach()
        assert len([part for part in model.modules() if "BatchNorm" in type(part).__name__]) == 3 * (arm != "no norm")
    assert all(torch.equal(value, weights["no norm"]) for value in weights.values())
    data = torch.arange(10.0)[:, None], torch.arange(10)
    one, other = (training.batches_of(data, 4, seed=1) for _ in range(2))
    for _ in range(5):
        assert torch.equal(next(one)[1], next(other)[1])
    epoch = torch.cat([next(training.batches_of(data, 10, seed=1))[1]])
    assert sorted(epoch.tolist()) == list(range(10))


def test_measuring_takes_one_step_and_leaves_the_running_statistics_as_that_step_does(training):
    from bn_lightning.analysis.problems.digits_model import DigitsMLP

    data = torch.rand(60, 64), torch.arange(60) % 10
    ends = []
    for measured in (False, True):
        torch.manual_seed(0)
        model = training.with_norm(DigitsMLP(lr=0.1), "batch norm")
        run = training.Run(model, lr=0.1, batches=training.batches_of(data, 20, 0), probe=[data], multiples=(1,))
        if measured:
            run.measure("here", small=[(data[0][:5], data[1][:5])])
        else:
            run.train(1)
        assert run.step == 1
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    found = pd.DataFrame(run.rows)
    assert set(found["step"]) == {0}
    assert found["value"].notna().all()
    assert {"effective beta, small probe", "gradient shift, cosine", "activation shift W1"} <= set(found["quantity"])


@pytest.mark.parametrize(("name", "arms"), [("linear_net", 2), ("smoothness_digits", 2), ("noisy_batch_norm", 3)])
def test_each_script_in_short(load, claims, name, arms, tmp_path, capsys):
    module = load(name)
    module.main(fast=True, out=str(tmp_path))
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    for one in module.CLAIMS:
        assert sum(line.startswith(f"| {one.text} | ") for line in page.splitlines()) >= 2
    results = pd.read_csv(tmp_path / "results.csv")
    assert results.groupby(["arm", "seed"]).ngroups == 2 * arms
    for figure in tmp_path.glob("*.png"):
        assert 5_000 < figure.stat().st_size < 150_000
        assert f"]({figure.name})" in page


@pytest.mark.parametrize(("name", "figure"), [("vgg_cifar", "measures.png"), ("plateaus", "planes.png")])
def test_scripts_on_images_in_short_on_a_file_of_noise(load, claims, tmp_path, name, figure):
    draw, made = np.random.default_rng(0), {}
    for part, count in (("train", 200), ("test", 30)):
        made[f"x_{part}"] = draw.integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8)
        made[f"y_{part}"] = (np.arange(count) % 10).astype(np.uint8)
    np.savez(tmp_path / "cifar10_small.npz", **made)
    module = load(name)
    found = module.main(fast=True, data_dir=str(tmp_path), out=str(tmp_path / "page"))
    assert len(found) == 2 * len(module.CLAIMS)
    assert (tmp_path / "page" / figure).is_file()
