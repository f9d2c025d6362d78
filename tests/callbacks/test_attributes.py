from collections import deque

import pytest
import pytorch_lightning as pl
import torch
from monitored import quiet_trainer
from probed import DeepNet, data
from torch import nn

from bn_lightning.callbacks._attributes import preserve_attributes, silent_loggers


def test_plain_attributes_of_every_module_come_back_also_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2))
    held = {"list": [1], "dict": {"a": 1}, "set": {1}, "deque": deque([1, 2], maxlen=2)}
    inner = model[0]
    vars(inner).update(held, count=1)

    def fail():
        inner.count += 1
        inner.list.append(2)
        inner.dict["b"] = 2
        inner.set = {5}
        inner.deque.append(3)
        model.new = 1
        raise OSError("half way")

    with pytest.raises(OSError, match="half way"), preserve_attributes(model):
        fail()
    assert (inner.count, inner.list, inner.dict) == (1, [1], {"a": 1})
    assert inner.set is held["set"]
    assert inner.set == {1}
    assert inner.deque == deque([1, 2])
    assert not hasattr(model, "new")


def test_a_lazy_module_that_is_built_within_keeps_what_it_was_built_with():
    model = nn.Sequential(nn.LazyLinear(2))
    with preserve_attributes(model):
        model(torch.randn(4, 3))
    assert model[0].in_features == 3
    assert type(model[0]) is nn.Linear


def test_parameters_buffers_children_hooks_and_modes_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(2))
    with preserve_attributes(model):
        model(torch.randn(4, 2))
        model.eval()
        model.append(nn.Linear(2, 1))
        model.register_forward_hook(lambda *args: None)
    assert len(model) == 2
    assert len(model._forward_hooks) == 1
    assert not model.training
    assert model[0].num_batches_tracked == 1


def test_loggers_swallow_what_is_written_to_them_within(tmp_path):
    class Writes(DeepNet):
        def on_train_start(self):
            with silent_loggers(self):
                self.logger.log_metrics({"within": 1.0}, 0)
                self.logger.experiment.log_metrics({"within": 1.0}, 0)
                assert len(self.loggers) == 1
            self.logger.log_metrics({"behind": 1.0}, 0)

    logger = pl.loggers.CSVLogger(tmp_path, name="", version="run")
    quiet_trainer(tmp_path, max_steps=1, logger=logger).fit(Writes(), data())
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "behind" in header
    assert "within" not in header


def test_without_a_trainer_or_a_logger_there_is_nothing_to_do():
    module = DeepNet()
    with silent_loggers(module):
        assert module._trainer is None
