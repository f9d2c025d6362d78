import copy

import pytest
import torch
from inserted import Lit, data, loader, module, norms_of, trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.errors import UnknownNameError
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.planning import plan_insertion


class Residual(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)])
        self.example_input_array = torch.zeros(2, 4)

    def forward(self, x):
        first, second, third, norm, last = self.net
        hidden = torch.relu(first(x))
        hidden = torch.relu(hidden + second(hidden))
        return last(torch.tanh(norm(third(hidden))))


@pytest.mark.parametrize(
    "options",
    [
        {"placement": "after"},
        {"norm": "layer", "norm_options": {"eps": 1e-3}},
        {"norm_options": {"momentum": 0.01, "affine": False}},
        {"site": "affine"},
        {"include": ["relu_*1"]},
        {"exclude": ["relu_1"]},
        {"include": [nn.Linear], "exclude": ["relu_1"]},
        {"inputs": True},
        {"existing": ["batch"]},
        {"bias": "keep"},
    ],
    ids=str,
)
def test_every_option_plans_as_the_function_does(tmp_path, options):
    model, callback = module(kind=Residual), BatchNormInsertion(**options)
    trainer(tmp_path, callback).fit(model, loader())
    expected = plan_insertion(module(kind=Residual), (torch.zeros(2, 4),), **options)
    assert callback.plan == expected
    assert len(norms_of(model)) == len(expected.inserted) > 0
    assert callback.plan != plan_insertion(module(kind=Residual), (torch.zeros(2, 4),)), "the option does something"


class Switching(Lit):
    """Takes another path for positive batches than for negative ones."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({path: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)) for path in "ab"})

    def forward(self, x):
        return self.net["a" if x.sum() > 0 else "b"](x)


def test_several_batches_show_several_paths(tmp_path):
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(8)[:, None]
    batches = DataLoader(TensorDataset(signs * torch.rand(16, 4), torch.zeros(16, dtype=torch.long)), batch_size=8)
    model, callback = module(kind=Switching), BatchNormInsertion(num_examples=5)
    model.example_input_array = torch.zeros(2, 4)
    trainer(tmp_path, callback).fit(model, batches)
    assert [site.name for site in callback.plan.inserted] == ["net.a.1", "net.b.1"]
    assert (callback.plan.entry, callback.plan.num_examples) == ("training_step", 2)
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [2, 2]


class Compared(Lit):
    """Notes before training what it computes in training mode from all data at once.

    The batch's statistics are then those that the identity was made with, over all batches.
    """

    def on_train_start(self):
        self.computed = copy.deepcopy(self).train()(data()[:][0]).detach()


class ComparedManual(Compared):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


@pytest.mark.parametrize("kind", [Compared, ComparedManual])
@pytest.mark.parametrize("example", [None, torch.zeros(2, 4)], ids=["batch", "example"])
def test_norms_that_start_as_the_identity_keep_the_function(tmp_path, kind, example):
    model = module(kind=kind)
    model.example_input_array = example
    expected = module(kind=kind)(data()[:][0]).detach()
    trainer(tmp_path, BatchNormInsertion(init="identity")).fit(model, loader())
    torch.testing.assert_close(model.computed, expected)
    other = module(kind=kind)
    trainer(tmp_path, BatchNormInsertion()).fit(other, loader())
    assert (other.computed - expected).abs().max() > 0.01, "the standard start does not"


def test_the_statistics_of_the_identity_come_from_as_many_batches_as_asked_for(tmp_path):
    model = module(kind=Compared)
    model.on_train_start = lambda: seen.append(norms_of(model)[0].running_mean.clone())
    seen: list[torch.Tensor] = []
    trainer(tmp_path, BatchNormInsertion(init="identity", num_init_batches=3)).fit(model, loader())
    first = module().net[0]
    torch.testing.assert_close(seen[0], first(data()[:24][0]).mean(0).detach())


def test_averaged_weights_start_from_the_identity_too(tmp_path):
    model, first = module(), module().net[0]
    # No step updates the average, so its first copy of the model is what is left in the end.
    averaging = EMAWeightAveraging(update_starting_at_step=1000)
    trainer(tmp_path, BatchNormInsertion(init="identity"), averaging).fit(model, loader())
    variance, mean = torch.var_mean(first(data()[:][0]).detach(), 0, correction=0)
    norm = norms_of(model)[0]
    torch.testing.assert_close(norm.weight.detach(), (variance + norm.eps).sqrt())
    torch.testing.assert_close(norm.bias.detach(), mean)


class Counted(TensorDataset):
    reads = 0

    def __getitem__(self, index):
        Counted.reads += 1
        return super().__getitem__(index)


def test_a_resumed_run_keeps_its_statistics_and_reads_no_data_for_them(tmp_path):
    def batches():
        return DataLoader(Counted(*data().tensors), batch_size=8)

    class Example(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.example_input_array = torch.zeros(2, 4)

        def on_train_start(self):
            self.reads = Counted.reads

    whole, half = module(kind=Example), module(kind=Example)
    trainer(tmp_path, BatchNormInsertion(init="identity"), max_epochs=4).fit(whole, batches())
    first = trainer(tmp_path, BatchNormInsertion(init="identity"))
    Counted.reads = 0
    first.fit(half, batches())
    assert half.reads == len(data())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed, Counted.reads = module(7, Example), 0
    trainer(tmp_path, BatchNormInsertion(init="identity"), max_epochs=4).fit(
        resumed, batches(), ckpt_path=tmp_path / "half.ckpt"
    )
    assert resumed.reads == 0
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_names_and_numbers_that_do_not_exist_are_refused_at_once():
    with pytest.raises(UnknownNameError, match="placement is 'before' or 'after' the nonlinearity, not 'around'"):
        BatchNormInsertion(placement="around")
    with pytest.raises(UnknownNameError, match="No norm is called 'bacth'"):
        BatchNormInsertion(norm="bacth")
    with pytest.raises(UnknownNameError, match="norm has no option 'momentun'"):
        BatchNormInsertion(norm_options={"momentun": 0.1})
    with pytest.raises(UnknownNameError, match="site is 'nonlinearity' or 'affine', not 'conv'"):
        BatchNormInsertion(site="conv")
    with pytest.raises(UnknownNameError, match="entry is 'forward' or 'training_step', not 'predict_step'"):
        BatchNormInsertion(entry="predict_step")
    with pytest.raises(UnknownNameError, match="init is 'standard' or 'identity', not 'zero'"):
        BatchNormInsertion(init="zero")
    with pytest.raises(ValueError, match=r"num_examples=0 and num_init_batches=100 are numbers .* positive"):
        BatchNormInsertion(num_examples=0)
    with pytest.raises(ValueError, match=r"num_examples=1 and num_init_batches=0 are numbers .* positive"):
        BatchNormInsertion(num_init_batches=0)
    with pytest.raises(ValueError, match="num_examples=2 asks for training batches, and entry='forward'"):
        BatchNormInsertion(num_examples=2, entry="forward")
    for option, given in (("exclude", "net.1"), ("include", nn.Conv2d), ("existing", "batch")):
        with pytest.raises(TypeError, match=f"{option} is a list of several, such as "):
            BatchNormInsertion(**{option: given})


def test_forward_without_anything_to_run_it_on(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"Lit\.forward was to be run.*Set example_input_array"):
        trainer(tmp_path, BatchNormInsertion(entry="forward")).fit(module(), loader())


def test_a_module_with_other_options_than_asked_for_is_refused(tmp_path):
    model = module()
    trainer(tmp_path, BatchNormInsertion(norm_options={"momentum": 0.2})).fit(model, loader())
    assert plan_of(model).norm_options == {"momentum": 0.2}
    match = r"carries norms \(batch, before, momentum=0\.2\), and this callback was asked for others \(batch, before\)"
    with pytest.raises(MisconfigurationException, match=match):
        trainer(tmp_path, BatchNormInsertion()).fit(model, loader())
