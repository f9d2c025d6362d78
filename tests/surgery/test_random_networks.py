"""Laws of insertion that hold for any network, on random graphs of layers, activations, sums and concatenations."""

import copy
import json
import random
import warnings

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bn_lightning.errors import NoSiteError
from bn_lightning.surgery.attach import apply_plan, remove_batch_norm
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.plan import InsertionPlan
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations

EXAMPLES = {
    "mlp": (torch.randn(16, 3), torch.randn(9, 3)),
    "tokens": (torch.randn(8, 5, 3), torch.randn(3, 4, 3)),
    "signal": (torch.randn(8, 3, 7), torch.randn(4, 3, 5)),
    "image": (torch.randn(6, 3, 5, 5), torch.randn(3, 3, 4, 6)),
}
FUNCTIONS = {
    "relu": F.relu,
    "torch.relu": torch.relu,
    "gelu": F.gelu,
    "in place": lambda x: F.relu(x.clone(), inplace=True),
    "tanh": Tensor.tanh,
    "clamp": lambda x: x.clamp(min=0),
    "silu": lambda x: x * torch.sigmoid(x),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
}
SHAPES = {
    "flip": lambda x: x.flip(0),
    "scale": lambda x: x * 2 + 1,
    "there and back": lambda x: x.transpose(0, 1).transpose(0, 1),
}


class RandomNet(nn.Module):
    """A graph whose every unread value goes into the head; the same for the same kind and seed."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        draw = random.Random(seed)
        self.axis = -1 if kind in ("mlp", "tokens") else 1
        self.layers, self.owned = nn.ModuleList(), nn.ModuleList()
        self.shared = nn.ReLU()
        self.steps: list[tuple] = []
        widths, read = [3], set()

        def layer(inputs: int, outputs: int) -> nn.Module:
            if self.axis == -1:
                return nn.Linear(inputs, outputs)
            return {"signal": nn.Conv1d, "image": nn.Conv2d}[kind](inputs, outputs, 3, padding=1)

        for number in range(draw.randint(3, 10)):
            source, other = draw.randrange(max(0, len(widths) - 3), len(widths)), draw.randrange(len(widths))
            op = (
                "layer" if not number else draw.choice(["layer", "layer", "act", "act", "add", "cat", "shape", "again"])
            )
            width = widths[source]
            if op == "again":
                fitting = [index for index, made in enumerate(self.layers) if made.weight.shape[1] == width]
                op, argument = ("layer", draw.choice(fitting)) if fitting else ("act", "shared")
                width = self.layers[argument].weight.shape[0] if op == "layer" else width
            elif op == "layer":
                width, argument = draw.choice([4, 4, 5]), len(self.layers)
                self.layers.append(layer(widths[source], width))
            elif op == "act":
                argument = draw.choice([*FUNCTIONS, "shared", "owned", "owned"])
                if argument == "owned":
                    argument = len(self.owned)
                    self.owned.append(draw.choice([nn.ReLU, nn.Tanh, nn.PReLU])())
            elif op == "shape":
                argument = draw.choice([*SHAPES])
            else:
                like = [index for index in range(1, len(widths)) if widths[index] == width]
                fitting = like if op == "add" else [other]
                op, argument = (op, draw.choice(fitting)) if fitting else ("shape", "scale")
                width += widths[argument] if op == "cat" else 0
            self.steps.append((op, source, argument))
            read |= {source, argument} if op in ("add", "cat") else {source}
            widths.append(width)
        self.ends = [index for index in range(1, len(widths)) if index not in read]
        self.head = layer(sum(widths[index] for index in self.ends), 2)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for op, source, argument in self.steps:
            x = values[source]
            if op == "layer":
                x = self.layers[argument](x)
            elif op == "act" and isinstance(argument, int):
                x = self.owned[argument](x)
            elif op == "act":
                x = self.shared(x) if argument == "shared" else FUNCTIONS[argument](x)
            elif op == "shape":
                x = SHAPES[argument](x)
            else:
                x = x + values[argument] if op == "add" else torch.cat([x, values[argument]], self.axis)
            values.append(x)
        return self.head(torch.cat([values[index] for index in self.ends], self.axis))


networks = st.tuples(st.sampled_from([*EXAMPLES]), st.integers(0, 10**6))
options = st.sampled_from(
    [{"placement": "before"}, {"placement": "after"}, {"site": "affine"}, {"inputs": True}, {"bias": "keep"}]
)


@settings(deadline=None, max_examples=60)
@given(networks, options)
def test_norms_that_do_nothing_change_nothing(network, choices):
    model, (x, other) = RandomNet(*network), EXAMPLES[network[0]]
    before = model(x), model(other)
    try:
        insert_batch_norm(model, (x,), norm=lambda channels: nn.Identity(), **choices)
    except NoSiteError:
        return
    assert all(torch.equal(model(given), value) for given, value in zip((x, other), before, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an identity is no norm whose first state is known
        remove_batch_norm(model)
    assert torch.equal(model(x), before[0])


@settings(deadline=None, max_examples=60)
@given(networks, options)
def test_every_norm_runs_and_learns_and_the_plan_rebuilds_it(network, choices):
    model, (x, _) = RandomNet(*network), EXAMPLES[network[0]]
    fresh, plain = copy.deepcopy(model), model(x)
    try:
        plan = insert_batch_norm(model, (x,), **choices)
    except NoSiteError:
        return
    model(x).square().sum().backward()
    norms = [norm for norm in model.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    assert sorted(int(norm.num_batches_tracked) for norm in norms) == sorted(site.visits for site in plan.inserted)
    assert all(torch.isfinite(norm.weight.grad).all() for norm in norms)
    apply_plan(fresh, InsertionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the norms have seen a batch; here only the weights count, which are the same
        remove_batch_norm(model)
    assert torch.equal(model(x), plain)
    assert all(parameter.requires_grad for parameter in model.parameters())


@settings(deadline=None, max_examples=60)
@given(networks)
def test_what_a_nonlinearity_receives_has_mean_zero_and_variance_one(network):
    model, (x, _) = RandomNet(*network), EXAMPLES[network[0]]
    try:
        plan = plan_insertion(model, (x,), norm_options={"eps": 1e-12})
    except NoSiteError:
        return
    if not plan.inserted:
        return
    apply_plan(model.double(), plan)
    met = []

    def receive(layer: str, position: int, value: Tensor, axis: int) -> None:
        value = value.detach().movedim(axis, 0).flatten(1)
        met.append((position, value.mean(1), value.var(1, unbiased=False)))

    with tap_preactivations(model, plan.inserted, receive):
        model(x.double())
    visits = [sum(position == number for position, *_ in met) for number in range(len(plan.inserted))]
    assert visits == [site.visits for site in plan.inserted]
    for position, mean, variance in met:
        torch.testing.assert_close(mean, torch.zeros_like(mean), msg=plan.inserted[position].name)
        alive = variance[variance != 0]  # a channel that is the same throughout stays so
        torch.testing.assert_close(alive, torch.ones_like(alive), msg=plan.inserted[position].name)
