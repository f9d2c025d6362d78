import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "activation_monitor.py"


# Lightning's advice that the module, which has no validation_step, is given validation data.
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`:UserWarning")
@pytest.mark.filterwarnings("ignore:You passed in a .* but have no `validation_step`")
def test_the_gradient_reaches_the_first_layer_with_batch_norm_only(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("activation_monitor", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shares = module.main(folder=str(tmp_path), steps=40)
    assert shares["without BN"] < 1e-3 < shares["with BN"]
    assert (tmp_path / "with_bn" / "activations.csv").exists()
    assert "gradient norm at the first layer" in capsys.readouterr().out
