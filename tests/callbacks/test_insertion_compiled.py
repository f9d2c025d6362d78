import pytest
import torch
import torch.nn.functional as F
from inserted import Lit, data, loader, module, norms_of, trainer

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.checkpoint import load_from_checkpoint


class Quiet(Lit):
    """Logs nothing: `self.log` in a compiled training_step breaks Lightning 2.6 on torch 2.13, norms or not."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


class Adding(Quiet):
    """Calls its activations as functions, after additions, so that norms act within its own forward."""

    def forward(self, x):
        first = torch.relu(self.net[0](x) + 1)
        return self.net[4](torch.tanh(self.net[2](first) + first))


class WithExample(Adding):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 4)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained(tmp_path, kind, prepare=lambda model: model):
    model = module(kind=kind)
    trainer(tmp_path, BatchNormInsertion()).fit(prepare(model), loader())
    return model


@pytest.mark.parametrize("kind", [Quiet, Adding, WithExample])
@pytest.mark.parametrize("how", ["torch.compile(module)", "module.compile()"])
def test_a_compiled_module_trains_as_the_same_module_uncompiled(tmp_path, kind, how):
    def prepare(model):
        if how == "torch.compile(module)":
            return torch.compile(model, backend="eager")
        model.compile(backend="eager")
        return model

    compiled, plain = trained(tmp_path, kind, prepare), trained(tmp_path, kind)
    assert [int(norm.num_batches_tracked) for norm in norms_of(compiled)] == [8, 8]
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=0, atol=0)


# Importing inductor imports torch.jit code that torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_code_made_by_inductor_trains_the_norms(tmp_path):
    compiled = trained(tmp_path, Adding, torch.compile)
    torch.testing.assert_close(compiled.state_dict(), trained(tmp_path, Adding).state_dict())


def test_a_compiled_network_within_the_module_keeps_its_names_in_checkpoints(tmp_path):
    class Inside(Quiet):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(self.net, backend="eager")

    model, plain = module(kind=Inside), trained(tmp_path, Quiet)
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(model, loader())
    values = {name.replace("._orig_mod", ""): value for name, value in model.state_dict().items()}
    torch.testing.assert_close(values, plain.state_dict(), rtol=0, atol=0)
    fit.save_checkpoint(tmp_path / "end.ckpt")
    loaded = load_from_checkpoint(Inside, tmp_path / "end.ckpt")
    assert torch.equal(loaded.eval()(data()[:8][0]), model.eval()(data()[:8][0]))


def test_a_module_that_is_compiled_after_insertion(tmp_path):
    compiled, plain = trained(tmp_path, Adding), trained(tmp_path, Adding)
    trainer(tmp_path, BatchNormInsertion()).fit(torch.compile(compiled, backend="eager"), loader())
    trainer(tmp_path, BatchNormInsertion()).fit(plain, loader())
    assert [int(norm.num_batches_tracked) for norm in norms_of(compiled)] == [16, 16]
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_of_a_compiled_module_is_that_of_the_plain_one(tmp_path):
    model = module(kind=Adding)
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(torch.compile(model, backend="eager"), loader())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    loaded = load_from_checkpoint(Adding, tmp_path / "end.ckpt")
    assert plan_of(loaded) == plan_of(model)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
