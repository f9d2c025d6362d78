import pytest
from runs import made_up_results

from bn_lightning.analysis.plots.units import followed_units


def test_every_cells_unit_is_found_and_its_rows_are_renamed():
    results = made_up_results(seeds=2, max_steps=50)
    after = results["arm"] == "after"
    results.loc[after, "quantity"] = results.loc[after, "quantity"].str.replace("unit12", "unit3")
    rows, units = followed_units(results, "net.4", prefix="preactivation")
    assert units == {("none", 0): 12, ("none", 1): 12, ("before", 0): 12, ("before", 1): 12} | {
        ("after", 0): 3, ("after", 1): 3
    }  # fmt: skip
    assert set(rows["quantity"]) == {"preactivation_p15", "preactivation_p50", "preactivation_p85"}
    assert rows["value"].tolist() == results.loc[results["layer"] == "net.4", "value"].tolist()


def test_a_layer_without_followed_units_is_refused():
    with pytest.raises(ValueError, match=r"No single unit of layer 'net.0' was followed: of this layer .* nothing"):
        followed_units(made_up_results(seeds=1, max_steps=50), "net.0", prefix="preactivation")
