import numpy as np
import pytest
import torch
from torch import nn

from bn_lightning.analysis.array_digest import array_digest, parameter_digest


@pytest.mark.parametrize("convert", [np.asfortranarray, lambda array: np.repeat(array, 2, axis=0)[::2], torch.tensor])
def test_values_count_and_not_how_they_lie_in_memory(convert):
    array = np.arange(6.0).reshape(2, 3)
    assert array_digest(convert(array), str)["array"] == array_digest(array, str)["array"]
    assert array_digest(convert(array + 1), str)["array"] != array_digest(array, str)["array"]


def test_a_mask_counts():
    plain, masked = np.ma.array([1, 2]), np.ma.array([1, 2], mask=[False, True])
    assert array_digest(plain, str)["array"] == array_digest(masked, str)["array"]
    assert array_digest(plain, str)["mask"] != array_digest(masked, str)["mask"]


def test_arrays_of_objects_are_told_by_their_entries():
    assert array_digest(np.array([[1], "a"], dtype=object), str)["array"] == "[[1], 'a']"


def test_parameters_count_by_value_where_nothing_looks_drawn():
    weights = [torch.full((2,), 1.0), torch.full((2,), 2.0), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    one, two, drawn, other = (parameter_digest(nn.Parameter(values)) for values in weights)
    assert one != two
    assert drawn == other
    assert parameter_digest(nn.Parameter(torch.ones(2), requires_grad=False)) != one
