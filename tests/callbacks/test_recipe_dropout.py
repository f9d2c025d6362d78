import pytest
import pytorch_lightning as pl
import torch
from inserted import Lit, loader, module, trainer
from recipe_cases import ByHand, Failing, Whole, only
from torch import nn
from torch.nn import functional as F

from bn_lightning.callbacks import BatchNormRecipe
from bn_lightning.errors import NoEffectWarning


class Dropouts(Lit):
    def __init__(self) -> None:
        super().__init__()
        kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
        self.kinds = nn.ModuleList([kind(0.1 * (place + 1)) for place, kind in enumerate(kinds)])
        self.off = nn.Dropout(0.0)
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.3, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
        self.seen = []

    def training_step(self, batch, batch_idx):
        x = self.layer(self.lstm(batch[0][:, None])[0])
        shapes = ((8, 4), (8, 4, 1), (8, 4, 1, 1), (8, 4, 1, 1, 1), (8, 4), (8, 4, 1))
        for kind, shape in zip(self.kinds, shapes, strict=True):
            torch.testing.assert_close(kind(x.reshape(shape)), x.reshape(shape), rtol=0, atol=0)
        self.seen.append([x.detach(), self.layer(self.lstm(batch[0][:, None])[0]).detach()])
        return self.net(x[:, 0]).square().mean()


def settings_of(model):
    return [(name, getattr(m, "p", None), getattr(m, "dropout", None)) for name, m in model.named_modules()]


@pytest.mark.parametrize("callbacks", [[], [Failing()]])
def test_dropout_of_every_kind_of_module_is_off_in_fit_and_comes_back(tmp_path, callbacks):
    model = module(kind=Dropouts)
    before, recipe = settings_of(model), only(remove_dropout=True)
    fit = trainer(tmp_path, recipe, *callbacks, max_epochs=1)
    if callbacks:
        with pytest.raises(OSError, match="the disk is on fire"):
            fit.fit(model, loader())
    else:
        fit.fit(model, loader())
    for once, twice in model.seen:
        torch.testing.assert_close(once, twice, rtol=0, atol=0)
    assert settings_of(model) == before
    names = [change.name for change in recipe.report.changes]
    layer = ["layer.self_attn", "layer.dropout", "layer.dropout1", "layer.dropout2"]
    assert names == [f"kinds.{place}" for place in range(6)] + ["lstm", *layer]
    assert not {"training_step", "train_dataloader"} & set(vars(model))
    assert not model._load_state_dict_pre_hooks


class Functional(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def training_step(self, batch, batch_idx):
        x = self.block(batch[0])
        x = F.dropout(x, 0.0) + F.dropout(x, 0.9, training=False)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0.3) + torch.dropout(x, 0.2, True)
        return F.cross_entropy(self.net(x), batch[1])


class Block(nn.Module):
    def forward(self, x):
        x = F.local_response_norm(x[:, :, None], 2)[..., 0]
        return F.dropout(F.alpha_dropout(x, p=0.25, training=self.training), training=self.training)


def test_functional_calls_are_named_with_their_lines(tmp_path):
    recipe, model = only(remove_dropout=True, remove_local_response_norm=True), module(kind=Functional)
    line = Block.forward.__code__.co_firstlineno + 1
    with (
        pytest.warns(NoEffectWarning, match="nothing to change for remove_dropout, remove_local_response_norm"),
        pytest.warns(
            NoEffectWarning, match=rf"block, local_response_norm \(at test_recipe_dropout.py:{line}\)"
        ) as caught,
    ):
        trainer(tmp_path, recipe, max_epochs=1).fit(model, loader())
    (message,) = [str(one.message) for one in caught if "functional calls" in str(one.message)]
    assert "Set their probability to 0 in the module" in message
    left = [(change.item, change.name, change.before) for change in recipe.report.changes if change.left]
    line_of_step = Functional.training_step.__code__.co_firstlineno + 3
    assert left == [
        ("remove_local_response_norm", "block, local_response_norm", f"at test_recipe_dropout.py:{line}"),
        ("remove_dropout", "block, alpha_dropout", f"p=0.25 at test_recipe_dropout.py:{line + 1}"),
        ("remove_dropout", "block, dropout", f"p=0.5 at test_recipe_dropout.py:{line + 1}"),
        (
            "remove_dropout",
            "the LightningModule, scaled_dot_product_attention",
            f"p=0.3 at test_recipe_dropout.py:{line_of_step}",
        ),
        ("remove_dropout", "the LightningModule, dropout", f"p=0.2 at test_recipe_dropout.py:{line_of_step}"),
    ]


def test_a_compiled_module_is_not_watched(tmp_path):
    class Compiled(Whole):
        def __init__(self) -> None:
            super().__init__()
            self.fast = torch.compile(self.net, backend="eager")

        def forward(self, x):
            return self.fast(x)

    recipe, model = BatchNormRecipe(), module(kind=Compiled)
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path, recipe).fit(model, loader())
    by_hand = module(kind=ByHand)
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path).fit(by_hand, loader(shuffle=True))
    torch.testing.assert_close(dict(model.net[0].named_parameters()), dict(by_hand.net[0].named_parameters()))
