"""Numbers measured from a checkpoint against the probes in a plain loop, and every refusal."""

import math

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from monitored import quiet_trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bn_lightning.analysis.measure_checkpoint import measure_checkpoint
from bn_lightning.analysis.measure_kinds import MeasureOptions
from bn_lightning.analysis.results import read_results
from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.errors import PlanMismatchError, RunFolderError, UnknownNameError
from bn_lightning.probes.covariate_shift import gradient_covariate_shift
from bn_lightning.probes.curvature import hessian_eigenvalues, hessian_trace
from bn_lightning.probes.loss_smoothness import loss_smoothness
from bn_lightning.surgery.insert import insert_batch_norm

OPTIONS = MeasureOptions(num_eigenvalues=2, points=5)


class Net(pl.LightningModule):
    def __init__(self, width: int = 6, lr: float = 0.2, dropout: float = 0.0):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, 2))
        self.net.append(nn.Dropout(dropout))
        self.example_input_array = torch.zeros(8, 4)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class ReturnsNone(Net):
    def training_step(self, batch, batch_idx):
        return None


class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Infinite(Net):
    def training_step(self, batch, batch_idx):
        return math.inf * super().training_step(batch, batch_idx)


class TwoRates(Net):
    def configure_optimizers(self):
        groups = [{"params": self.net[:2].parameters(), "lr": 0.1}, {"params": self.net[2:].parameters()}]
        return torch.optim.SGD(groups, lr=0.2)


class Data(pl.LightningDataModule):
    def __init__(self, samples: int = 40):
        super().__init__()
        self.samples = samples

    def dataset(self):
        x = torch.randn(self.samples, 4, generator=torch.Generator().manual_seed(1))
        return TensorDataset(x, (x.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.dataset(), batch_size=8)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A plain model and one with inserted norms, after 5 and after 8 steps."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, callbacks in (("plain", ()), ("norms", (BatchNormInsertion(),))):
        for steps in (5, 8):
            torch.manual_seed(0)
            trainer = quiet_trainer(folder, max_steps=steps, callbacks=list(callbacks))
            trainer.fit(Net(), datamodule=Data())
            trainer.save_checkpoint(folder / f"{name}{steps}.ckpt")
    return folder


def measure(path, tmp_path, *, model=Net, data=Data, options=OPTIONS, **given):
    return measure_checkpoint(path, model=model, data=data, out=tmp_path / "out", options=options, **given)


def numbers(done, layer=""):
    rows = done.table[done.table["layer"] == layer]
    return dict(zip(rows["quantity"], rows["value"], strict=True))


def by_hand(path):
    """The model of a checkpoint with its norms, and the probe set."""
    model = Net()
    saved = torch.load(path, weights_only=True)["state_dict"]
    if any("bn_lightning_norm" in name for name in saved):
        insert_batch_norm(model, (model.example_input_array,))
    model.load_state_dict(saved)
    batches = list(Data().train_dataloader())
    return model.net, [tuple(batch) for batch in batches]


def loss_fn(net, batch):
    return F.cross_entropy(net(batch[0]), batch[1])


def subset(found, of):
    return {name: found[name] for name in of}


def test_curvature_in_both_modes_of_inserted_norms(checkpoints, tmp_path):
    path = checkpoints / "norms8.ckpt"
    done = measure(path, tmp_path, which=["curvature"])
    net, batches = by_hand(path)
    expected = {}
    for mode in ("train", "eval"):
        spectrum = hessian_eigenvalues(net, batches, loss_fn=loss_fn, num_eigenvalues=2, norm_mode=mode)
        trace = hessian_trace(net, batches, loss_fn=loss_fn, norm_mode=mode)
        expected |= {f"hessian_eigenvalue_{i}_{mode}": v for i, v in enumerate(spectrum.eigenvalues, 1)}
        expected |= {f"hessian_trace_{mode}": trace.trace, f"hessian_trace_error_{mode}": trace.error}
    # Lanczos stops at a relative 1e-4, from the same start.
    assert subset(numbers(done), expected) == pytest.approx(expected, rel=1e-4)
    assert expected["hessian_eigenvalue_1_eval"] != pytest.approx(expected["hessian_eigenvalue_1_train"], rel=0.1)
    assert done.failures == {}


def test_smoothness_with_the_learning_rate_of_the_checkpoint_or_another(checkpoints, tmp_path):
    path = checkpoints / "plain8.ckpt"
    net, batches = by_hand(path)
    cases = (({}, {"learning_rate": 0.2}), ({"learning_rate": 0.3}, {"learning_rate": 0.3}))
    cases += (({"step_sizes": [0.5, 0.1]}, {"step_sizes": [0.1, 0.5]}),)
    for given, meant in cases:
        done = measure(path, tmp_path, which=["smoothness"], **given)
        found = loss_smoothness(net, batches, loss_fn=loss_fn, **meant)
        assert subset(numbers(done), found.numbers()) == pytest.approx(found.numbers())
        line = done.points[done.points["surface"] == "gradient"]
        assert line["first"].tolist() == pytest.approx(np.linspace(0, max(found.step_sizes), 5).tolist())
        assert line["loss"].iloc[0] == pytest.approx(found.loss)
        assert line["loss"].iloc[-1] == pytest.approx(found.losses[-1])


def test_surfaces_meet_at_the_checkpoint(checkpoints, tmp_path):
    options = MeasureOptions(points=5, radius=0.5, plateau_fraction=0.5)
    done = measure(checkpoints / "norms8.ckpt", tmp_path, which=["surface"], options=options)
    found = numbers(done)
    for mode in ("train", "eval"):
        own = done.points[done.points["norm_mode"] == mode]
        line, plane = own[own["surface"] == "random"], own[own["surface"] == "plane"]
        assert line["first"].tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
        assert line["second"].isna().all()
        assert len(plane) == 25
        centre = plane[(plane["first"] == 0) & (plane["second"] == 0)]
        assert centre["loss"].item() == pytest.approx(found[f"loss_{mode}"])
        assert line["loss"].iloc[2] == pytest.approx(found[f"loss_{mode}"])
        assert plane[plane["second"] == 0]["loss"].tolist() == pytest.approx(line["loss"].tolist())
        flat = plane["gradient_norm"] < 0.5 * plane["gradient_norm"].max()
        assert found[f"plateau_share_{mode}"] == pytest.approx(flat.mean())
    assert found["loss_train"] != pytest.approx(found["loss_eval"], rel=1e-3)


def test_shift_and_interpolation_between_two_checkpoints(checkpoints, tmp_path):
    here, there = checkpoints / "norms5.ckpt", checkpoints / "norms8.ckpt"
    done = measure(here, tmp_path, which=["shift", "interpolation"], other=there)
    (net, batches), (other, _) = by_hand(here), by_hand(there)
    points = [dict(part.named_parameters()) for part in (net, other)]
    for entry in gradient_covariate_shift(net, batches, *points, loss_fn=loss_fn):
        found = numbers(done, f"net.{entry.layer}")
        assert subset(found, entry.numbers()) == pytest.approx(entry.numbers())
    moved = numbers(done, "net.2")
    activations = [torch.cat([part[:3](batch[0]).detach() for batch in batches]).double() for part in (net, other)]
    distance = (activations[0].sort(0).values - activations[1].sort(0).values).abs().mean().item()
    # The model computes in float32.
    assert moved["activation_shift_wasserstein"] == pytest.approx(distance, rel=1e-5)
    line = done.points[done.points["surface"] == "interpolation"].set_index("first")["loss"]
    assert [line.index[0], line.index[-1]] == [-0.5, 1.5]
    assert line[0.0] == pytest.approx(numbers(done)["loss_train"])
    losses = [loss_fn(other.train(), batch).item() for batch in batches]
    assert line[1.0] == pytest.approx(sum(losses) / len(losses))


def test_everything_is_measured_by_default_and_nothing_is_changed(checkpoints, tmp_path):
    here, there = checkpoints / "plain5.ckpt", checkpoints / "plain8.ckpt"
    before = [path.read_bytes() for path in (here, there)]
    random = torch.get_rng_state()
    done = measure(here, tmp_path, other=there)
    assert [path.read_bytes() for path in (here, there)] == before
    assert torch.equal(torch.get_rng_state(), random)
    found = numbers(done)
    assert found["probe_samples"] == 40
    assert "hessian_eigenvalue_2_train" in found
    assert not [name for name in found if name.endswith("_eval")]  # no norm that has two modes
    assert {"effective_beta", "gradient_norm_train"} <= set(found)
    assert set(done.points["surface"]) == {"gradient", "random", "plane", "interpolation"}
    names = {"eigenvalues", "gradient", "random", "plane", "interpolation", "shift"}
    assert {path.stem for path in done.figures} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in done.figures)
    written = read_results(done.out / "measurements.csv")
    pd.testing.assert_frame_equal(written, done.table)
    assert set(written["arm"]) == {"plain5"}
    assert set(written["step"]) == {5}
    points = pd.read_csv(done.out / "surfaces.csv")
    pd.testing.assert_frame_equal(points, done.points)


def test_the_folder_is_beside_the_checkpoint_by_default(checkpoints):
    done = measure_checkpoint(checkpoints / "plain8.ckpt", model=Net, data=Data, which=["smoothness"], options=OPTIONS)
    assert done.out == checkpoints / "plain8.measurements"
    assert sorted(path.name for path in done.out.iterdir()) == ["figures", "measurements.csv", "surfaces.csv"]


def test_a_loss_that_is_not_finite_is_kept_as_nan(checkpoints, tmp_path):
    done = measure(checkpoints / "plain8.ckpt", tmp_path, model=Infinite)
    found = numbers(done)
    assert done.failures == {}
    assert math.isnan(found["hessian_eigenvalue_1_train"])
    assert math.isnan(found["effective_beta"])
    assert done.points["loss"].isna().all()
    assert done.figures == ()


def test_what_one_kind_cannot_do_the_others_do(checkpoints, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no second derivative")

    monkeypatch.setattr("bn_lightning.analysis.measure_kinds.hessian_eigenvalues", broken)
    done = measure(checkpoints / "plain8.ckpt", tmp_path)
    assert done.failures == {"curvature": "RuntimeError: no second derivative"}
    assert numbers(done)["effective_beta"] > 0
    assert (tmp_path / "out" / "surfaces.csv").is_file()


def test_ctrl_c_keeps_what_was_measured_and_says_where(checkpoints, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("bn_lightning.analysis.measure_kinds.loss_smoothness", interrupted)
    with pytest.raises(KeyboardInterrupt, match="Measured until then: curvature; kept in"):
        measure(checkpoints / "plain8.ckpt", tmp_path)
    table = read_results(tmp_path / "out" / "measurements.csv")
    assert "hessian_trace_train" in set(table["quantity"])
    assert (tmp_path / "out" / "figures" / "eigenvalues.png").is_file()


def test_ctrl_c_before_anything_is_measured_ends_as_ctrl_c(checkpoints, tmp_path):
    class Slow(Data):
        def setup(self, stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(checkpoints / "plain8.ckpt", tmp_path, data=Slow)


def test_a_loss_function_stands_in_for_a_training_step(checkpoints, tmp_path):
    options = MeasureOptions(loss_fn=loss_fn, num_eigenvalues=1)
    path = checkpoints / "plain8.ckpt"
    done = measure(path, tmp_path, model=ReturnsNone, which=["curvature"], options=options)
    net, batches = by_hand(path)
    (largest,) = hessian_eigenvalues(net, batches, loss_fn=loss_fn).eigenvalues
    # Lanczos stops at a relative 1e-4, from the same start.
    assert numbers(done)["hessian_eigenvalue_1_train"] == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "data", "error", "words"),
    [
        (ReturnsNone, Data, TypeError, "The loss of ReturnsNone came back as a NoneType"),
        (Frozen, Data, ValueError, "Frozen has no parameter that requires a gradient"),
        (lambda: Net(width=7), Data, PlanMismatchError, "plain8.ckpt is not a checkpoint of Net with these arguments"),
        (lambda: nn.Linear(2, 2), Data, TypeError, "is a LightningModule, but its factory made a Linear"),
        (Net, lambda: [1], TypeError, r"data\(\) made a list\. Put its loader into"),
        (Net, lambda: Data(samples=1), ValueError, "needs two samples or more, got 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(checkpoints, tmp_path, model, data, error, words):
    with pytest.raises(error, match=words):
        measure(checkpoints / "plain8.ckpt", tmp_path, model=model, data=data)
    assert not (tmp_path / "out").exists()


def test_data_without_a_batch_are_refused(checkpoints, tmp_path):
    class Empty(Data):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.zeros(0, 4), torch.zeros(0)), batch_size=8)

    with pytest.raises(ValueError, match="nothing to measure Net on: the training data hold no batch"):
        measure(checkpoints / "plain8.ckpt", tmp_path, data=Empty)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"which": ["curvatur"]}, UnknownNameError, r"no measurement 'curvatur' \(--which\): there are 'curvature'"),
        ({"which": []}, ValueError, "Nothing is to be measured"),
        ({"which": ["shift"]}, ValueError, r"shift compare two checkpoints: name the other one too \(--and\)"),
        ({"probe_size": 1}, ValueError, "needs two samples or more, got probe_size=1"),
        ({"other": "none.ckpt"}, RunFolderError, "There is no checkpoint none.ckpt"),
        ({"step_sizes": [0.0]}, ValueError, "Step sizes must be positive"),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_anything_is_made(checkpoints, tmp_path, given, error, words):
    with pytest.raises(error, match=words):
        measure(checkpoints / "plain8.ckpt", tmp_path, model=lambda: 1 / 0, **given)


def test_smoothness_needs_one_learning_rate(checkpoints, tmp_path):
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(TwoRates(), datamodule=Data())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    trainer.save_checkpoint(tmp_path / "bare.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"two.ckpt holds 2 learning rates \(0\.1, 0\.2\)\. Give one"):
        measure(tmp_path / "two.ckpt", tmp_path)
    with pytest.raises(ValueError, match=r"bare.ckpt holds none\. Give one \(--learning-rate\), or steps"):
        measure(tmp_path / "bare.ckpt", tmp_path)
    assert numbers(measure(tmp_path / "bare.ckpt", tmp_path, which=["surface"]))["loss_train"] > 0


def test_a_learning_rate_that_ended_at_0_counts_as_none(checkpoints, tmp_path):
    saved = torch.load(checkpoints / "plain8.ckpt", weights_only=True)
    saved["optimizer_states"][0]["param_groups"][0]["lr"] = 0.0
    torch.save(saved, tmp_path / "ended.ckpt")
    with pytest.raises(ValueError, match=r"ended.ckpt holds none\. Give one \(--learning-rate\), or steps"):
        measure(tmp_path / "ended.ckpt", tmp_path)


def test_two_checkpoints_have_the_same_parameters(checkpoints, tmp_path):
    with pytest.raises(UnknownNameError, match=r"these differ in .*bn_lightning_norm"):
        measure(checkpoints / "norms8.ckpt", tmp_path, other=checkpoints / "plain8.ckpt")


def test_a_fraction_that_is_none_is_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match=r"between 0 and 1 of the largest gradient \(--plateau-fraction\), got 2"):
        MeasureOptions(plateau_fraction=2)
