import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "ensemble.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("ensemble_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_three_networks_together_are_better_than_each_alone(example, capsys):
    results = example.main("mlp", members=3, steps=300)
    assert {name: found.views for name, found in results.items()} == {
        "centre": 1,
        "5 crops": 5,
        "144 crops, not mirrored": 24,
        "144 crops": 48,
    }
    for name in ("centre", "5 crops", "144 crops, not mirrored"):
        found = results[name]
        assert example.error_of(found, "top_1_error") < example.members_of(found, "top_1_error").mean, name
        assert example.error_of(found, "top_1_error") < 0.15, name
    assert "log-loss, centre crop" in capsys.readouterr().out


def test_members_trained_by_the_recipe_are_read_with_their_norms_and_without_local_response_norms(example, capsys):
    results = example.main(members=2, steps=30)
    assert example.error_of(results["centre"], "top_1_error") < 0.5
    assert "log-loss, centre crop" in capsys.readouterr().out
