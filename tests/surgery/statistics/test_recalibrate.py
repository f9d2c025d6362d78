"""Population statistics against float64 recomputation, and a model that is otherwise as found."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import norm_inputs, paper_statistics, pooled_statistics
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset

from bn_lightning.errors import BatchSizeError, NonFiniteError, NoNormError, StatisticsWarning, UnknownNameError
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm

ORACLES = {"pooled": pooled_statistics, "paper": paper_statistics}


def mlp(dropout=0.5, **norm):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6, **norm),
        nn.Sigmoid(),
        nn.Dropout(dropout),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5, **norm),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(3 * 4 * 4, 2),
    )


def batches_for(model, sizes=(8, 8, 8, 3), seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (4,) if isinstance(model[0], nn.Linear) else (2, 6, 6)
    return [torch.randn(size, *shape, generator=generator) + 0.5 * index for index, size in enumerate(sizes)]


def norms_of(model):
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }


def assert_statistics(model, batches, estimator="pooled"):
    for name, inputs in norm_inputs(model, batches).items():
        mean, variance = ORACLES[estimator](inputs)
        norm = model.get_submodule(name)
        assert_close(norm.running_mean, mean.to(norm.running_mean.dtype))
        assert_close(norm.running_var, variance.to(norm.running_var.dtype))


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("estimator", ORACLES)
def test_equals_float64_recomputation(make, estimator):
    model = make()
    report = recalibrate_batch_norm(model, batches_for(model), estimator=estimator)
    assert_statistics(model, batches_for(model), estimator)
    assert report.estimator == estimator
    assert (report.batches, report.left_out, report.skipped) == (4, 0, ())
    first = 1 if make is mlp else 16
    assert [layer.count for layer in report.layers] == [27 * first] * 2


def test_paper_estimator_equals_torchs_update_bn_without_dropout():
    model = mlp(dropout=0.0)
    reference = copy.deepcopy(model)
    update_bn(batches_for(model), reference)
    recalibrate_batch_norm(model, batches_for(model), estimator="paper")
    for name, norm in norms_of(model).items():
        assert_close(norm.running_mean, reference.get_submodule(name).running_mean)
        assert_close(norm.running_var, reference.get_submodule(name).running_var)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=7), estimator=st.sampled_from(list(ORACLES)))
def test_any_batch_sizes(sizes, estimator):
    model = mlp()
    recalibrate_batch_norm(model, batches_for(model, sizes), estimator=estimator)
    assert_statistics(model, batches_for(model, sizes), estimator)


def test_the_first_norms_statistics_do_not_depend_on_the_split():
    whole = torch.cat(batches_for(mlp()))
    models = [mlp(), mlp()]
    for model, sizes in zip(models, ((8, 8, 8, 3), (2, 20, 5)), strict=True):
        recalibrate_batch_norm(model, list(whole.split(sizes)))
    assert_close(models[0][1].running_mean, models[1][1].running_mean)
    assert_close(models[0][1].running_var, models[1][1].running_var)


def test_more_batches_than_one_reduction_holds():
    model = mlp()
    batches = batches_for(model, [3] * 150)
    assert recalibrate_batch_norm(model, batches).batches == 150
    assert_statistics(model, batches)


def test_num_batches_takes_no_more():
    model, taken = mlp(), []

    def endless():
        while True:
            taken.append(1)
            yield torch.randn(4, 4)

    assert recalibrate_batch_norm(model, endless(), num_batches=5).batches == 5
    assert len(taken) == 5


def snapshot(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()
    }
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    return state, modes, hooks, attributes


def assert_as_before(model, before, except_statistics=False):
    state, *rest = snapshot(model)
    assert rest == list(before[1:])
    for name, tensor in before[0].items():
        if not (except_statistics and name.endswith(("running_mean", "running_var"))):
            assert torch.equal(state[name], tensor), name


class Stateful(nn.Module):
    """Counts its calls in a buffer, also in evaluation mode, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + 0 * torch.rand(())


@pytest.mark.parametrize("training", [True, False])
def test_everything_else_is_as_before(training):
    model, batches = mlp().train(training), batches_for(mlp())
    model.insert(0, Stateful())
    model[4].training = not training
    references = {name: id(buffer) for name, buffer in model.named_buffers()}
    loss = model(torch.randn(4, 4)).sum()
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    before, random_state = snapshot(model), torch.get_rng_state()
    recalibrate_batch_norm(model, batches)
    assert_as_before(model, before, except_statistics=True)
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == references
    assert torch.equal(torch.get_rng_state(), random_state)
    after = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(after, gradients, strict=True))
    assert all(norm.running_mean.abs().sum() > 0 for norm in norms_of(model).values())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["batches", "forward"])
def test_an_exception_half_way_leaves_the_old_statistics(error, at):
    model = mlp()
    for _ in range(3):
        model(torch.randn(5, 4))
    before, random_state = snapshot(model), torch.get_rng_state()

    def broken():
        yield from batches_for(model)
        if at == "batches":
            raise error("stop")
        yield None

    def run(model, batch):
        if batch is None:
            raise error("stop")
        return model(batch)

    with pytest.raises(error, match="stop"):
        recalibrate_batch_norm(model, broken(), forward=run)
    assert_as_before(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_ctrl_c_while_writing_brings_the_old_statistics_back(monkeypatch):
    model = mlp()
    before = snapshot(model)
    from bn_lightning.surgery.statistics import write_population

    original, calls = write_population.running_statistics, []

    def interrupted(norm):
        calls.append(norm)
        if len(calls) == 4:  # reading both, writing the first, now the second
            raise KeyboardInterrupt
        return original(norm)

    monkeypatch.setattr(write_population, "running_statistics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recalibrate_batch_norm(model, batches_for(model))
    assert_as_before(model, before)


def test_dropout_is_off_and_the_norms_use_their_batch():
    """With dropout before the second norm the estimate fits what evaluation sees there."""
    model = mlp(dropout=0.9)
    recalibrate_batch_norm(model, batches_for(model))
    without = mlp(dropout=0.0)
    recalibrate_batch_norm(without, batches_for(without))
    assert_close(model[5].running_var, without[5].running_var)


def test_frozen_norms_act_by_their_own_statistics_and_are_named():
    model = mlp(dropout=0.0)
    for _ in range(5):
        model(torch.randn(6, 4))
    model[1].eval()
    mean, variance = model[1].running_mean.clone(), model[1].running_var.clone()
    with pytest.warns(StatisticsWarning, match="'1' were skipped: frozen.*training mode"):
        report = recalibrate_batch_norm(model, batches_for(model))
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(model[1].running_var, variance)
    assert [(norm.layer, "frozen" in norm.reason) for norm in report.skipped] == [("1", True)]
    inputs = [model[:5].eval()(batch) for batch in batches_for(model)]
    assert_close(model[5].running_mean, pooled_statistics(inputs)[0].float())
    assert_close(model[5].running_var, pooled_statistics(inputs)[1].float())


def test_norms_without_running_statistics_are_reported():
    model = mlp(dropout=0.0)
    model[1] = nn.BatchNorm1d(6, track_running_stats=False)
    report = recalibrate_batch_norm(model, batches_for(model))
    assert [(norm.layer, norm.reason) for norm in report.skipped] == [
        ("1", "keeps no running statistics (track_running_stats=False)")
    ]
    assert_close(model[5].running_mean, pooled_statistics(norm_inputs(model, batches_for(model))["5"])[0].float())


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3])
def test_momentum_does_not_matter_and_stays(momentum):
    model = mlp(momentum=momentum)
    model(torch.randn(4, 4))
    recalibrate_batch_norm(model, batches_for(model))
    assert_statistics(model, batches_for(model))
    assert model[1].momentum == momentum
    assert int(model[1].num_batches_tracked) == 1


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.again = self.norm

    def forward(self, x):
        return self.again(3 * self.norm(x) + 1)


def test_a_norm_used_twice_pools_both_uses():
    model, batches = Shared(), batches_for(mlp())
    report = recalibrate_batch_norm(model, batches)
    inputs = []
    for batch in batches:
        x = batch.double()
        normalised = (x - x.mean(0)) / (x.var(0, correction=0) + model.norm.eps).sqrt()
        inputs += [x, 3 * normalised + 1]
    mean, variance = pooled_statistics(inputs)
    assert_close(model.norm.running_mean, mean.float())
    assert_close(model.norm.running_var, variance.float())
    assert [(layer.layer, layer.count) for layer in report.layers] == [("norm", 54)]


class Doubling(nn.BatchNorm1d):
    """A subclass with a forward of its own, given its input by name."""

    def forward(self, input):
        return super().forward(2 * input)


class ByName(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(input=x)


@pytest.mark.parametrize(
    "norm", [nn.SyncBatchNorm(4), Doubling(4), nn.BatchNorm1d(4)], ids=lambda norm: type(norm).__name__
)
@pytest.mark.parametrize("wrap", [lambda norm: norm, ByName], ids=["positional", "by name"])
def test_subclasses_are_read_at_their_input(norm, wrap):
    batches = batches_for(mlp())
    recalibrate_batch_norm(wrap(norm), batches)
    mean, variance = pooled_statistics(batches)
    assert_close(norm.running_mean, mean.float())
    assert_close(norm.running_var, variance.float())


def test_a_norm_with_a_patched_forward_keeps_it():
    model = mlp()
    original = model[1].forward
    model[1].forward = lambda x: original(x)
    patched = model[1].forward
    recalibrate_batch_norm(model, batches_for(model))
    assert model[1].forward is patched
    assert_statistics(model, batches_for(model))


class ChannelsLast(nn.BatchNorm1d):
    def forward(self, input):
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


def test_a_subclass_with_another_layout_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'?norm'? \(ChannelsLast\) cannot be told.*shape \(5, 7, 4\)"):
        recalibrate_batch_norm(ByName(ChannelsLast(4)), [torch.randn(5, 7, 4)])


@pytest.mark.parametrize("sizes", [(8, 8, 1), (8, 1, 8, 1), (1, 8, 8)])
def test_a_single_sample_counts_as_one_and_is_normalised_by_the_others(sizes):
    model = mlp()
    batches = batches_for(model, sizes)
    report = recalibrate_batch_norm(model, batches)
    assert (report.batches, report.left_out) == (len(sizes), 0)
    assert [layer.count for layer in report.layers] == [sum(sizes)] * 2
    mean, variance = pooled_statistics([model[0](torch.cat(batches))])
    assert_close(model[1].running_mean, mean.float())
    assert_close(model[1].running_var, variance.float())
    # Float64: the second norm receives single samples through the first one as the others alone set it.
    large, single = ([batch for batch in batches if (len(batch) > 1) is many] for many in (True, False))
    inputs = norm_inputs(model, large)
    mean, variance = pooled_statistics(inputs["1"])
    wide = copy.deepcopy(model).double()
    for x in single:
        normalised = (wide[0](x.double()) - mean) / (variance + model[1].eps).sqrt()
        inputs["5"].append(wide[4](torch.sigmoid(normalised)))
    mean, variance = pooled_statistics(inputs["5"])
    assert_close(model[5].running_mean, mean.float())
    assert_close(model[5].running_var, variance.float())


@pytest.mark.parametrize("estimator", ["paper", "ema"])
def test_a_single_last_sample_is_left_out_and_said_where_its_variance_is_needed(estimator):
    model = mlp()
    batches = batches_for(model, (8, 8, 1))
    with pytest.warns(StatisticsWarning, match=f"1 of 3 batches were left out.*{estimator}.*drop_last"):
        report = recalibrate_batch_norm(model, batches, estimator=estimator)
    assert (report.batches, report.left_out) == (2, 1)
    expected = mlp()
    recalibrate_batch_norm(expected, batches[:2], estimator=estimator)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.buffers(), expected.buffers(), strict=True))


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm(4), Doubling(4)], ids=lambda norm: type(norm).__name__)
def test_a_single_last_sample_at_a_norm_with_its_own_forward(norm):
    batches = batches_for(mlp(), (8, 8, 1))
    assert recalibrate_batch_norm(norm, batches).batches == 3
    mean, variance = pooled_statistics(batches)
    assert_close(norm.running_mean, mean.float())
    assert_close(norm.running_var, variance.float())


def test_a_single_sample_with_several_positions_is_enough():
    model = cnn()
    batches = batches_for(model, (4, 1))
    assert recalibrate_batch_norm(model, batches).left_out == 0
    assert_statistics(model, batches)


@pytest.mark.parametrize("estimator", ["pooled", "paper", "ema"])
def test_only_batches_of_one_are_an_error_naming_the_layer(estimator):
    model = mlp()
    before = snapshot(model)
    with pytest.raises(BatchSizeError, match=r"None of 3 batches.*norm '1' received an input of shape \(1, 6\)"):
        recalibrate_batch_norm(model, batches_for(model, (1, 1, 1)), estimator=estimator)
    assert_as_before(model, before)


def test_a_loader_of_batches_of_one_is_not_read_to_its_end():
    model, read = mlp(), []
    batches = (read.append(0) or torch.randn(1, *batch.shape[1:]) for batch in batches_for(model) * 1000)
    with pytest.raises(BatchSizeError, match="norm '1' received"):
        recalibrate_batch_norm(model, batches)
    assert len(read) <= 100


def test_a_norm_that_saw_a_single_value_keeps_its_statistics():
    """The variance of one value would be 0, and evaluation would scale by 1/√ε."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.all, self.few = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            y = self.all(x)
            return self.few(y[x[:, 0] > 5]) if (x[:, 0] > 5).any() else y

    model, batches = Routed(), list(torch.rand(3, 8, 3))
    batches[1][0, 0] = 9.0
    with pytest.warns(StatisticsWarning, match="'few' were skipped: received a single value a channel"):
        report = recalibrate_batch_norm(model, batches)
    assert [layer.layer for layer in report.layers] == ["all"]
    assert_close(model.few.running_mean, torch.zeros(3))
    assert_close(model.few.running_var, torch.ones(3))
    mean, variance = pooled_statistics([torch.cat(batches)])
    assert_close(model.all.running_mean, mean.float())
    assert_close(model.all.running_var, variance.float())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 70])
def test_non_finite_statistics_name_the_layer_and_write_nothing(bad, where):
    model = mlp()
    before = snapshot(model)
    batches = batches_for(model, [3] * 80)
    batches[where][0, 0] = bad
    with pytest.raises(NonFiniteError, match=rf"'1', '5' are NaN or infinite.*in batch {where} \(from 0\), at '1'"):
        recalibrate_batch_norm(model, batches)
    assert_as_before(model, before)


def test_a_layer_that_breaks_in_the_middle_is_named():
    model = mlp()
    with torch.no_grad():
        model[4].weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"'5' are NaN or infinite.*batch 0 \(from 0\), at '5'"):
        recalibrate_batch_norm(model, batches_for(model))


def test_an_overflow_in_the_buffers_type_is_non_finite():
    norm = nn.BatchNorm1d(1).half()
    with pytest.raises(NonFiniteError, match="are NaN or infinite"):
        recalibrate_batch_norm(norm, [torch.tensor([[-6e4], [6e4]]).half()])


def test_bad_arguments():
    model = mlp()
    with pytest.raises(
        UnknownNameError, match="no estimator 'mean'; choose one of pooled, paper, fixed_point, last_batches, ema"
    ):
        recalibrate_batch_norm(model, [], estimator="mean")
    with pytest.raises(ValueError, match="num_batches=0 leaves no batch"):
        recalibrate_batch_norm(model, [], num_batches=0)
    with pytest.raises(TypeError, match=r"batches is a Tensor.*pass \[batch\]"):
        recalibrate_batch_norm(model, torch.randn(8, 4))
    with pytest.raises(ValueError, match="There were no batches"):
        recalibrate_batch_norm(model, [])
    with pytest.raises(NoNormError, match=r"Linear has no batch norm.*insert_batch_norm"):
        recalibrate_batch_norm(nn.Linear(1, 1), [torch.randn(8, 1)])
    frozen = nn.Sequential(nn.BatchNorm1d(1).eval(), nn.BatchNorm1d(1, track_running_stats=False))
    with pytest.raises(NoNormError, match=r"'0': frozen.*'1': keeps no running"):
        recalibrate_batch_norm(frozen, [torch.randn(8, 1)])
    with pytest.raises(RuntimeError, match=r"LazyBatchNorm1d.*has not been initialised"):
        recalibrate_batch_norm(nn.LazyBatchNorm1d(), [torch.randn(8, 1)])


def test_norms_the_forward_does_not_reach():
    model = mlp()
    model.spare = nn.BatchNorm1d(2)
    chain = lambda model, batch: model[:5](batch)  # noqa: E731 - one of several forwards in a line each
    with pytest.warns(StatisticsWarning, match="'5', 'spare' were skipped: not reached.*forward="):
        report = recalibrate_batch_norm(model, batches_for(model), forward=chain)
    assert [norm.layer for norm in report.skipped] == ["5", "spare"]
    assert_close(model[5].running_mean, torch.zeros(5))
    with pytest.raises(NoNormError, match="reached none of the batch norms '1', '5', 'spare'"):
        recalibrate_batch_norm(model, batches_for(model), forward=lambda model, batch: None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types(dtype):
    norm = nn.BatchNorm1d(3).to(dtype)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 3, generator=generator) + 20).to(dtype) for _ in range(40)]
    recalibrate_batch_norm(norm, batches)
    mean, variance = pooled_statistics(batches)
    # Rounding happens once, when the buffer is written.
    assert_close(norm.running_mean, mean.to(dtype))
    assert_close(norm.running_var, variance.to(dtype))
    seen = []
    recalibrate_batch_norm(norm, batches[:1], forward=lambda model, batch: seen.append(model(batch)))
    wide = torch.promote_types(dtype, torch.float32)
    assert_close(seen[0], nn.BatchNorm1d(3, dtype=wide)(batches[0].to(wide)).to(dtype))


@pytest.mark.parametrize("affine", [True, False])
def test_under_bfloat16_autocast(affine):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=affine))
    batches = batches_for(mlp())

    def forward(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)

    recalibrate_batch_norm(model, batches, forward=forward)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = [model[0](batch) for batch in batches]
    mean, variance = pooled_statistics(inputs)
    assert_close(model[1].running_mean, mean.float())
    assert_close(model[1].running_var, variance.float())


def test_a_large_mean_over_many_batches_keeps_the_variance():
    norm = nn.BatchNorm1d(1)
    generator = torch.Generator().manual_seed(0)
    batches = [1000 + torch.randn(8, 1, generator=generator) for _ in range(500)]
    recalibrate_batch_norm(norm, batches)
    assert_close(norm.running_var, pooled_statistics(batches)[1].float())


class Counted(nn.Module):
    def __init__(self, head=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = head or nn.Linear(4, 1)
        self.heads = 0

    def forward(self, x):
        x = self.body(x)
        self.heads += 1
        return self.head(x)


@pytest.mark.parametrize(("stop", "heads"), [(True, 5), (False, 16)])
def test_the_forward_stops_after_the_last_norm_but_is_verified_now_and_then(stop, heads):
    model, batches = Counted(), batches_for(mlp(), [5] * 16)
    reference = copy.deepcopy(model)
    recalibrate_batch_norm(model, batches, stop_after_last_norm=stop)
    assert model.heads == heads  # batches 1, 2, 4, 8 and 16 run to the end
    recalibrate_batch_norm(reference, batches, stop_after_last_norm=False)
    assert torch.equal(model.body[3].running_var, reference.body[3].running_var)


def test_no_stop_where_someone_else_has_hooks():
    model, batches = Counted(), batches_for(mlp(), [5] * 8)
    seen = []
    model.head.register_forward_hook(lambda *_: seen.append(1))
    recalibrate_batch_norm(model, batches)
    assert len(seen) == 8


class Catching(Counted):
    """Swallows whatever its body raises, or wraps it, and goes on through the norms once more."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.caught = 0

    def forward(self, x):
        try:
            return super().forward(x)
        except Exception as error:
            self.caught += 1
            if self.kind == "wraps":
                raise ValueError("body failed") from error
            return self.body(x)


@pytest.mark.parametrize("kind", ["swallows", "wraps"])
def test_a_forward_that_catches_everything_is_counted_once_and_stopped_no_more(kind):
    model, batches = Catching(kind), batches_for(mlp(), [5] * 12)
    reference = Counted()
    reference.load_state_dict(model.state_dict())
    recalibrate_batch_norm(model, batches)
    recalibrate_batch_norm(reference, batches, stop_after_last_norm=False)
    assert model.caught == 1
    for ours, expected in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.equal(ours, expected)


class Varying(Counted):
    """Calls its last norm again for inputs with a positive first value."""

    def forward(self, x):
        y = self.body(x)
        return self.head(self.body[3](y) if x[0, 0] > 50 else y)


def test_a_forward_that_varies_is_noticed():
    model, batches = Varying(), batches_for(mlp(), [5] * 16)
    batches[15][0, 0] = 100.0
    with pytest.warns(StatisticsWarning, match="stop_after_last_norm=False"):
        recalibrate_batch_norm(model, batches)
    complete = copy.deepcopy(model)
    report = recalibrate_batch_norm(complete, batches, stop_after_last_norm=False)
    assert [layer.count for layer in report.layers] == [80, 85]


class TakingTurns(nn.Module):
    """Runs its two branches in an order that the input decides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2))
        self.head = nn.Linear(4, 1)
        self.heads = 0

    def forward(self, x):
        branches = self.branches if x[0, 0] > 0 else self.branches[::-1]
        total = sum(branch(x) for branch in branches)
        self.heads += 1
        return self.head(total)


def test_norms_whose_order_varies_are_all_seen_before_the_stop():
    batches = list(torch.randn(16, 6, 4, generator=torch.Generator().manual_seed(0)))
    assert 4 < sum(bool(batch[0, 0] > 0) for batch in batches) < 12
    model, whole = TakingTurns(), TakingTurns()
    recalibrate_batch_norm(model, batches)
    recalibrate_batch_norm(whole, batches, stop_after_last_norm=False)
    assert (model.heads, whole.heads) == (5, 16)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.buffers(), whole.buffers(), strict=True))


def test_a_compiled_model():
    model = mlp(dropout=0.0)
    compiled = torch.compile(model, backend="eager")
    batches = batches_for(model, (8, 8, 8))
    compiled(batches[0])
    recalibrate_batch_norm(compiled, batches)
    assert_statistics(model, batches)
    torch._dynamo.reset()


def test_evaluation_uses_the_new_statistics_under_inference_mode():
    model = mlp().eval()
    with torch.inference_mode():
        recalibrate_batch_norm(model, batches_for(model))
        assert not model[1].running_mean.is_inference()
    assert_statistics(model, batches_for(model))


def test_gather_merges_what_the_ranks_hold():
    batches = batches_for(mlp(), (8, 3, 8, 5))
    vectors = []
    for half in (batches[:1], batches[1:]):
        recalibrate_batch_norm(mlp(), half, gather=lambda vector: [vectors.append(vector) or vector])
    for estimator in ORACLES:
        model = mlp()
        report = recalibrate_batch_norm(model, batches[:1], estimator=estimator, gather=lambda _: vectors)
        assert_statistics(model, batches, estimator)
        assert report.batches == 4


def test_the_report():
    model = mlp()
    with torch.no_grad():
        model[1].running_mean.fill_(1.0)
        model[1].running_var.fill_(4.0 - model[1].eps)
    model[5].eval()
    with pytest.warns(StatisticsWarning, match="'5' were skipped"):
        report = recalibrate_batch_norm(model, batches_for(model))
    table = report.table().set_index("layer")
    mean, variance = pooled_statistics(norm_inputs(model, batches_for(model))["1"])
    assert table.loc["1", "count"] == 27
    assert_close(table.loc["1", "mean_drift"], ((mean - 1).square() / 4).mean().sqrt().item())
    assert_close(table.loc["1", "log_variance_ratio"], ((variance + model[1].eps) / 4).log().mean().item())
    assert table.loc["5", "skipped"].startswith("frozen")
    assert "1 batch norms from 4 batches (pooled)" in str(report)


@pytest.mark.parametrize("placement", ["before", "after"])
def test_inserted_norms_let_the_forward_stop_after_the_last_of_them(placement):
    heads = []

    class Head(nn.Linear):
        def forward(self, x):
            heads.append(1)
            return super().forward(x)

    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), Head(5, 2))
    insert_batch_norm(model, (torch.randn(8, 4),), placement=placement)
    heads.clear()
    batches = [torch.randn(8, 4) for _ in range(16)]
    recalibrate_batch_norm(model, batches)
    assert len(heads) == 5  # the batches 1, 2, 4, 8 and 16 verify
    hidden = model[0].bn_lightning_norm[0].running_mean if placement == "before" else None
    if hidden is not None:
        torch.testing.assert_close(
            hidden, nn.functional.linear(torch.cat(batches), model[0].weight, model[0].bias).mean(0)
        )
    model(batches[0])
    assert len(heads) == 6


# Estimators


def evaluation_inputs(model, batches):
    """What every norm of the chain receives in evaluation, in float64."""
    x, inputs = torch.cat(batches).double(), {}
    for name, module in copy.deepcopy(model).double().eval().named_children():
        if name in norms_of(model):
            inputs[name] = [x]
        x = module(x)
    return inputs


@pytest.mark.parametrize("make", [mlp, cnn])
def test_the_fixed_point_is_what_evaluation_sees_where_all_batches_fit_into_one(make):
    model = make()
    batches = batches_for(model, (2, 3, 7, 1))
    report = recalibrate_batch_norm(model, batches, estimator="fixed_point")
    assert (report.estimator, report.batches) == ("fixed_point", 1)
    for name, inputs in evaluation_inputs(model, batches).items():
        mean, variance = pooled_statistics(inputs)
        assert_close(model.get_submodule(name).running_mean, mean.float())
        assert_close(model.get_submodule(name).running_var, variance.float())


def test_larger_merged_batches_come_nearer_to_the_fixed_point():
    batches = list(torch.randn(200, 2, 4, generator=torch.Generator().manual_seed(0)))
    exact, errors = mlp(), []
    recalibrate_batch_norm(exact, batches, estimator="fixed_point")
    for regroup in (None, 8, 50):
        model = mlp()
        recalibrate_batch_norm(model, batches, regroup=regroup)
        errors.append((model[5].running_var / exact[5].running_var - 1).abs().mean().item())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_regrouping_pools_the_merged_batches_and_counts_them():
    model = mlp()
    batches = batches_for(model, (3, 3, 3, 8, 1))
    report = recalibrate_batch_norm(model, [(batch, None) for batch in batches], regroup=7)
    assert report.batches == 4  # 3 + 3, 3, 8 as it is, 1
    expected = mlp()
    merged = [torch.cat(batches[:2]), *batches[2:]]
    recalibrate_batch_norm(expected, merged)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.buffers(), expected.buffers(), strict=True))


def test_num_batches_counts_batches_before_they_are_merged():
    report = recalibrate_batch_norm(mlp(), batches_for(mlp(), [4] * 9), regroup=8, num_batches=4)
    assert (report.batches, report.layers[0].count) == (2, 16)


@pytest.mark.parametrize("estimator", ["paper", "ema"])
def test_what_is_defined_by_batches_of_training_is_not_regrouped(estimator):
    with pytest.raises(ValueError, match=rf"regroup=8 merges batches.*estimator='{estimator}' is defined by"):
        recalibrate_batch_norm(mlp(), batches_for(mlp()), estimator=estimator, regroup=8)
    with pytest.raises(ValueError, match="regroup=1 samples a batch have no variance"):
        recalibrate_batch_norm(mlp(), batches_for(mlp()), regroup=1)


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_ema_takes_the_steps_that_torch_takes(momentum):
    model = mlp(dropout=0.0, momentum=momentum)
    batches = batches_for(model, [5] * 70)
    model(batches[3])
    model(batches[4])
    expected = copy.deepcopy(model)
    report = recalibrate_batch_norm(model, batches, estimator="ema", warn_drift=None)
    for batch in batches:
        expected(batch)
    assert report.batches == 70
    for name, norm in norms_of(model).items():
        theirs = expected.get_submodule(name)
        # Theirs rounds to float32 at each of 70 steps.
        assert_close(norm.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
        assert_close(norm.running_var, theirs.running_var, rtol=1e-5, atol=1e-6)
        assert int(norm.num_batches_tracked) == 2


def test_ema_of_ranks_is_averaged_by_their_batches():
    batches = batches_for(mlp(), (8, 3, 8, 5))
    vectors, alone = [], []
    for share in (batches[:1], batches[1:]):
        model = mlp()
        recalibrate_batch_norm(model, share, estimator="ema", gather=lambda vector: [vectors.append(vector) or vector])
        alone.append(model[1].running_mean)
    model = mlp()
    recalibrate_batch_norm(model, batches[:1], estimator="ema", gather=lambda _: vectors)
    assert_close(model[1].running_mean, (alone[0] + 3 * alone[1]) / 4)


def test_last_batches_need_somebody_who_watched():
    with pytest.raises(ValueError, match=r"last_batches.*RecentBatchStatistics\(model\) or BatchNormRecalibration"):
        recalibrate_batch_norm(mlp(), batches_for(mlp()), estimator="last_batches")


@settings(max_examples=20, deadline=None)
@given(data=st.data(), estimator=st.sampled_from(["pooled", "fixed_point"]))
def test_any_split_and_order_of_the_same_data_gives_the_same_statistics(data, estimator):
    """At fixed inputs, that is at the first norm; single samples included."""
    values = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    order = data.draw(st.permutations(range(24)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 23), max_size=8)))
    norm = nn.BatchNorm1d(4)
    recalibrate_batch_norm(norm, list(torch.tensor_split(values[list(order)], cuts)), estimator=estimator)
    mean, variance = pooled_statistics([values])
    assert_close(norm.running_mean, mean.float())
    assert_close(norm.running_var, variance.float())


# The loss and the drift


def held_out(model):
    assert not any(module.training for module in model.modules())
    assert not torch.is_grad_enabled()
    return model(torch.ones(3, 4)).square().mean()


def test_the_loss_before_and_after():
    model = mlp()
    expected = copy.deepcopy(model).eval()
    report = recalibrate_batch_norm(model, batches_for(model), loss=held_out)
    assert report.loss_before == expected(torch.ones(3, 4)).square().mean().item()
    assert report.loss_after == model.eval()(torch.ones(3, 4)).square().mean().item()
    assert f"loss {report.loss_before:.4g} → {report.loss_after:.4g}" in str(report)
    assert recalibrate_batch_norm(mlp(), batches_for(model)).loss_after is None


@pytest.mark.parametrize("call", [1, 2])
def test_a_loss_that_fails_leaves_the_old_statistics(call):
    model, calls = mlp(), []
    before = snapshot(model)

    def loss(model):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("no data")
        return 0.0

    with pytest.raises(RuntimeError, match="no data"):
        recalibrate_batch_norm(model, batches_for(model), loss=loss)
    assert_as_before(model, before)


def trained(**options):
    model = mlp(dropout=0.0, **options)
    for batch in batches_for(model, [8] * 60):
        model(batch)
    return model


@pytest.mark.parametrize("change", [lambda x: x + 10, lambda x: 10 * x], ids=["mean", "variance"])
def test_a_large_drift_is_warned_of_and_can_be_expected(change):
    batches = [change(batch) for batch in batches_for(mlp(), [8] * 60)]
    with pytest.warns(StatisticsWarning, match=r"statistics of '1'.* moved far: the mean of .*loss=.*warn_drift=None"):
        recalibrate_batch_norm(trained(), batches)
    report = recalibrate_batch_norm(trained(), batches, warn_drift=None)
    assert "1" in [norm.layer for norm in report.far(1.0)]
    recalibrate_batch_norm(trained(), batches, warn_drift=1000.0)


def test_a_young_running_average_has_to_move():
    model = mlp()
    model(torch.randn(8, 4))
    recalibrate_batch_norm(model, [batch + 100 for batch in batches_for(model)])


# Batches of any form


@dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.cat(batches_for(mlp())))


@pytest.mark.parametrize("regroup", [None, 16])
@pytest.mark.parametrize(
    ("wrap", "forward"),
    [
        (lambda x: x, None),
        (lambda x: (x, torch.zeros(len(x))), None),
        (lambda x: [x, {"y": torch.zeros(len(x))}], None),
        (lambda x: {"input": x}, None),
        (lambda x: Pair(x, torch.zeros(len(x))), lambda model, batch: model(batch.x)),
        (lambda x: {"x": x, "names": ["name"] * len(x)}, lambda model, batch: model(batch["x"])),
    ],
    ids=["tensor", "tuple", "list", "mapping", "dataclass", "user's forward"],
)
def test_batches_of_any_form(wrap, forward, regroup):
    model, batches = mlp(), batches_for(mlp())
    recalibrate_batch_norm(model, [wrap(batch) for batch in batches], forward=forward, regroup=regroup)
    assert_statistics(model, batches if regroup is None else [torch.cat(batches[:2]), torch.cat(batches[2:])])


def test_an_iterable_data_set_and_a_loader_that_is_shorter_than_asked():
    model = mlp()
    report = recalibrate_batch_norm(model, DataLoader(Stream(), batch_size=6), num_batches=50)
    assert report.batches == 5
    assert_statistics(model, torch.cat(batches_for(mlp())).split(6))


@pytest.mark.parametrize("progress", [False, True])
def test_a_combined_loader_with_a_forward(progress):
    model, batches = mlp(), batches_for(mlp(), (8, 8, 8))
    loader = CombinedLoader({"a": DataLoader(torch.cat(batches), 8), "b": DataLoader(torch.zeros(24, 1), 8)})
    recalibrate_batch_norm(model, loader, forward=lambda model, batch: model(batch[0]["a"]), progress=progress)
    assert_statistics(model, batches)


def test_a_progress_bar_goes_to_standard_error(capsys):
    recalibrate_batch_norm(mlp(), batches_for(mlp()), progress=True)
    shown = capsys.readouterr()
    assert "Batches for the statistics" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""
    recalibrate_batch_norm(mlp(), batches_for(mlp()))
    assert capsys.readouterr().err == ""


def test_a_batch_that_the_model_rejects_says_why_and_changes_nothing():
    model = mlp()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        recalibrate_batch_norm(model, [*batches_for(model), torch.randn(8, 7)])
    assert_as_before(model, before)
    with pytest.raises(TypeError, match=r"on a batch of type Pair.*forward=lambda"):
        recalibrate_batch_norm(model, [Pair(torch.ones(1), torch.ones(1))])


# What peers test of theirs


def test_the_exact_mean_and_variance_of_a_linear_net_whatever_the_batches():
    """As fvcore's test of precise statistics does, with batches that are uneven and of one size."""
    for sizes in ([8] * 6, [3, 9, 20, 2, 14]):
        values = torch.randn(48, 4, generator=torch.Generator().manual_seed(2))
        model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
        recalibrate_batch_norm(model, list(values.split(sizes)))
        assert_close(model[0].running_mean, values.mean(0))
        assert_close(model[0].running_var, values.var(0, correction=0))


def test_as_update_bn_it_starts_from_the_data_alone():
    """As torch's tests of update_bn do: the old statistics, however wild, leave no trace."""
    models = [mlp(), mlp()]
    for norm in norms_of(models[1]).values():
        norm.running_mean.fill_(1e6)
        norm.running_var.fill_(1e6)
    for model in models:
        recalibrate_batch_norm(model, batches_for(model))
    assert all(torch.equal(one, other) for one, other in zip(models[0].buffers(), models[1].buffers(), strict=True))
