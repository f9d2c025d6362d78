import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bn_lightning.surgery.tracing import axes
from bn_lightning.surgery.tracing.trace import trace_calls


@settings(max_examples=50, deadline=None)
@given(data=st.data(), ndim=st.integers(2, 5))
def test_the_axis_follows_any_permutation(data, ndim):
    sizes = data.draw(st.permutations(range(2, 2 + ndim)))
    order = data.draw(st.permutations(range(ndim)))
    axis = data.draw(st.integers(-ndim, -1))
    (found,) = axes.through_shape_op(torch.permute, source := torch.zeros(*sizes), axis, (source, order), {})
    assert found == order.index(axis % ndim) - ndim


def test_views_chunks_means_and_indices():
    x = torch.zeros(2, 6, 4, 5)

    def follow(function, *args, axis=-3, **kwargs):
        return axes.through_shape_op(function, x, axis, (x, *args), kwargs)

    assert follow(torch.flatten, 2) == [-2]
    assert follow(torch.mean, (2, 3)) == [-1]
    assert follow(torch.Tensor.view, 2, 6, 20) == [-2]
    assert follow(torch.Tensor.view, 2, 2, 3, 4, 5) == [-3]  # groups: the last axis that tells channels apart
    assert follow(torch.chunk, 2, dim=1) == [-3, -3]
    assert follow(torch.Tensor.__getitem__, (slice(None), slice(0, 3), 0)) == [-2]
    assert follow(torch.Tensor.__getitem__, (slice(None), 0)) == [None]
    assert follow(torch.mean, 1) == [None]
    assert follow(torch.Tensor.view, 7) == []


def test_affine_and_norm_operations_name_their_axis():
    assert [
        axes.of_affine(op, (2, 3, 4, 5, 6)[: 2 + n]) for n, op in enumerate(("linear", "conv1d", "conv_transpose2d"))
    ] == [
        -1,
        -2,
        -3,
    ]
    assert axes.of_norm("layer_norm", (2, 3, 4)) == -1
    assert axes.of_norm("batch_norm", (2, 3, 4)) == -2
    assert axes.of_norm("batch_norm", (2,)) is None


def test_an_elementwise_result_takes_the_axis_that_fits():
    assert axes.of_elementwise((2, 6, 4), [((1,), None), ((6, 1), -2), ((2, 6, 4), -2)]) == -2
    assert axes.of_elementwise((2, 6, 4), [((5,), -1)]) is None


def known(*shapes: tuple[int, ...], weights: str, axes_: tuple[int | None, ...] = (-1, -1)) -> list:
    return [((shape, axis), mark == "w") for shape, axis, mark in zip(shapes, axes_, weights, strict=True)]


def test_the_label_that_the_weight_brings_into_an_einsum_is_the_channel():
    batch, image, weight = (8, 3, 5), (8, 3, 5, 6), (4, 3)
    assert axes.of_einsum("bcl,oc->bol", known(batch, weight, weights="dw"), 3) == -2
    assert axes.of_einsum("oc,bcl->blo", known(weight, batch, weights="wd"), 3) == -1
    assert axes.of_einsum("...l, lo -> ...o", known(image, (6, 4), weights="dw"), 4) == -1
    assert axes.of_einsum("bc...,oc->bo...", known(image, weight, weights="dw"), 4) == -3
    assert axes.of_einsum("blc,co", known((8, 5, 3), (3, 4), weights="dw"), 3) == -1  # implied blo
    assert axes.of_einsum("btc,chd->bthd", known((8, 5, 6), (6, 2, 3), weights="dw"), 4) is None  # heads and channels
    assert axes.of_einsum("btc,c->btc", known((8, 5, 3), (3,), weights="dw"), 3) is None


def test_an_einsum_of_data_keeps_the_channels_of_its_first_operand_that_has_them():
    adjacency, nodes = (8, 5, 5), (8, 5, 3)
    assert axes.of_einsum("bij,bjc->bci", known(adjacency, nodes, weights="dd", axes_=(None, -1)), 3) == -2
    assert axes.of_einsum("bij,bjc->bi", known(adjacency, nodes, weights="dd", axes_=(None, -1)), 2) is None


def test_a_tensordot_ends_or_begins_with_the_free_axis_of_its_weight():
    assert axes.of_tensordot(1, (3, 2), weight_first=False) == -1
    assert axes.of_tensordot(([1], [0]), (2, 3), weight_first=True) == -3
    assert axes.of_tensordot(([1, 2], [0, 1]), (3, 3), weight_first=False) == -1
    assert axes.of_tensordot(1, (3, 3), weight_first=False) is None
    assert axes.of_tensordot(torch.tensor(1), (3, 2), weight_first=False) is None


def test_the_axis_of_a_product_is_that_of_the_equation_when_it_is_run():
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(7, 3))

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            a = torch.einsum("bcl,oc->bol", x, self.weight)
            b = torch.einsum(x, [0, 1, 2], self.weight, [3, 1], [0, 2, 3])
            c = torch.tensordot(self.weight, x, ([1], [1]))
            d = torch.tensordot(x.transpose(1, 2), self.weight.T, dims=1)
            e = torch.einsum("ij,boj->boi", adjacency, a)
            return a.sum() + b.sum() + c.sum() + d.sum() + e.sum()

    model = Products()
    nodes = trace_calls(model, lambda: model(torch.randn(6, 3, 5), torch.randn(5, 5))).nodes
    found = [(node.shape, node.channel_dim) for node in nodes if node.op in ("einsum", "tensordot")]
    assert found == [((6, 7, 5), -2), ((6, 5, 7), -1), ((7, 6, 5), -3), ((6, 5, 7), -1), ((6, 7, 5), -2)]
