import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bn_lightning.functional.plateaus import plateau_share

NORMS = torch.tensor([[10.0, 0.5], [2.0, math.nan]], dtype=torch.float64)


def test_plateaus_are_where_the_gradient_is_small():
    assert plateau_share(NORMS, 0.1) == 0.25
    assert plateau_share(NORMS, 0.3) == 0.5
    assert plateau_share(NORMS, 0.1, reference=100.0) == 0.5


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(max),
    st.floats(0.01, 0.99),
    st.integers(-20, 20),
)
def test_the_own_scale_is_blind_to_the_unit_of_the_loss(norms, fraction, power):
    here = torch.tensor(norms, dtype=torch.float64)
    share = plateau_share(here, fraction)
    assert share == sum(norm < fraction * max(norms) for norm in norms) / len(norms)
    # By powers of 2, which round nothing.
    assert plateau_share(here * 2.0**power, fraction) == share
    assert plateau_share(here, fraction, reference=max(norms)) == share


@pytest.mark.parametrize("norms", [torch.zeros(3), torch.full((3,), math.nan), torch.full((2,), math.inf)])
def test_what_is_flat_or_undefined_everywhere_has_no_scale_of_its_own(norms: Tensor):
    assert math.isnan(plateau_share(norms, 0.1))


def test_a_dead_net_is_a_plateau_by_the_scale_of_another():
    assert plateau_share(torch.zeros(3), 0.1, reference=1.0) == 1.0
    assert math.isnan(plateau_share(torch.full((3,), math.nan), 0.1, reference=1.0))


def test_out_of_range_is_refused():
    with pytest.raises(ValueError, match="is a gradient norm, finite and above 0; got 0"):
        plateau_share(NORMS, 0.1, reference=0.0)
    with pytest.raises(ValueError, match="is a gradient norm, finite and above 0; got nan"):
        plateau_share(NORMS, 0.1, reference=math.nan)
    with pytest.raises(ValueError, match=r"a fraction between 0 and 1 of the largest gradient, got 1\.0"):
        plateau_share(NORMS, 1.0)
