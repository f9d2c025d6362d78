"""Two processes: nobody waits for the other in vain, and what is written is what rank zero's batches give."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from probed import DeepNet, SmoothNet, plain_loss

from bn_lightning.functional.covariate_shift import activation_shift
from bn_lightning.probes.covariate_shift import gradient_covariate_shift
from bn_lightning.probes.loss_smoothness import loss_smoothness

SCRIPT = """
import sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import pytorch_lightning as pl
import torch
from probed import DeepNet, SmoothNet, data
from bn_lightning.callbacks import CovariateShiftMonitor, LossSmoothnessMonitor

folder = Path(sys.argv[2])


class Watcher(pl.Callback):
    def __init__(self):
        self.parameters, self.batches = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.parameters.append({name: part.detach().clone() for name, part in pl_module.net.named_parameters()})
        self.batches.append(batch)


def fit(name, module, *callbacks, **options):
    torch.manual_seed(3)
    logger = pl.loggers.CSVLogger(folder, name="", version=name)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=logger, callbacks=list(callbacks),
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                         max_steps=options.pop("max_steps", 6), default_root_dir=folder)
    trainer.fit(module, data(samples=120, shuffle=True), **options)
    return trainer


def plain_net(kind):
    torch.manual_seed(5)
    return kind(dropout=0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    probes = []

    def keeping(kind):
        return type("Keeping", (kind,), {"_probe_batches": lambda self, *args: probes.append(
            kind._probe_batches(self, *args)) or probes[-1]})

    watcher, shift = Watcher(), keeping(CovariateShiftMonitor)(every_n_steps=2)
    trainer = fit("shift", plain_net(DeepNet), watcher, shift)
    rank = trainer.global_rank
    torch.save((watcher.parameters, watcher.batches), folder / f"watched{rank}.pt")
    shift.table().to_csv(folder / f"shift{rank}.csv", index=False)
    trainer.save_checkpoint(folder / "half.ckpt")
    later, again = Watcher(), keeping(CovariateShiftMonitor)(every_n_steps=2)
    fit("again", plain_net(DeepNet), later, again, max_steps=12, ckpt_path=folder / "half.ckpt", weights_only=False)
    torch.save((later.parameters, probes), folder / f"again{rank}.pt")
    probes.clear()
    smooth = keeping(LossSmoothnessMonitor)(every_n_steps=4, probe_size=20, normalised=False)
    module = plain_net(SmoothNet)
    fit("smooth", module, smooth)
    torch.save((module.weights, probes), folder / f"smooth{rank}.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "run.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(folder / "run.py"), str(Path(__file__).parents[1]), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return folder


def written(folder, run, file):
    table = pd.read_csv(folder / run / f"{file}.csv", keep_default_na=False, na_values={"value": [""]})
    return {
        key: dict(zip(rows["quantity"], rows["value"], strict=True))
        for key, rows in table.groupby(["step", "layer"], sort=False)
    }


def test_gradient_shift_is_of_the_step_all_ranks_took_on_the_batches_of_rank_zero(folder):
    numbers = written(folder, "shift", "covariate_shift")
    parameters, batches = torch.load(folder / "watched0.pt")
    _, others = torch.load(folder / "watched1.pt")
    assert not torch.equal(batches[2][0], others[2][0])
    for step in (2, 4):
        found = gradient_covariate_shift(
            DeepNet(dropout=0.0).net,
            [batches[step]],
            parameters[step],
            parameters[step + 1],
            loss_fn=plain_loss,
            reference=[batches[step - 1]],
        )
        for entry in found:
            written_there = numbers[step, f"net.{entry.layer}"]
            assert {name: written_there[name] for name in entry.numbers()} == pytest.approx(entry.numbers())


def test_rank_zero_alone_writes_its_rows(folder):
    tables = [pd.read_csv(folder / f"shift{rank}.csv") for rank in (0, 1)]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "shift" / "covariate_shift.csv"), tables[0])
    assert list(tables[0]["step"]) == list(tables[1]["step"])
    assert not tables[0]["value"].equals(tables[1]["value"])


def test_drift_goes_on_from_the_start_of_rank_zero(folder):
    again = written(folder, "again", "covariate_shift")
    (start, *_), _ = torch.load(folder / "watched0.pt")
    parameters, probes = torch.load(folder / "again0.pt")
    assert {step for step, _ in again} == {6, 8, 10}
    for one, other in zip(*probes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)

    def preactivations(weights):
        model = DeepNet(dropout=0.0).net
        model.load_state_dict(weights, strict=False)
        return torch.cat([model[:5](batch[0]).detach() for batch in probes[0]])

    for step in (6, 8):
        found = {name: value for name, value in again[step, "net.4"].items() if name.startswith("activation_drift")}
        now = preactivations(parameters[step + 1 - 6])
        expected = activation_shift(preactivations(start), now).numbers()
        assert {f"activation_drift_{name}": value for name, value in expected.items()} == pytest.approx(found)
        # A start of its own, at the step of resuming, would show.
        of_its_own = activation_shift(preactivations(parameters[0]), now).numbers()["wasserstein"]
        assert abs(found["activation_drift_wasserstein"] - of_its_own) > 0.1 * of_its_own


def test_smoothness_is_that_of_the_probe_set_of_rank_zero(folder):
    numbers = written(folder, "smooth", "loss_smoothness")
    weights, (batches,) = torch.load(folder / "smooth0.pt")
    for step in (0, 4):
        model = SmoothNet(dropout=0.0).net
        model.load_state_dict(weights[step])
        found = loss_smoothness(model, batches, loss_fn=plain_loss, learning_rate=0.5, normalised=False)
        assert numbers[step, ""] == pytest.approx(found.numbers())
