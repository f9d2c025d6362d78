import pytest
import torch
import torch.nn.functional as F
from cases import FunctionalResidual, ResidualNet, SharedActivation
from function_model import Function
from torch import Tensor, nn

from bn_lightning.errors import NoSiteError, UnknownNameError
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.plan import InsertionPlan
from bn_lightning.surgery.planning import plan_insertion

IMAGES = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def rows(plan: InsertionPlan) -> list[tuple[str, str, str, int]]:
    return [(site.name, site.attach, site.layer, site.channels) for site in plan.inserted]


def test_affine_sites_normalise_each_branch_of_a_residual_add_before_the_sum():
    assert rows(plan_insertion(ResidualNet(), IMAGES, site="affine")) == [
        ("relu_0", "producer", "stem", 4),
        ("blocks.0.relu", "producer", "blocks.0.conv1", 4),
        ("blocks.0.conv2", "producer", "blocks.0.conv2", 4),
        ("blocks.1.relu", "producer", "blocks.1.conv1", 4),
        ("blocks.1.conv2", "producer", "blocks.1.conv2", 4),
    ]


def test_a_residual_net_with_affine_sites_is_the_hand_written_one():
    torch.manual_seed(0)
    model = ResidualNet()
    written = {name: nn.BatchNorm2d(4) for name in ("stem", "conv1", "conv2")}
    insert_batch_norm(model, IMAGES, site="affine", include=["relu_0", "blocks.0.*"])
    x = F.relu(written["stem"](F.conv2d(IMAGES[0], model.stem.weight, model.stem.bias)))
    first, second = model.blocks
    hidden = F.relu(written["conv1"](F.conv2d(x, first.conv1.weight, first.conv1.bias, padding=1)))
    x = F.relu(written["conv2"](F.conv2d(hidden, first.conv2.weight, first.conv2.bias, padding=1)) + x)
    x = model.head(second(x).mean((2, 3)))
    torch.testing.assert_close(model(IMAGES[0]), x)


def test_an_affine_site_falls_back_to_the_nonlinearity_where_no_layer_feeds_it():
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(5, 4)), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(x @ self.weight))

    (site,) = plan_insertion(Raw(), (torch.randn(6, 5),), site="affine").inserted
    assert (site.attach, site.name) == ("call", "relu_0")


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 1)), (3, 2, 2), ("1.input", "1", 12)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)), (3, 5, 5), ("0.input", "0", 3)),
        (nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 1)), (9, 7), ("0.input", "0", 7)),
    ],
    ids=["flattened", "images", "tokens"],
)
def test_a_norm_on_the_raw_inputs_goes_in_front_of_the_layer_that_reads_them(model, x, expected):
    batch = torch.randn(6, *x) * 3 + 5
    plan = insert_batch_norm(model, (batch,), inputs=True)
    first = plan.inserted[0]
    assert (first.name, first.layer, first.channels) == expected
    assert (first.attach, first.op) == ("input", "input")
    assert len(plan.inserted) == 2
    seen = []
    layer = model.get_submodule(first.layer)
    layer.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    model(batch)
    flat = seen[0].double().movedim(first.channel_dim, -1).reshape(-1, first.channels)
    torch.testing.assert_close(flat.mean(0), torch.zeros(first.channels).double(), atol=1e-6, rtol=0)  # float32 sums
    torch.testing.assert_close(flat.var(0, correction=0), torch.ones(first.channels).double(), atol=1e-4, rtol=0)  # eps


def test_inputs_alone_can_be_asked_for():
    model = nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 1))
    plan = plan_insertion(model, (torch.randn(6, 7),), inputs=True, include=["*.input"])
    assert [site.name for site in plan.inserted] == ["0.input"]


def test_inputs_of_which_no_layer_reads_one_are_refused():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(NoSiteError, match="no layer of Sequential reads a floating-point input directly"):
        plan_insertion(model, (torch.randint(5, (6,)),), inputs=True)


class TwoPaths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(4, 6), nn.Linear(3, 6)
        self.act, self.head = nn.Tanh(), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 4:
            return self.head(self.act(self.wide(x)))
        return self.head(F.relu(self.narrow(x)))


def test_examples_of_several_paths_make_one_plan():
    model = TwoPaths()
    wide, narrow = torch.randn(5, 4), torch.randn(5, 3)
    assert [site.layer for site in plan_insertion(model, (wide,)).sites] == ["wide"]
    plan = insert_batch_norm(model, (wide,), more_examples=[((), {"x": narrow})])
    assert [(site.layer, site.visits) for site in plan.inserted] == [("wide", 1), ("narrow", 1)]
    assert plan.num_examples == 2
    assert InsertionPlan.from_dict(plan.to_dict()) == plan
    model(wide), model(narrow)


def test_examples_of_one_path_do_not_count_as_visits_nor_as_a_recurrence():
    for model, shape in ((ResidualNet(), (3, 8, 8)), (FunctionalResidual(), (6,)), (SharedActivation(), (5,))):
        alone = plan_insertion(model, (torch.randn(4, *shape),))
        more = [((torch.randn(batch, *shape),), {}) for batch in (3, 5)]
        united = plan_insertion(model, (torch.randn(4, *shape),), more_examples=more)
        assert united.sites == alone.sites


def test_a_call_that_paths_reach_behind_different_layers_is_skipped():
    class Either(TwoPaths):
        def forward(self, x: Tensor) -> Tensor:
            x = self.wide(x) + 1 if x.shape[-1] == 4 else self.narrow(x) + 1
            return self.head(F.relu(x))

    plan = plan_insertion(Either(), (torch.randn(5, 4),), more_examples=[((torch.randn(5, 3),), {})])
    assert [site.decision for site in plan.sites] == ["skip"]
    assert "behind different layers (wide, narrow)" in plan.sites[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "befor"}, "placement is 'before' or 'after' the nonlinearity, not 'befor'"),
        ({"site": "layer"}, "site is 'nonlinearity' or 'affine', not 'layer'"),
        ({"site": "affine", "placement": "after"}, "placement='after' has none"),
        ({"bias": "zero"}, "bias is 'freeze' or 'keep', not 'zero'"),
        ({"existing": ["batch", "weight"]}, "existing names norms among .*, not 'weight'"),
        ({"norm": "bach"}, "No norm is called 'bach'; the names are batch, layer"),
        (
            {"norm_options": {"momentun": 0.1}},
            "The batch norm has no option 'momentun'; it takes eps, momentum, affine",
        ),
        ({"norm": nn.LayerNorm, "norm_options": {"eps": 1}}, "let the factory set its own"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused(options, message):
    error = ValueError if "norm_options" in options and "norm" in options else UnknownNameError
    with pytest.raises(error, match=message):
        plan_insertion(ResidualNet(), IMAGES, **options)


@pytest.mark.parametrize("args", [IMAGES[0], list(IMAGES)])
def test_arguments_that_are_no_tuple_are_refused(args):
    with pytest.raises(TypeError, match="args is the tuple of positional arguments"):
        plan_insertion(ResidualNet(), args)


def test_arguments_of_a_further_example_that_are_no_tuple_are_refused():
    with pytest.raises(TypeError, match="args is the tuple"):
        plan_insertion(ResidualNet(), IMAGES, more_examples=[(IMAGES[0], {})])


def test_an_instance_norm_is_skipped_where_there_is_neither_space_nor_time():
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 1))
    plan = plan_insertion(model, (torch.randn(4, 2, 8),), norm="instance")
    assert [site.decision for site in plan.sites] == ["insert", "skip"]
    assert "needs axes of space or time" in plan.sites[1].reason


@pytest.mark.parametrize(("existing", "expected"), [(("batch",), ["insert"]), (("layer",), ["skip"])])
def test_existing_says_which_norms_count(existing, expected):
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 1))
    plan = plan_insertion(model, (torch.randn(5, 4),), existing=existing)
    assert [site.decision for site in plan.sites] == expected


def test_a_layer_that_reads_raw_inputs_twice_shares_statistics_and_says_so():
    def run(model: Function, left: Tensor, right: Tensor) -> Tensor:
        return model.head(F.relu(model.embed(left) - model.embed(right)))

    model, pair = Function(run, embed=nn.Linear(5, 4), head=nn.Linear(4, 1)), (torch.randn(6, 5), torch.randn(6, 5))
    site = insert_batch_norm(model, pair, inputs=True).inserted[0]
    assert (site.attach, site.visits) == ("input", 2)
    assert site.reason == "the raw input that embed reads; passed 2 times a forward, which share statistics"
    model(*pair)
    assert int(model.embed.bn_lightning_norm[0].num_batches_tracked) == 2
