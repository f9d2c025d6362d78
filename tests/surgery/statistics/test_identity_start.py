"""A pretrained network computes the same with its inserted norms, by the statistics of its own activations."""

import copy
import math

import pytest
import torch
from cases import CASES, CalledTwice, ResidualNet
from oracles import pooled_statistics
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from bn_lightning import insert_batch_norm, plan_insertion
from bn_lightning.errors import BatchSizeError, InsertionWarning, NonFiniteError, NoNormError, StatisticsWarning
from bn_lightning.surgery.running.taps import tap_preactivations
from bn_lightning.surgery.statistics import identity_start
from bn_lightning.surgery.statistics.identity_start import start_as_identity

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_placement = pytest.mark.parametrize("placement", ["before", "after"])


def mlp(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Sigmoid(), nn.Dropout(dropout), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    )


def batches_of(sizes=(8, 8, 3), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 4, generator=generator) + 0.5 * index for index, size in enumerate(sizes)]


def norms_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def snapshot(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rest = [
        (module.training, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in model.modules()
    ]
    return state, rest


def assert_as_before(model, before):
    state, rest = snapshot(model)
    assert rest == before[1]
    assert_close(state, before[0], rtol=0, atol=0)


@each_case
@each_placement
def test_the_output_in_evaluation_is_that_of_the_network_before_insertion(case, placement):
    torch.manual_seed(0)
    model = case.make().eval()
    examples = [case.example(batch) for batch in (6, 16, 3)]
    expected = [model(*(x.clone() for x in example)) for example in examples]
    plan = insert_batch_norm(model, case.example(), placement=placement)
    report = start_as_identity(model, [x for (x,) in examples[:2]])
    assert len(report.layers) == len(plan.inserted)
    for example, before in zip(examples, expected, strict=True):
        assert_close(model(*example), before)


@each_case
@each_placement
def test_in_training_a_batch_of_all_the_data_gives_the_same_output_as_well(case, placement):
    torch.manual_seed(0)
    model = case.make().eval()
    (x,) = case.example(32)
    expected = model(x.clone())
    plan = insert_batch_norm(model, case.example(), placement=placement)
    start_as_identity(model, [x])
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if all(site.visits == 1 for site in plan.inserted):
        # Each of several norms subtracts a batch mean that is summed in another order.
        assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    else:  # each visit has statistics of its own, and the norm those of all
        assert not torch.allclose(model(x), expected)


@pytest.mark.parametrize("size", [100, 10_000])
def test_in_training_the_difference_shrinks_with_the_square_root_of_the_batch(size):
    model, (x, y) = mlp().eval(), torch.randn(2, 50_000, 4, generator=torch.Generator().manual_seed(0))
    y = y[:size]
    expected = model(y).detach()
    insert_batch_norm(model, (x[:8],))
    start_as_identity(model, [x])
    difference = (model.train()(y) - expected).square().mean().sqrt() / expected.std(0).mean()
    # Means and deviations of n values are off by about 1/√n; two norms, each of several channels, add up.
    assert 0.1 / size**0.5 < difference < 4 / size**0.5


@pytest.mark.parametrize("sizes", [(8, 8, 3), (1,) * 19, (19,), (3,) * 90], ids=len)
def test_the_statistics_are_those_of_the_original_networks_preactivations(sizes):
    model, batches = mlp(dropout=0.5), batches_of(sizes)
    original = copy.deepcopy(model).eval()
    seen = {}
    sites = plan_insertion(original, (batches_of()[0],)).sites
    with tap_preactivations(
        original, sites, lambda layer, index, x, axis: seen.setdefault(layer, []).append(x.clone())
    ):
        for batch in batches:
            original(batch)
    insert_batch_norm(model, (batches_of()[0],))
    report = start_as_identity(model, batches)
    assert (report.estimator, report.batches, report.left_out, report.skipped) == ("pooled", len(sizes), 0, ())
    assert [layer.count for layer in report.layers] == [sum(sizes)] * 2
    for layer, norm in (("0", model[0].bn_lightning_norm[0]), ("3", model[3].bn_lightning_norm[0])):
        mean, variance = pooled_statistics(seen[layer])
        assert_close(norm.running_mean, mean.float())
        assert_close(norm.running_var, variance.float())
        assert_close(norm.bias.detach(), mean.float())
        assert_close(norm.weight.detach(), (variance + norm.eps).sqrt().float())


def test_after_the_nonlinearity_the_statistics_are_those_of_its_output():
    model, batches = mlp(), batches_of()
    original = copy.deepcopy(model)
    insert_batch_norm(model, (batches[0],), placement="after")
    start_as_identity(model, batches)
    norms = list(norms_of(model).values())
    for norm, end in zip(norms, (2, 5), strict=True):
        mean, variance = pooled_statistics([original[:end](batch) for batch in batches])
        assert_close(norm.running_mean, mean.float())
        assert_close(norm.running_var, variance.float())


def test_the_uses_of_a_norm_are_pooled():
    torch.manual_seed(0)
    model, (x,) = CalledTwice().eval(), next(case for case in CASES if case.name == "called_twice").example(10)
    layer = copy.deepcopy(model.block.first)
    insert_batch_norm(model, (x,))
    report = start_as_identity(model, [x[:4], x[4:]])
    mean, variance = pooled_statistics([layer(x), layer(2 * x)])
    norm = model.block.first.bn_lightning_norm[0]
    assert_close(norm.running_mean, mean.float())
    assert_close(norm.running_var, variance.float())
    assert [layer.count for layer in report.layers] == [20, 20]


@each_placement
def test_dead_channels(placement):
    model, batches = mlp().eval(), batches_of()
    with torch.no_grad():
        model[3].weight[2] = 0
        model[3].bias[2] = -3  # dead after the ReLU
    expected = model(batches[0])
    insert_batch_norm(model, (batches[0],), placement=placement)
    start_as_identity(model, batches)
    norm = list(norms_of(model).values())[1]
    assert norm.running_var[2] == 0
    assert norm.weight[2].item() == pytest.approx(math.sqrt(1e-5))
    assert norm.bias[2].item() == (-3 if placement == "before" else 0)
    assert_close(model(batches[0]), expected)


def test_hand_written_norms_act_by_their_running_statistics_and_stay():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)
    )
    for batch in batches_of():
        model(batch)
    model.eval()
    hand_written = {name: tensor.clone() for name, tensor in model[1].state_dict().items()}
    expected = model(batches_of()[0])
    features = [model[:5](batch) for batch in batches_of()]
    insert_batch_norm(model, (batches_of()[0],))
    start_as_identity(model.train(), batches_of())
    assert_close(model[1].state_dict(), hand_written, rtol=0, atol=0)
    assert_close(model[4].bn_lightning_norm[0].running_mean, pooled_statistics(features)[0].float())
    assert_close(model.eval()(batches_of()[0]), expected)


@pytest.mark.parametrize("training", [True, False])
def test_all_but_the_norms_is_as_before(training):
    model, batches = mlp(dropout=0.5).train(training), batches_of()
    insert_batch_norm(model, (batches[0],))
    model[1].training = not training
    model(batches[0]).sum().backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    tensors = {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    (state, rest), random_state = snapshot(model), torch.get_rng_state()
    changed = ("running_mean", "running_var", "weight", "bias")

    def draws(model, batch):
        torch.rand(3)
        return model(batch)

    start_as_identity(model, batches, forward=draws)
    for name, tensor in model.state_dict().items():
        of_norm = "bn_lightning_norm" in name and name.endswith(changed)
        assert torch.equal(tensor, state[name]) != of_norm, name
    assert snapshot(model)[1] == rest
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())} == tensors
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert_close(found, gradients, rtol=0, atol=0)


def test_frozen_biases_stay_frozen_and_keep_their_values():
    model, batches = mlp(), batches_of()
    biases = {name: parameter.clone() for name, parameter in model.named_parameters() if name in ("0.bias", "3.bias")}
    insert_batch_norm(model, (batches[0],))
    start_as_identity(model, batches)
    for name, bias in biases.items():
        assert not model.get_parameter(name).requires_grad
        assert torch.equal(model.get_parameter(name), bias)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["batches", "forward"])
def test_an_exception_half_way_leaves_the_norms_as_they_were(error, at):
    model = mlp()
    insert_batch_norm(model, (batches_of()[0],))
    before, random_state = snapshot(model), torch.get_rng_state()

    def broken():
        yield from batches_of()
        if at == "batches":
            raise error("stop")
        yield None

    def run(model, batch):
        torch.rand(3)
        if batch is None:
            raise error("stop")
        return model(batch)

    with pytest.raises(error, match="stop"):
        start_as_identity(model, broken(), forward=run)
    assert_as_before(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 70])
def test_non_finite_statistics_name_the_norms_and_write_nothing(bad, where):
    model, batches = mlp(), batches_of((3,) * 80)
    insert_batch_norm(model, (batches[0],))
    before = snapshot(model)
    batches[where][0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"of '0.bn_lightning_norm.0'.* are NaN or infinite.*left as they were"):
        start_as_identity(model, batches)
    assert_as_before(model, before)


def test_batches_without_samples_bring_nothing():
    model, batches = mlp(), batches_of()
    insert_batch_norm(model, (batches[0],))
    reference = copy.deepcopy(model)
    start_as_identity(reference, batches)
    assert start_as_identity(model, [torch.empty(0, 4), *batches]).layers[0].count == 19
    assert_close(model.state_dict(), reference.state_dict(), rtol=0, atol=0)
    assert model[0].bn_lightning_norm[0](torch.empty(0, 6)).shape == (0, 6)


def test_bad_arguments():
    model, batches = mlp(), batches_of()
    with pytest.raises(NoNormError, match=r"Sequential has no inserted norms.*insert_batch_norm puts them in"):
        start_as_identity(model, batches)
    insert_batch_norm(model, (batches[0],))
    before = snapshot(model)
    with pytest.raises(ValueError, match="num_batches=0 leaves no batch"):
        start_as_identity(model, batches, num_batches=0)
    with pytest.raises(TypeError, match=r"batches is a Tensor.*pass \[batch\]"):
        start_as_identity(model, batches[0])
    with pytest.raises(TypeError, match=r"batches is a dict.*pass \[batch\]"):
        start_as_identity(model, {"x": batches[0]})
    with pytest.raises(ValueError, match="There were no batches, so the norms were left as they were"):
        start_as_identity(model, [])
    with pytest.raises(BatchSizeError, match=r"'0.bn_lightning_norm.0', '3.* received a single value a channel from 1"):
        start_as_identity(model, batches_of((1,)))
    assert_as_before(model, before)


def test_num_batches_takes_no_more():
    model, taken = mlp(), []
    insert_batch_norm(model, (batches_of()[0],))

    def endless():
        while True:
            taken.append(1)
            yield torch.randn(4, 4)

    assert start_as_identity(model, endless(), num_batches=5).batches == 5
    assert len(taken) == 5


def test_norms_the_forward_does_not_reach_become_the_identity_by_what_they_have():
    model, batches = mlp().eval(), batches_of()
    expected = model(batches[0])
    insert_batch_norm(model, (batches[0],))
    model.train()(3 * batches[1] + 1)
    model.eval()
    with pytest.raises(NoNormError, match=r"reached none of the inserted norms '0.bn_lightning_norm.0', '3.*forward="):
        start_as_identity(model, batches, forward=lambda model, batch: None)
    with pytest.warns(StatisticsWarning, match=r"norms '3.bn_lightning_norm.0' were not reached.*statistics they had"):
        report = start_as_identity(model, batches, forward=lambda model, batch: model[:3](batch))
    assert [norm.layer for norm in report.skipped] == ["3.bn_lightning_norm.0"]
    assert_close(model(batches[0]), expected)


def test_trained_norms_are_overwritten_with_a_warning_and_a_second_start_is_silent():
    model, batches = mlp(), batches_of()
    insert_batch_norm(model, (batches[0],))
    start_as_identity(model, batches)
    first = snapshot(model)
    start_as_identity(model, batches)
    assert_as_before(model, first)
    with torch.no_grad():
        model[3].bn_lightning_norm[0].weight.mul_(1.1)
    with pytest.warns(
        InsertionWarning, match=r"norms '3.bn_lightning_norm.0' had a trained scale.*without its inserted"
    ):
        start_as_identity(model, batches)
    assert_as_before(model, first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_floating_types(dtype):
    model, batches = mlp().to(dtype).eval(), [batch.to(dtype) for batch in batches_of()]
    expected = model(batches[0])
    insert_batch_norm(model, (batches[0],))
    start_as_identity(model, batches)
    norm = model[0].bn_lightning_norm[0]
    assert norm.running_mean.dtype == dtype
    original = [nn.functional.linear(batch, model[0].weight, model[0].bias) for batch in batches]
    assert_close(norm.running_mean, pooled_statistics(original)[0].to(dtype))
    # In bfloat16 each of mean, scale and output is rounded by 2^-9 of its size, and two layers add up.
    tolerances = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    assert_close(model(batches[0]), expected, **tolerances)


def test_under_autocast_the_statistics_are_those_of_what_the_norms_receive():
    model, batches = mlp(), batches_of()
    insert_batch_norm(model, (batches[0],))

    def forward(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)

    start_as_identity(model, batches, forward=forward)
    with torch.autocast("cpu", torch.bfloat16):
        received = [nn.functional.linear(batch, model[0].weight, model[0].bias) for batch in batches]
    assert received[0].dtype == torch.bfloat16
    assert_close(model[0].bn_lightning_norm[0].running_mean, pooled_statistics(received)[0].float())


def test_converted_to_sync_batch_norm():
    torch.manual_seed(0)
    model, x = ResidualNet().eval(), torch.randn(6, 3, 8, 8)
    expected = model(x)
    insert_batch_norm(model, (x,))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    start_as_identity(model, [x])
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms_of(model).values())
    assert_close(model(x), expected)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_run_without_compiling_it_anew(in_place):
    model, batches, graphs = mlp().eval(), batches_of(), []
    expected = model(batches[0])
    insert_batch_norm(model, (batches[0],))

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    if in_place:
        model.compile(backend=backend)
    compiled = model if in_place else torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(batches[0])
    before = len(graphs)
    report = start_as_identity(compiled, batches)
    assert before == len(graphs) > 0
    assert [layer.layer for layer in report.layers] == ["0.bn_lightning_norm.0", "3.bn_lightning_norm.0"]
    with torch.no_grad():
        assert_close(compiled(batches[0]), expected)


class Caching(nn.Module):
    """Keeps a tensor of its first forward, as position encodings do."""

    def __init__(self):
        super().__init__()
        self.cache = None

    def forward(self, x):
        self.cache = torch.full_like(x[:1], 2.0) if self.cache is None else self.cache
        return x * self.cache


def test_within_inference_mode_the_model_can_still_be_trained_afterwards():
    model, batches = mlp(), batches_of()
    insert_batch_norm(model, (batches[0],))
    model.insert(0, Caching())
    with torch.inference_mode():
        start_as_identity(model, batches)
    model(batches[0].requires_grad_()).sum().backward()
    assert batches[0].grad.isfinite().all()


def test_a_norm_with_a_patched_forward_keeps_it():
    model, batches = mlp().eval(), batches_of()
    expected = model(batches[0])
    insert_batch_norm(model, (batches[0],))
    norm = model[3].bn_lightning_norm[0]
    original = norm.forward
    norm.forward = patched = lambda x: original(x)
    start_as_identity(model, batches)
    assert norm.forward is patched
    assert_close(model(batches[0]), expected)


def test_no_more_rows_are_held_than_one_reduction_takes(monkeypatch):
    model, made = mlp(), []

    class Watched(identity_start.NormStatistics):
        def __init__(self, *args):
            super().__init__(*args)
            self.most = 0
            made.append(self)

        def new_row(self, count):
            rows = super().new_row(count)
            self.most = max(self.most, len(self.counts))
            return rows

    monkeypatch.setattr(identity_start, "NormStatistics", Watched)
    insert_batch_norm(model, (batches_of()[0],))
    assert start_as_identity(model, batches_of((2,) * 150)).layers[0].count == 300
    assert [layer.most for layer in made] == [64, 64]


def test_ranks_get_the_statistics_of_all_their_batches():
    batches = batches_of()
    whole, first, second = mlp(), mlp(), mlp()
    for model in (whole, first, second):
        insert_batch_norm(model, (batches[0],))
    vectors = []
    start_as_identity(second, batches[2:], gather=lambda vector: vectors.append(vector) or [vector])
    report = start_as_identity(first, batches[:2], gather=lambda vector: [vector, *vectors])
    start_as_identity(whole, batches)
    assert (report.batches, report.layers[0].count) == (3, 19)
    assert_close(first.state_dict(), whole.state_dict())
    assert len(vectors) == 1


def test_a_failure_is_told_to_the_other_ranks_first():
    model, batches, vectors = mlp(), batches_of(), []
    insert_batch_norm(model, (batches[0],))
    before = snapshot(model)
    with pytest.raises(TypeError, match="Cannot tell how to run"):
        start_as_identity(model, [*batches, 3], gather=lambda vector: vectors.append(vector) or [vector])
    with pytest.raises(RuntimeError, match="failed on rank 1"):
        start_as_identity(model, batches, gather=lambda vector: [vector, *vectors])
    assert_as_before(model, before)
