import pytest
import torch
from peek import peek
from tiny import TinyNet, tiny_problem

from bn_lightning.analysis.study import Arm, Budget
from bn_lightning.analysis.weight_decay import WeightDecay


def test_it_is_set_and_weights_shrink_by_it(tmp_path):
    ends = {}
    for value in (0.0, 0.5):
        problem = tiny_problem(budget=Budget(max_steps=1, eval_every=1))
        arm = Arm(name="arm", callbacks=lambda value=value: [WeightDecay(value)])
        seen, _ = peek(problem, arm, tmp_path / str(value))
        assert seen.decays == [value]
        ends[value] = seen
    start, plain, decayed = ends[0.0].starting, ends[0.0].ending, ends[0.5].ending
    for name, weights in start.items():
        # SGD at rate 0.1: one step takes lr·λ·w off.
        torch.testing.assert_close(plain[name] - decayed[name], 0.1 * 0.5 * weights)


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_negative_one_is_refused(value):
    with pytest.raises(ValueError, match="A weight decay is 0 or above, not"):
        WeightDecay(value)


def test_an_optimizer_without_is_named(tmp_path):
    class Rprop(TinyNet):
        def configure_optimizers(self):
            return torch.optim.Rprop(self.parameters(), lr=0.01)

    with pytest.raises(Exception, match=r"Rprop of Rprop has no weight_decay to set to 0.1. Use an optimizer that"):
        peek(tiny_problem(module=Rprop), Arm(name="arm", callbacks=lambda: [WeightDecay(0.1)]), tmp_path)
