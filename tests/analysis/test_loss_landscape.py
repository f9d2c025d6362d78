import math

import pytest
import pytorch_lightning as pl
import torch
from tiny import TinyData, TinyNet
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from bn_lightning.analysis import loss_landscape
from bn_lightning.analysis.landscape_points import landscape_points
from bn_lightning.analysis.loss_landscape import LossLandscape
from bn_lightning.callbacks.insertion import BatchNormInsertion
from bn_lightning.errors import StatisticsWarning
from bn_lightning.probes.curvature_directions import random_direction

SIDE = 5


def fit(tmp_path, *callbacks, module=None):
    torch.manual_seed(0)
    module = module or TinyNet()
    start = {name: part.detach().clone() for name, part in module.named_parameters()}
    torch.manual_seed(1)
    trainer = pl.Trainer(
        max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, datamodule=TinyData())
    return module, start


def measured(callback):
    return callback.table().assign(arm="none", seed=0)


def whole_loss(module, parameters):
    """Mean over all 32 samples, which are the probe set whatever their order."""
    x = torch.linspace(-1, 1, 96).reshape(32, 3)
    return F.mse_loss(functional_call(module, parameters, (x,)), x.sum(1, keepdim=True).sin())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    callback = LossLandscape(side=SIDE, probe_size=32)
    module, start = fit(tmp_path_factory.mktemp("plain"), callback)
    end = {name: part.detach().clone() for name, part in module.named_parameters()}
    return callback, module, start, end


def test_training_is_the_same_to_the_bit(tmp_path, plain):
    _, module, _, _ = plain
    alone, _ = fit(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("stage", ["start", "end"])
def test_losses_are_those_of_the_weights_at_each_point(plain, stage):
    callback, module, start, end = plain
    origin = start if stage == "start" else end
    at_origin = TinyNet()
    at_origin.load_state_dict(origin)
    first, second = (random_direction(at_origin, seed=seed) for seed in (0, 1))
    points = landscape_points(measured(callback))
    plane = points[points["surface"] == f"{stage}_plane"]
    assert len(plane) == SIDE**2
    for point in plane.itertuples():
        there = {n: part + point.first * first[n] + point.second * second[n] for n, part in origin.items()}
        assert_close(torch.tensor(point.loss), whole_loss(module, there).detach().double(), check_dtype=False)
    line = points[points["surface"] == f"{stage}_line"]
    assert line["first"].tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]
    one = line[line["first"] == 0.25].iloc[0]
    there = {n: part + 0.25 * first[n] for n, part in origin.items()}
    assert_close(one["loss"], float(whole_loss(module, there)), rtol=1e-5, atol=1e-6)  # a float32 loss


def test_the_way_leads_from_the_initial_weights_to_the_solution(plain):
    callback, module, start, end = plain
    points = landscape_points(measured(callback)).set_index("first")
    way = points.loc[points["surface"] == "way", "loss"]
    assert (way.index.min(), way.index.max()) == (-0.25, 1.25)
    middle = {name: (part + end[name]) / 2 for name, part in start.items()}
    nearest = way.index[abs(way.index - 0.5).argmin()]
    assert nearest == 0.5
    # A float32 loss.
    assert_close(way.loc[0.5], float(whole_loss(module, middle)), rtol=1e-5, atol=1e-6)


def test_the_eigenvalue_is_that_of_the_whole_hessian(plain):
    callback, module, _, end = plain
    sizes = {name: part.shape for name, part in end.items()}

    def loss(flat):
        parts = flat.split([shape.numel() for shape in sizes.values()])
        shaped = {n: part.reshape(shape) for (n, shape), part in zip(sizes.items(), parts, strict=True)}
        return whole_loss(module, shaped)

    dense = hessian(loss, torch.cat([part.flatten() for part in end.values()]))
    table = callback.table().set_index("quantity")["value"]
    # The eigenvalue is asked for to 1e-3.
    assert_close(table["hessian_eigenvalue_1_train"], float(torch.linalg.eigvalsh(dense)[-1]), rtol=2e-3, atol=0)
    assert "hessian_eigenvalue_1_eval" not in table.index


def test_a_plateau_is_where_the_gradient_is_a_share_of_that_at_the_start_or_of_the_largest(tmp_path, monkeypatch):
    # So small a net is nowhere as flat as a tenth.
    monkeypatch.setattr(loss_landscape, "PLATEAU", 0.8)
    callback = LossLandscape(side=SIDE, probe_size=32)
    module, start = fit(tmp_path, callback)
    end = {name: part.detach().clone() for name, part in module.named_parameters()}

    def norm(point):
        leaves = {name: part.clone().requires_grad_() for name, part in point.items()}
        gradients = torch.autograd.grad(whole_loss(module, leaves), list(leaves.values()))
        return float(torch.cat([part.flatten() for part in gradients]).norm())

    first, second = (random_direction(module, seed=seed) for seed in (0, 1))
    sides = torch.linspace(-1, 1, SIDE).tolist()
    norms = [norm({n: p + a * first[n] + b * second[n] for n, p in end.items()}) for a in sides for b in sides]
    expected = sum(value < 0.8 * norm(start) for value in norms) / len(norms)
    assert 0 < expected < 1
    table = callback.table().set_index("quantity")["value"]
    assert table["plateau_share_end"] == expected
    own = sum(value < 0.8 * max(norms) for value in norms) / len(norms)
    assert 0 < own < 1
    assert table["own_plateau_share_end"] == own
    assert own != expected


def test_a_net_with_norms_is_measured_in_both_modes_at_the_end(tmp_path):
    callback = LossLandscape(side=3, probe_size=32)
    fit(tmp_path, BatchNormInsertion(), callback)
    points = landscape_points(measured(callback))
    assert set(points.loc[points["norm_mode"] == "eval", "surface"]) == {"end_line"}
    line = points[(points["surface"] == "end_line")].pivot(index="first", columns="norm_mode", values="loss")
    assert not (line["train"] == line["eval"]).any()
    table = callback.table().set_index("quantity")["value"]
    assert table["hessian_eigenvalue_1_train"] != table["hessian_eigenvalue_1_eval"]


class SetFree(TinyNet):
    def on_train_batch_start(self, batch, batch_idx):
        next(self.parameters()).requires_grad_(self.global_step > 4)


def test_a_layer_may_be_set_free_in_the_middle(tmp_path):
    module = SetFree()
    next(module.parameters()).requires_grad_(False)
    callback = LossLandscape(side=3, probe_size=32)
    fit(tmp_path, callback, module=module)
    points = landscape_points(measured(callback))
    assert points.loc[points["surface"] == "way", "loss"].notna().all()


class NoSecondDerivative(TinyNet):
    def training_step(self, batch, batch_idx):
        return torch.cdist(self(batch[0]), batch[1], p=1).mean()


def test_a_loss_without_second_derivative_has_no_eigenvalue(tmp_path):
    callback = LossLandscape(side=3, probe_size=32)
    with pytest.warns(StatisticsWarning, match="norms in train mode, is left out as NaN"):
        fit(tmp_path, callback, module=NoSecondDerivative())
    table = callback.table().set_index("quantity")["value"]
    assert math.isnan(table["hessian_eigenvalue_1_train"])
    assert 0 <= table["plateau_share_end"] <= 1


@pytest.mark.parametrize("side", [1, 4])
def test_a_plane_without_a_centre_is_refused(side):
    with pytest.raises(ValueError, match=f"an odd number of points a side, 3 or more, not {side}"):
        LossLandscape(side=side, probe_size=32)
