from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny import TinyNet, tiny_problem

from bn_lightning.analysis.study import Arm
from bn_lightning.analysis.tensorboard_hparams import cell_hparams, log_hparams
from bn_lightning.analysis.training import train


class SavingNet(TinyNet):
    def __init__(self, lr: float = 0.1, width: tuple[int, int] = (3, 4)) -> None:
        super().__init__(lr=lr)
        self.save_hyperparameters()


def test_a_cell_is_a_row_with_its_arm_seed_options_and_metric(tmp_path):
    folder = tmp_path / "before" / "seed_3"
    arm = Arm(name="before", factors={"placement": "before", "norm": True}, options={"lr": 0.2})
    train(tiny_problem(module=SavingNet), arm, seed=3, folder=folder)
    log = EventAccumulator(str(folder)).Reload()

    def said(tag):
        return HParamsPluginData.FromString(log.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)

    shown = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in said("session_start_info").session_start_info.hparams.items()
    }
    assert shown == {
        "problem": "tiny", "arm": "before", "seed": 3, "placement": "before", "norm": True, "lr": 0.2, "width": "(3, 4)"
    }  # fmt: skip
    assert [metric.name.tag for metric in said("experiment").experiment.metric_infos] == ["val_loss"]
    # The metric's own scalars are all there is: no made-up value at step 0.
    assert "hp_metric" not in log.Tags()["scalars"]
    assert all(event.value > 0 for event in log.Scalars("val_loss"))


@pytest.mark.parametrize("logger", [None, SimpleNamespace(experiment=SimpleNamespace())])
def test_a_run_without_tensorboard_is_left_alone(logger):
    log_hparams(SimpleNamespace(logger=logger, is_global_zero=True), {"a": 1}, metric="loss")


def test_the_arms_values_win_over_saved_ones():
    module = SimpleNamespace(hparams={"lr": 0.1, "arm": "mine"})
    arm = Arm(name="a", options={"lr": 0.3}, factors={"lr": "high"})
    found = cell_hparams(tiny_problem(), arm, seed=0, module=module)
    assert (found["lr"], found["arm"]) == ("high", "a")
