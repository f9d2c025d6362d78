import pytest
import torch

from bn_lightning.callbacks._activation_drift import MAX_VALUES, ActivationDrift
from bn_lightning.errors import StatisticsWarning
from bn_lightning.functional.covariate_shift import activation_shift
from bn_lightning.functional.sampling import spread_rows


def test_drift_of_few_values_is_exact_and_of_many_is_that_of_some_spread_evenly():
    for count in (MAX_VALUES, 5 * MAX_VALUES):
        start = torch.randn(count, 3)
        now = 2 * start + 1
        found = ActivationDrift([start], {"a": start}).shift({"a": now}).layers["a"]
        kept = spread_rows(count, MAX_VALUES)
        exact = activation_shift(start[kept], now[kept])
        torch.testing.assert_close(found.wasserstein, exact.wasserstein, rtol=0, atol=0)
        torch.testing.assert_close(found.gaussian_kl, exact.gaussian_kl, rtol=0, atol=0)


def test_a_layer_that_was_not_reached_later_is_left_out():
    x = torch.randn(5, 2)
    drift = ActivationDrift([x], {"a": x, "b": x})
    assert list(drift.shift({"b": x}).layers) == ["b"]


@pytest.mark.parametrize("other", [torch.ones(5, 2), torch.zeros(4, 2), torch.zeros(5, 2, dtype=torch.float64)])
def test_another_probe_set_of_any_kind_is_noticed(other):
    probe = torch.zeros(5, 2)
    saved = ActivationDrift([(probe, "label")], {"a": probe + 1}).state_dict()
    same = ActivationDrift([(probe.clone(), "label")], {"a": probe}, saved)
    assert same.shift({"a": probe + 3}).layers["a"].wasserstein.tolist() == [2.0, 2.0]
    for batch in ((other, "label"), (probe, "name")):
        with pytest.warns(StatisticsWarning, match="the probe set is another"):
            ActivationDrift([batch], {"a": probe}, saved)


def test_the_state_is_what_a_checkpoint_can_be_read_with(tmp_path):
    x = torch.randn(5, 2)
    state = ActivationDrift([x.bfloat16()], {"a": x}).state_dict()
    torch.save(state, tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    assert read["probe"] == state["probe"]
    torch.testing.assert_close(read["start"], {"a": x})
