import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from monitored import SmallNet, quiet_trainer, small_data
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.errors import StatisticsWarning

TESTS = Path(__file__).parents[1]
EVERYTHING = ("preactivations", "activations", "gradients")


def values(table, step, layer, kind):
    rows = table[(table["step"] == step) & (table["layer"] == layer) & table["quantity"].str.startswith(f"{kind}_")]
    found = {name.removeprefix(f"{kind}_"): value for name, value in zip(rows["quantity"], rows["value"], strict=True)}
    return {name: value for name, value in found.items() if not name.startswith("gradient")}


def statistics(gradient):
    gradient = gradient.double()
    numbers = {"norm": gradient.norm(), "mean": gradient.mean(), "var": gradient.var(correction=0)}
    return {name: number.item() for name, number in numbers.items()} | {"nonfinite": 0.0}


def approximately(numbers):
    # Training computes in float32.
    return pytest.approx(numbers, rel=1e-5, abs=1e-8)


def by_autograd(weights, batches, *, divisor=1):
    """Gradients of each batch's mean loss, over `divisor`, with respect to what both sigmoids receive and return."""
    weights = {name: value.double() for name, value in weights.items()}
    parts = []
    for x in batches:
        first = x.double() @ weights["net.0.weight"].T + weights["net.0.bias"]
        first.requires_grad_()
        hidden = first.sigmoid()
        second = hidden @ weights["net.3.weight"].T + weights["net.3.bias"]
        returned = second.sigmoid()
        y = returned @ weights["net.5.weight"].T + weights["net.5.bias"]
        loss = nn.functional.cross_entropy(y, x[:, :3].argmax(1)) / divisor
        parts.append(torch.autograd.grad(loss, (first, hidden, second, returned, y)))
    names = ("net.0", "preactivation"), ("net.0", "activation"), ("net.3", "preactivation"), ("net.3", "activation")
    joined = [torch.cat(part) for part in zip(*parts, strict=True)]
    return dict(zip((*names, ("net.5", "output")), joined, strict=True))


def fit(tmp_path, monitor, module=None, data=None, **options):
    torch.manual_seed(0)
    module = module or SmallNet(dropout=0.0)
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], **{"max_steps": 4, **options})
    trainer.fit(module, data or small_data())
    return module, trainer


def check(monitor, module, steps, *, divisor=1):
    for step in steps:
        batches = [x for at, x in module.inputs if at == step]
        for (layer, kind), truth in by_autograd(module.weights[step], batches, divisor=divisor).items():
            found = values(monitor.table(), step, layer, f"{kind}_gradient")
            assert found == approximately(statistics(truth)), (step, layer, kind)


def test_gradients_of_everything_recorded_are_those_of_autograd(tmp_path):
    monitor = ActivationMonitor(every_n_steps=3, record=EVERYTHING, layers="net.5")
    module, _ = fit(tmp_path, monitor)
    assert sorted(set(monitor.table()["step"])) == [0, 3]
    check(monitor, module, (0, 3))


def test_all_micro_batches_count_with_the_share_that_the_trainer_gives_their_loss(tmp_path):
    monitor = ActivationMonitor(every_n_steps=1, record=EVERYTHING, layers="net.5", mode="exact")
    module, _ = fit(
        tmp_path, monitor, data=small_data(samples=56), accumulate_grad_batches=4, max_epochs=1, max_steps=-1
    )
    check(monitor, module, (0,), divisor=4)
    assert sorted(set(monitor.table()["step"])) == [0, 1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_have_each_gradient_once(tmp_path, reentrant):
    class Checkpointed(SmallNet):
        def forward(self, x):
            return checkpoint(self.net, x.requires_grad_(reentrant and self.training), use_reentrant=reentrant)

    monitor = ActivationMonitor(every_n_steps=1, record=EVERYTHING, layers="net.5")
    module, _ = fit(tmp_path, monitor, Checkpointed(dropout=0.0))
    check(monitor, module, range(4))


# torch.compile hides this warning of its own by a filter that does not stand up to errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_forward_has_its_gradients_recorded_without_a_graph_break(tmp_path):
    class Compiled(SmallNet):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.net.compile(backend="aot_eager")

    torch._dynamo.reset()
    counters.clear()
    monitor = ActivationMonitor(every_n_steps=2, record=EVERYTHING, layers="net.5")
    module, _ = fit(tmp_path, monitor, Compiled())
    check(monitor, module, (0, 2))
    assert not counters["graph_break"]


def test_a_scaled_loss_is_seen_through(tmp_path):
    from pytorch_lightning.plugins.precision import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    monitor = ActivationMonitor(every_n_steps=1, record=("preactivations", "gradients"))
    module, _ = fit(tmp_path, monitor, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 1024 * 2**4
    for step in range(4):
        truth = by_autograd(module.weights[step], [x for at, x in module.inputs if at == step])
        for layer in ("net.0", "net.3"):
            found = values(monitor.table(), step, layer, "preactivation_gradient")
            # float16 carries three digits through the layers.
            assert found["norm"] == pytest.approx(truth[layer, "preactivation"].norm().item(), rel=0.02)


def test_bfloat16_training(tmp_path):
    monitor = ActivationMonitor(every_n_steps=1, record=EVERYTHING)
    module, _ = fit(tmp_path, monitor, precision="bf16-mixed", max_steps=1)
    truth = by_autograd(module.weights[0], [x for _, x in module.inputs])
    found = values(monitor.table(), 0, "net.3", "preactivation_gradient")
    # bfloat16 carries two digits through the layers.
    assert found["norm"] == pytest.approx(truth["net.3", "preactivation"].norm().item(), rel=0.05)


class Manual(SmallNet):
    """Two backward passes and optimizer steps a batch."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for weight in (1.0, 2.0):
            optimizer.zero_grad()
            self.manual_backward(weight * nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()
        self.inputs.append((self.trainer.global_step - 1, batch[0]))


def test_two_backward_passes_of_a_manual_step_both_count(tmp_path):
    monitor, module = ActivationMonitor(every_n_steps=1, record=("preactivations", "gradients")), Manual()
    torch.manual_seed(0)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    fit(tmp_path, monitor, module, max_steps=1)
    once = by_autograd(weights, [module.inputs[0][1]])
    for layer in ("net.0", "net.3"):
        truth = torch.cat([once[layer, "preactivation"], 2 * once[layer, "preactivation"]])
        assert values(monitor.table(), 0, layer, "preactivation_gradient") == approximately(statistics(truth))


@pytest.mark.parametrize("mode", ["sampled", "exact"])
def test_training_is_the_same_to_the_bit_with_gradients_recorded(tmp_path, mode):
    ended = []
    options = {"record": EVERYTHING, "layers": "*", "mode": mode, "max_elements": 16}
    for callbacks in ([], [ActivationMonitor(every_n_steps=2, **options)]):
        torch.manual_seed(3)
        module = SmallNet()
        module.net.insert(0, nn.BatchNorm1d(6))
        quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(module, small_data(shuffle=True))
        ended.append([*module.state_dict().values(), torch.get_rng_state(), *(p.grad for p in module.parameters())])
    assert all(map(torch.equal, *ended))


def test_frozen_layers_are_nan_and_told_once(tmp_path):
    module = SmallNet(dropout=0.0)
    module.net[0].requires_grad_(False)
    monitor = ActivationMonitor(every_n_steps=1, record=("preactivations", "gradients"))
    with pytest.warns(StatisticsWarning, match=r"No gradient reached net\.0 in the last 3.*step 2") as told:
        fit(tmp_path, monitor, module, max_steps=6)
    assert sum("No gradient reached" in str(one.message) for one in told) == 1
    found = values(monitor.table(), 0, "net.0", "preactivation_gradient")
    assert math.isnan(found["norm"])
    assert values(monitor.table(), 0, "net.3", "preactivation_gradient")["norm"] > 0


def test_hooks_are_gone_after_an_exception_in_the_backward_pass(tmp_path):
    class Fails(SmallNet):
        def on_after_backward(self):
            raise KeyError("stop")

    monitor, module = ActivationMonitor(every_n_steps=1, record=EVERYTHING, layers="*"), Fails()
    with pytest.raises(KeyError, match="stop"):
        fit(tmp_path, monitor, module)
    y = module(torch.randn(4, 6))
    y.sum().backward()
    for part in module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
        assert "forward" not in vars(part)
    assert all(not parameter._backward_hooks for parameter in module.parameters())


def test_two_processes_with_uneven_data_are_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch, pytorch_lightning as pl\n"
        "from monitored import SmallNet, quiet_trainer, small_data\n"
        "from bn_lightning.callbacks.monitor import ActivationMonitor\n"
        "class Uneven(SmallNet):\n"
        "    def on_after_batch_transfer(self, batch, dataloader_idx):\n"
        "        keep = 5 - 2 * self.global_rank\n"
        "        return [part[:keep] for part in batch]\n"
        "if __name__ == '__main__':\n"
        "    torch.manual_seed(0)\n"
        "    module = Uneven(dropout=0.0)\n"
        "    monitor = ActivationMonitor(every_n_steps=2, record=('preactivations', 'activations', 'gradients'),\n"
        "                                layers='net.5')\n"
        "    logger = pl.loggers.CSVLogger(sys.argv[1], name='', version='run')\n"
        "    trainer = quiet_trainer(sys.argv[1], callbacks=[monitor], max_steps=4, logger=logger,\n"
        "                            strategy='ddp', devices=2)\n"
        "    trainer.fit(module, small_data(samples=40, batch_size=5))\n"
        "    torch.save({'inputs': module.inputs, 'weights': module.weights},\n"
        "               f'{sys.argv[1]}/rank{trainer.global_rank}.pt')\n"
    )
    subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=True,
        timeout=180,
        capture_output=True,
        env={"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    table = pd.read_csv(tmp_path / "run" / "activations.csv")
    for step in (0, 2):
        batches = [x for rank in ranks for at, x in rank["inputs"] if at == step]
        assert [len(x) for x in batches] == [5, 3]
        # The optimizer descends the mean of the ranks' losses.
        for (layer, kind), truth in by_autograd(ranks[0]["weights"][step], batches, divisor=2).items():
            found = values(table, step, layer, f"{kind}_gradient")
            assert found == approximately(statistics(truth)), (step, layer, kind)
        weights = ranks[0]["weights"][step]
        first = torch.cat(batches).double() @ weights["net.0.weight"].double().T + weights["net.0.bias"].double()
        found = values(table, step, "net.0", "activation")
        assert found["mean"] == approximately(first.sigmoid().mean().item())
        assert found["max"] == approximately(first.sigmoid().max().item())
