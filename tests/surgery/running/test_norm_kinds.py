import math

import pytest
import torch
from cases import FunctionalMLP
from torch import nn

from bn_lightning.errors import NormOptionError, UnknownNameError
from bn_lightning.surgery.plan import NORMS
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.norm_kinds import check_norm
from bn_lightning.surgery.running.norm_modules import make_norm


@pytest.mark.parametrize("norm", NORMS)
def test_an_unknown_option_is_refused_with_those_there_are(norm):
    with pytest.raises(UnknownNameError, match=rf"{norm} norm has no option 'momentun'; it takes .*eps.*affine"):
        check_norm(norm, {"momentun": 0.1})


def test_an_unknown_norm():
    with pytest.raises(UnknownNameError, match="No norm is called 'bach'; the names are batch, layer, group, instance"):
        check_norm("bach")
    with pytest.raises(UnknownNameError, match="No norm is called 'custom'"):
        make_norm(plan_insertion(FunctionalMLP(), (torch.randn(4, 5),)).inserted[0], "custom", None)


@pytest.mark.parametrize(
    ("norm", "options", "message"),
    [
        ("batch", {"momentum": "fast"}, "'momentum' of the batch norm is 'fast'; it must be a number from 0 to 1"),
        ("batch", {"momentum": 1.5}, "it must be a number from 0 to 1"),
        ("batch", {"affine": 1}, "'affine' of the batch norm is 1; it must be True or False"),
        ("batch", {"eps": None}, "it must be a positive number"),
        ("batch", {"eps": 0}, "'eps' of the batch norm is 0; it must be a positive number"),
        ("layer", {"eps": math.nan}, "'eps' of the layer norm is nan"),
        ("group", {"num_groups": 2.0}, "it must be a positive whole number"),
        ("group", {"num_groups": 0}, "it must be a positive whole number"),
        ("rms", {"eps": -1}, "or None for the smallest step"),
    ],
)
def test_a_value_that_an_option_cannot_have(norm, options, message):
    with pytest.raises(NormOptionError, match=message):
        check_norm(norm, options)


def test_options_of_a_factory_are_its_own():
    check_norm(nn.LayerNorm)
    with pytest.raises(NormOptionError, match=r"norm_options \(eps\) are for a norm that is named"):
        check_norm(nn.LayerNorm, {"eps": 1.0})
