import functools
import math

import pytest
import torch
from peek import peek, recorded
from tiny import TinyData, TinyNet, tiny_problem
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.analysis.estimator_metrics import ESTIMATORS, EstimatorMetrics
from bn_lightning.analysis.study import Arm, Budget
from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.errors import UnknownNameError
from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm


class Ordered(TinyData):
    """What depends on the order of batches, and on which samples meet in one, can be worked out anew."""

    def train_dataloader(self):
        return self._loader(shuffle=False)


def run(tmp_path, *callbacks, seed=0, **changes):
    arm = Arm(name="arm", callbacks=lambda: [BatchNormInsertion(), *callbacks])
    return peek(tiny_problem(**changes), arm, tmp_path, seed=seed)


def test_each_metric_is_that_of_the_trained_model_with_these_statistics(tmp_path):
    seen, training = run(tmp_path, EstimatorMetrics("val_loss"), data=Ordered)
    model, data = seen.module.eval(), Ordered()
    running = {name: value.clone() for name, value in model.state_dict().items()}
    for estimator in ("pooled", "paper", "ema"):
        model.load_state_dict(running)
        recalibrate_batch_norm(model, data.train_dataloader(), estimator=estimator, warn_drift=None)
        with torch.no_grad():
            expected = sum(F.mse_loss(model(x), y).item() for x, y in data.val_dataloader()) / 4
        assert recorded(training, f"val_loss_{estimator}")[10] == pytest.approx(expected, rel=1e-5)
    assert recorded(training, "val_loss").keys() == {0, 5, 10}


def test_the_fixed_point_takes_all_batches_as_one(tmp_path):
    seen, training = run(tmp_path, EstimatorMetrics("val_loss"))
    model, data = seen.module.eval(), TinyData()
    everything = next(iter(torch.utils.data.DataLoader(data.train_dataloader().dataset, batch_size=32)))
    recalibrate_batch_norm(model, [everything], warn_drift=None)
    with torch.no_grad():
        expected = sum(F.mse_loss(model(x), y).item() for x, y in data.val_dataloader()) / 4
    assert recorded(training, "val_loss_fixed_point")[10] == pytest.approx(expected, rel=1e-5)


def test_the_lag_is_the_distance_of_the_running_average_from_the_pooled_statistics(tmp_path):
    seen, training = run(tmp_path, EstimatorMetrics("val_loss"))
    (path, norm), *_ = [(p, m) for p, m in seen.module.named_modules() if isinstance(m, _BatchNorm)]
    mean, variance = norm.running_mean.double(), norm.running_var.double() + norm.eps
    recalibrate_batch_norm(seen.module.eval(), TinyData().train_dataloader(), warn_drift=None)
    new_mean, new_variance = norm.running_mean.double(), norm.running_var.double() + norm.eps
    lag = ((new_mean - mean).square() / variance).mean().sqrt().item()
    assert recorded(training, "running_mean_lag", path)[10] == pytest.approx(lag, rel=1e-4)
    assert recorded(training, "running_variance_lag", path)[10] == pytest.approx(
        (new_variance / variance).log().mean().item(), rel=1e-4
    )


def test_training_does_not_notice(tmp_path):
    plain, _ = run(tmp_path / "plain")
    measured, _ = run(tmp_path / "measured", EstimatorMetrics("val_loss"))
    for name, value in plain.ending.items():
        assert torch.equal(value, measured.ending[name]), name
    hooks = [hook for part in measured.module.modules() for hook in part._forward_pre_hooks]
    assert len(hooks) == len([hook for part in plain.module.modules() for hook in part._forward_pre_hooks])


def test_only_the_last_step_is_measured_if_asked(tmp_path):
    _, often = run(tmp_path / "often", EstimatorMetrics("val_loss"))
    _, once = run(tmp_path / "once", EstimatorMetrics("val_loss", only_at_end=True, estimators=["pooled"]))
    assert recorded(often, "val_loss_pooled").keys() == {5, 10}
    assert recorded(once, "val_loss_pooled") == {10: recorded(often, "val_loss_pooled")[10]}
    assert not recorded(once, "val_loss_paper")


def test_a_run_that_diverged_ends_in_nan(tmp_path):
    _, training = run(tmp_path, EstimatorMetrics("val_loss"), module=functools.partial(TinyNet, blow_up=True))
    assert training.diverged_at == 10
    for estimator in ESTIMATORS:
        found = recorded(training, f"val_loss_{estimator}")
        assert math.isfinite(found[5])
        assert math.isnan(found[10]), estimator


def test_a_run_that_was_stopped_early_has_a_nan_at_its_last_step(tmp_path):
    budget = Budget(max_steps=20, eval_every=5)
    module = functools.partial(TinyNet, blow_up=True)
    _, training = run(tmp_path, EstimatorMetrics("val_loss"), module=module, budget=budget)
    assert math.isnan(recorded(training, "val_loss_pooled")[20])


def test_a_model_without_norms_has_no_rows(tmp_path):
    callback = EstimatorMetrics("val_loss")
    peek(tiny_problem(), Arm(name="arm", callbacks=lambda: [callback]), tmp_path)
    assert callback.table().empty


def test_an_unknown_estimator_is_refused():
    with pytest.raises(UnknownNameError, match=r"no estimator 'pool'; choose one of pooled"):
        EstimatorMetrics("val_loss", estimators=["pool"])
