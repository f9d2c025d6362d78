import gc
import math
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from bn_lightning.probes.gradients import GradientRecorder, norm_of
from bn_lightning.probes.outputs import OutputTaps, find_outputs
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations


def network(*, dtype=torch.float32, inplace=True):
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)
    return nn.Sequential(*layers).to(dtype)


def batch(n=20, dtype=torch.float32, seed=1):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss_of(y):
    return y.square().mean() + y.sum() / 7


def watched(model, x, recorder):
    """Taps that watch the pre-activations of both nonlinearities."""
    return tap_preactivations(model, plan_insertion(model, (x,)).sites[:2], recorder.watch)


def expected(model, x):
    """The gradients with respect to both pre-activations, from autograd itself in float64."""
    double = network(dtype=torch.float64, inplace=False)
    double.load_state_dict(model.state_dict())
    first = double[0](x.double())
    second = double[2](first.relu())
    return torch.autograd.grad(loss_of(double[4](second.tanh())), (first, second))


def check(summaries, gradients, *, exact=True):
    for summary, truth in zip(summaries, gradients, strict=True):
        assert summary.count == truth.numel()
        assert summary.nonfinite == 0
        found = [norm_of(summary), summary.mean, summary.variance]
        wanted = [truth.norm(), truth.mean(), truth.var(correction=0)]
        torch.testing.assert_close(torch.tensor(found), torch.stack(wanted).float())
        torch.testing.assert_close(torch.tensor(summary.mean).float(), truth.mean().float())
        if exact:
            torch.testing.assert_close(summary.moments.mean.float(), truth.mean(0).float())
            torch.testing.assert_close(summary.moments.variance().float(), truth.var(0, correction=0).float())


@pytest.mark.parametrize("mode", ["sampled", "exact"])
@pytest.mark.parametrize("run", ["plain", "checkpoint", "reentrant"])
def test_gradients_are_those_of_autograd_with_in_place_activations_and_recomputation(mode, run):
    model, x = network(), batch()
    recorder = GradientRecorder([8, 5], mode=mode)
    with watched(model, x, recorder):
        if run == "plain":
            y = model(x)
        else:
            y = checkpoint(model, x.clone().requires_grad_(run == "reentrant"), use_reentrant=run == "reentrant")
        recorder.watching = False
        loss_of(y).backward()
    check(recorder.summaries(), expected(model, x))


# Importing the compiler makes torch warn of parts of its own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_has_no_graph_break_and_the_same_gradients(backend):
    torch._dynamo.reset()
    counters.clear()
    model, x = network(), batch()
    recorder = GradientRecorder([8, 5])
    with watched(model, x, recorder):
        compiled = torch.compile(model, backend=backend)
        for on in (True, False, True):
            recorder.watching = on
            loss_of(compiled(x)).backward()
            found = recorder.summaries()
            recorder.reset()
            if on:
                check(found, expected(model, x))
            else:
                assert [summary.elements for summary in found] == [0, 0]
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2


def test_micro_batches_and_a_second_backward_pass_each_count():
    model, parts = network(), [batch(12, seed=1), batch(5, seed=2)]
    recorder = GradientRecorder([8, 5])
    with watched(model, parts[0], recorder):
        for x in parts:
            loss_of(model(x)).backward()
        y = model(parts[0])
        loss_of(y).backward(retain_graph=True)
        (3 * loss_of(y)).backward()
    by_part = [expected(model, x) for x in parts]
    again = by_part[0]
    joined = [torch.cat([a, b, c, 3 * c]) for a, b, c in zip(*by_part, again, strict=True)]
    check(recorder.summaries(), joined)


def test_training_is_the_same_to_the_bit_with_dropout():
    ended = []
    for on in (False, True):
        model, x = network(), batch()
        model.insert(4, nn.Dropout(0.3))
        recorder = GradientRecorder([8, 5], mode="exact", max_elements=4)
        optimizer = torch.optim.Adam(model.parameters())
        torch.manual_seed(2)
        with watched(model, x, recorder):
            recorder.watching = on
            for _ in range(5):
                optimizer.zero_grad()
                loss = loss_of(model(x))
                loss.backward()
                optimizer.step()
        assert (recorder.summaries()[0].elements > 0) == on
        ended.append([loss, torch.get_rng_state(), *model.parameters()])
    assert all(map(torch.equal, *ended))


def test_layers_that_no_gradient_reaches_are_empty_and_never_zero():
    model, x = network(), batch()
    model[0].requires_grad_(False)
    recorder = GradientRecorder([8, 5])
    with watched(model, x, recorder):
        loss_of(model(x)).backward()
    frozen, trained = recorder.summaries()
    assert (frozen.elements, trained.elements) == (0, 100)
    assert math.isnan(norm_of(frozen))
    assert math.isnan(frozen.mean)
    # A gradient of zero is something else.
    recorder.reset()
    with watched(model, x, recorder):
        (0 * model(x).sum()).backward()
    assert norm_of(recorder.summaries()[1]) == 0


def test_a_gradient_penalty_is_not_taken_for_the_gradient_of_the_loss():
    model = network(inplace=False)
    x = batch().requires_grad_()
    recorder = GradientRecorder([8, 5])
    with watched(model, x, recorder):
        (inner,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        assert [summary.elements for summary in recorder.summaries()] == [0, 0]
        (loss_of(model(x)) + 0 * inner.sum()).backward()
    first, second = recorder.summaries()
    truth = expected(model, x.detach())
    assert norm_of(second) == pytest.approx(truth[1].norm().item(), rel=1e-6)
    assert norm_of(first) == pytest.approx(truth[0].norm().item(), rel=1e-6)


def test_gradients_that_come_after_the_window_or_by_recomputation_outside_of_it_are_left_out():
    model, x = network(), batch()
    recorder = GradientRecorder([8, 5])
    with watched(model, x, recorder):
        late = loss_of(model(x))
        recorder.watching = recorder.taking = False
        late.backward()
        loss_of(checkpoint(model, x, use_reentrant=False)).backward()
    assert [summary.elements for summary in recorder.summaries()] == [0, 0]


def test_the_divisor_may_change_between_backward_passes():
    model, x = network(), batch()
    recorder = GradientRecorder([8, 5], mode="exact")
    with watched(model, x, recorder):
        for scale in (1024.0, 512.0):
            recorder.divide_by(scale)
            (scale * loss_of(model(x))).backward()
    check(recorder.summaries(), [torch.cat([g, g]) for g in expected(model, x)])
    assert recorder.summaries()[0].extremes.abs().max() == pytest.approx(expected(model, x)[0].abs().max().item())


def test_channels_last_gradients_of_outputs_in_tuples_and_shared_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.lstm = nn.LSTM(16, 5, batch_first=True)

        def forward(self, x):
            x = self.conv(self.conv(x).relu())
            return self.lstm(x.flatten(2))[0][:, -1]

    torch.manual_seed(0)
    model = Net().to(memory_format=torch.channels_last)
    x = torch.randn(3, 4, 4, 4).contiguous(memory_format=torch.channels_last)
    outputs = find_outputs(model, "*", lambda: model(x))
    assert [output.label for output in outputs] == ["conv", "conv-2", "lstm"]
    recorder = GradientRecorder([output.channels for output in outputs])
    kept = {}
    with OutputTaps(model, outputs, recorder.watch), OutputTaps(model, outputs, lambda _, i, y, d: kept.update({i: y})):
        loss = loss_of(model(x))
        truth = torch.autograd.grad(loss, [kept[place] for place in range(3)], retain_graph=True)
        recorder.reset()
        loss.backward()
    for summary, gradient, output in zip(recorder.summaries(), truth, outputs, strict=True):
        flat = gradient.movedim(output.channel_dim, -1).reshape(-1, output.channels).double()
        torch.testing.assert_close(summary.moments.mean, flat.mean(0))
        assert norm_of(summary) == pytest.approx(flat.norm().item(), rel=1e-6)


def test_bfloat16_autocast_keeps_the_norm():
    model, x = network(), batch()
    for mode in ("sampled", "exact"):
        recorder = GradientRecorder([8, 5], mode=mode)
        with watched(model, x, recorder), torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        loss_of(y.float()).backward()
        # bfloat16 carries three digits through the layers.
        assert norm_of(recorder.summaries()[1]) == pytest.approx(expected(model, x)[1].norm().item(), rel=0.03)


@pytest.mark.parametrize("mode", ["sampled", "exact"])
@pytest.mark.parametrize("size", [1e-6, 1e-12, 1e-18])
def test_vanishing_gradients_are_told_from_zero(mode, size):
    recorder = GradientRecorder([3], mode=mode, max_elements=None if mode == "sampled" else 4)
    x = torch.zeros(20_000, 3, requires_grad=True)
    y = x * 1
    recorder.watch("fc", 0, y, -1)
    truth = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * size
    (y * truth).sum().backward()
    assert norm_of(recorder.summaries()[0]) == pytest.approx(truth.double().norm().item(), rel=1e-5)


def test_a_neighbour_without_gradient_and_a_parameter_that_a_module_returns():
    weight = nn.Parameter(torch.ones(4, 2))
    recorder = GradientRecorder([2, 1, 1])
    for _ in range(3):
        recorder.watch("table", 0, weight, -1)
        left, right = (2 * weight).split(1, dim=1)
        recorder.watch("left", 1, left, -1)
        recorder.watch("right", 2, right, -1)
        left.sum().backward()
        table, of_left, of_right = recorder.summaries()
        # Hooks of an earlier step on the parameter, which is still the same, would count double.
        assert (table.count, table.mean) == (8, 1.0)
        assert (of_left.count, of_right.elements) == (4, 0)
        recorder.reset()
    assert not weight._backward_hooks


def test_what_is_watched_is_freed_with_its_graph():
    recorder = GradientRecorder([3])
    x = torch.ones(2, 3, requires_grad=True)
    y, seen = x * 2, weakref.ref(x)
    recorder.watch("fc", 0, y, -1)
    del x, y
    gc.collect()
    assert seen() is None
