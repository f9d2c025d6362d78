import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "adabn.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("adabn", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_statistics_of_the_other_domain_gain_accuracy_on_real_digits(example, capsys):
    results = example.main(seeds=2, steps=400)
    gained = {name.split(" (")[0]: (after - before).mean().item() for name, (before, after) in results.items()}
    # A shift and scale of each pixel is undone by the first norm, in all but rounding; a sign is not.
    for name, least in {"faint": 0.3, "bright": 0.2, "dark corner to corner": 0.4, "blurred": 0.1}.items():
        assert gained[name] > least, name
    assert abs(gained["as trained"]) < 0.01
    assert abs(gained["inverted"]) < 0.05
    assert "accuracy on 360 test digits" in capsys.readouterr().out
