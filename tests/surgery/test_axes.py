import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.surgery import axes


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
