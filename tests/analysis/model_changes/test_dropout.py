import pytest
import torch
from inserted import Lit, loader, module, trainer
from torch import nn
from torch.nn import functional as F

from bn_lightning.analysis.model_changes.dropout import SetDropout
from bn_lightning.callbacks import BatchNormInsertion


def changed(tmp_path, model, *callbacks):
    trainer(tmp_path, *callbacks, max_steps=0).fit(model, loader())
    return model


class Dropping(Lit):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.7)

    def forward(self, x):
        return self.net(self.drop(x))


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_dropout_that_is_there_is_set_and_none_is_added(tmp_path, p):
    model = changed(tmp_path, module(kind=Dropping), SetDropout(p))
    assert [part.p for part in model.modules() if isinstance(part, nn.Dropout)] == [p]


def test_a_model_without_gets_it_behind_every_nonlinearity(tmp_path):
    model = changed(tmp_path, module(), SetDropout(0.5))
    assert [part.p for part in model.modules() if isinstance(part, nn.Dropout)] == [0.5, 0.5]
    assert [type(part) for part in model.net[3]] == [nn.Tanh, nn.Dropout]
    torch.manual_seed(0)
    hidden = model.train().net[:2](torch.randn(400, 4))
    kept = F.relu(model.net[0](torch.randn(400, 4)))
    # Half of what the ReLU lets pass, give or take five standard errors of 3,200 values.
    share = (hidden > 0).float().mean() / (kept > 0).float().mean()
    assert share.item() == pytest.approx(0.5, abs=5 * (0.25 / 1600) ** 0.5)


def test_nothing_changes_where_nothing_is_to_be_dropped(tmp_path):
    assert [type(part) for part in changed(tmp_path, module(), SetDropout(0.0)).net] == [type(p) for p in module().net]


def test_a_norm_after_the_nonlinearity_comes_before_the_dropout(tmp_path):
    model = changed(tmp_path, module(), SetDropout(0.5), BatchNormInsertion(placement="after")).train()
    seen = []
    model.net[1].dropout.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    model(torch.randn(64, 4))
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(8), atol=1e-5, rtol=0)  # rounding of a mean of 64


class Functional(Lit):
    def forward(self, x):
        return self.net[4](F.relu(self.net[0](x)))


def test_functions_cannot_be_followed_by_dropout(tmp_path):
    with pytest.raises(ValueError, match=r"are to be followed by dropout, and some are functions"):
        changed(tmp_path, module(kind=Functional), SetDropout(0.2))
    changed(tmp_path, module(kind=Functional), SetDropout(0.0))


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        SetDropout(p)
