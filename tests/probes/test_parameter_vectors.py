"""Values go in and out of flat vectors unchanged, whatever the dtypes, strides and sizes."""

import torch
from torch.testing import assert_close

from bn_lightning.functional.norms import ROW
from bn_lightning.probes.parameter_vectors import ParameterVectors


def parameters():
    torch.manual_seed(0)
    return {
        "a": torch.randn(3, 5),
        "b": torch.randn(7, dtype=torch.float64),
        "c": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "d": torch.randn(()),
        "e": torch.randn(6, 1).expand(6, 4),
        "f": torch.randn(0, 2),
    }


def test_views_hold_what_was_put_in_and_write_through():
    values = parameters()
    vectors = ParameterVectors(values)
    vectors.fill(values.values())
    assert list(vectors.views) == list(values)
    for name, value in values.items():
        assert_close(vectors.views[name], value, rtol=0, atol=0)
    assert vectors.views["c"].is_contiguous(memory_format=torch.channels_last)
    assert [vector.dtype for vector in vectors.vectors] == [torch.float32, torch.float64]
    assert all(len(vector) % ROW == 0 for vector in vectors.vectors)
    vectors.vectors[0].mul_(2)
    assert_close(vectors.views["a"], 2 * values["a"])
    assert_close(vectors.views["b"], values["b"])


def test_no_element_is_shared_and_padding_is_0():
    values = parameters()
    vectors = ParameterVectors(values)
    vectors.fill(torch.ones_like(value) for value in values.values())
    assert [int(vector.sum()) for vector in vectors.vectors] == [15 + 48 + 1 + 24, 7]
    # Each begins where kernels like it.
    assert all(
        view.data_ptr() % 64 == vectors.vectors[0].data_ptr() % 64
        for view in vectors.views.values()
        if len(view.shape) and view.dtype == torch.float32 and view.numel()
    )


def test_other_memory_is_of_its_own():
    values = parameters()
    vectors = ParameterVectors(values)
    vectors.fill(values.values())
    other, copies = vectors.like(), vectors.copies()
    assert all(not view.any() for view in other.views.values())
    other.views["a"].fill_(5)
    vectors.vectors[0].zero_()
    assert_close(copies[0][:15].reshape(3, 5), values["a"])
    assert_close(other.vectors[0][:15], torch.full((15,), 5.0))
