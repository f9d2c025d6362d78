import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from inserted import Lit, data, loader, module, norms_of, trainer
from torch import nn

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.errors import InsertionWarning
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.insert import insert_batch_norm


class Manual(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        scheduler.step()
        self.log("loss", loss)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2)}


class Gan(pl.LightningModule):
    """Two networks, two optimizers, and a moving average of the generator that the step writes itself."""

    def __init__(self, *, penalty: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.penalty = penalty
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
        self.average = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4)).requires_grad_(False)

    def forward(self, z):
        return self.generator(z)

    def training_step(self, batch, batch_idx):
        of_generator, of_discriminator = self.optimizers()
        schedulers = self.lr_schedulers()
        real, fake = batch[0], self(torch.randn(len(batch[0]), 2))
        self.toggle_optimizer(of_discriminator)
        loss = F.softplus(self.discriminator(fake.detach())).mean() + F.softplus(-self.discriminator(real)).mean()
        if self.penalty:
            real = real.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.discriminator(real).sum(), real, create_graph=True)
            loss = loss + gradient.square().sum(1).mean()
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()
        self.untoggle_optimizer(of_discriminator)
        with self.toggled_optimizer(of_generator):
            of_generator.zero_grad()
            self.manual_backward(F.softplus(-self.discriminator(fake)).mean())
            of_generator.step()
        for scheduler in schedulers:
            scheduler.step()
        with torch.no_grad():
            for mine, other in zip(self.average.parameters(), self.generator.parameters(), strict=False):
                mine.lerp_(other, 0.1) if mine.shape == other.shape else None

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (self.generator, self.discriminator)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 3) for optimizer in optimizers]


def test_a_step_that_optimizes_manually_is_traced_and_trains_the_norms(tmp_path):
    model, by_hand = module(kind=Manual), module(kind=Manual)
    callback = BatchNormInsertion()
    trainer(tmp_path, callback).fit(model, loader())
    assert callback.plan.entry == "training_step"
    insert_batch_norm(by_hand, (data()[:8][0],))
    trainer(tmp_path).fit(by_hand, loader())
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=0, atol=0)


def test_with_an_example_the_forward_of_a_module_that_optimizes_manually_is_traced(tmp_path):
    model, callback = module(kind=Manual), BatchNormInsertion()
    model.example_input_array = torch.zeros(2, 4)
    trainer(tmp_path, callback).fit(model, loader())
    assert callback.plan.entry == "forward"
    assert all((norm.weight != 1).any() for norm in norms_of(model))


class Inspected(Gan):
    """Notes its weights before training."""

    def on_fit_start(self):
        self.before = {name: value.clone() for name, value in self.state_dict().items() if "bn_lightning" not in name}


@pytest.mark.parametrize("penalty", [False, True])
def test_both_networks_of_a_manual_step_get_norms_and_tracing_changes_no_weight(tmp_path, penalty):
    model = module(kind=Inspected, penalty=penalty)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    callback = BatchNormInsertion()
    fit = trainer(tmp_path, callback)
    fit.fit(model, loader())
    torch.testing.assert_close(model.before, original, rtol=0, atol=0)
    assert [site.name for site in callback.plan.inserted] == ["generator.1", "discriminator.1"]
    for network, optimizer in zip((model.generator, model.discriminator), fit.optimizers, strict=True):
        held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
        (norm,) = norms_of(network)
        assert {id(norm.weight), id(norm.bias)} <= held
        assert (norm.weight != 1).any()
    assert model.generator[0].weight.requires_grad
    assert model.discriminator[0].weight.requires_grad
    assert not {"optimizers", "lr_schedulers", "manual_backward", "training_step"} & set(vars(model))


def test_gan_training_equals_that_with_norms_put_in_by_hand(tmp_path):
    model, by_hand = module(kind=Gan), module(kind=Gan)
    insert_batch_norm(by_hand.generator, (torch.randn(8, 2),))
    insert_batch_norm(by_hand.discriminator, (data()[:8][0],))
    for part, callbacks in ((model, [BatchNormInsertion()]), (by_hand, [])):
        pl.seed_everything(3, verbose=False)
        trainer(tmp_path, *callbacks).fit(part, loader())
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=0, atol=0)


def test_networks_that_an_example_did_not_reach_are_named_with_the_way_to_reach_them(tmp_path):
    match = (
        r"saw Gan\.forward run, which did not reach 'discriminator', so no norm .*entry='training_step'.*"
        r"bnl\.insert_batch_norm\(module\.network, \(x,\)\)"
    )
    model = module(kind=Gan)
    model.example_input_array = torch.zeros(2, 2)
    with pytest.warns(InsertionWarning, match=match):
        trainer(tmp_path, BatchNormInsertion()).fit(model, loader())
    assert [site.name for site in plan_of(model).inserted] == ["generator.1"]
    other = module(kind=Gan)
    other.example_input_array = torch.zeros(2, 2)
    trainer(tmp_path, BatchNormInsertion(entry="training_step")).fit(other, loader())
    assert [site.name for site in plan_of(other).inserted] == ["generator.1", "discriminator.1"]


def test_networks_that_a_training_step_does_not_reach_are_named(tmp_path):
    class Idle(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.later = nn.Sequential(nn.Linear(4, 3), nn.ReLU())

    with pytest.warns(InsertionWarning, match=r"Idle\.training_step .* reach 'later'.*\(num_examples=…\) traces more"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(kind=Idle), loader())


def test_naming_the_sites_one_wants_is_no_reason_to_warn(tmp_path):
    model = module(kind=Gan)
    model.example_input_array = torch.zeros(2, 2)
    trainer(tmp_path, BatchNormInsertion(include=["generator.*"])).fit(model, loader())
    assert len(norms_of(model)) == 1


def test_a_manual_step_that_cannot_run_before_training_says_how_else(tmp_path):
    class Counting(Manual):
        def training_step(self, batch, batch_idx):
            self.trainer.optimizers[0].step()

    with pytest.raises(IndexError) as caught:
        trainer(tmp_path, BatchNormInsertion()).fit(module(kind=Counting), loader())
    assert any("with idle optimizers" in note and "set example_input_array" in note for note in caught.value.__notes__)
