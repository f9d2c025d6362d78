import importlib
import pickle
import sys

import pytest
from tiny import TinyData, tiny_study

from bn_lightning.analysis.cell import Cell
from bn_lightning.analysis.run import run_study
from bn_lightning.analysis.runner import ConfigurationChangedWarning
from bn_lightning.analysis.sent_cell import SentCell, run_sent, sent
from bn_lightning.analysis.worker_process import WorkerError

TEXT = """
import os
import tiny

PID = os.getpid()
SETTINGS = {{"value": {value}}}

class Net(tiny.TinyNet):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", {logged})
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module whose metric is a number, imports it where it is asked for, and gives its class."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = f"own_{tmp_path.name}"

    def write(value, *, read=True, logged="{}"):
        (tmp_path / f"{name}.py").write_text(TEXT.format(value=value, logged=logged.format(value)))
        if not read:
            return sys.modules[name].Net
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return importlib.import_module(name).Net

    yield write
    sys.modules.pop(name, None)


def values(net, out, **options):
    results = run_study(
        "placement", arms="none,before", model=net, data=TinyData, monitor="val_loss", max_steps=4, eval_every=2,
        seeds=1, jobs=2, out=out, progress=False, report=False, **options,
    )  # fmt: skip
    return set(results.loc[results["quantity"] == "val_loss", "value"])


def test_an_edited_module_trains_as_edited_though_processes_live_on(own, tmp_path):
    assert values(own(1.0), tmp_path / "run") == {1.0}
    with pytest.warns(ConfigurationChangedWarning):
        assert values(own(22.0), tmp_path / "run") == {22.0}


def test_an_edited_dict_trains_as_edited_too(own, tmp_path):
    read = "SETTINGS['value']"
    assert values(own(1.0, logged=read), tmp_path / "run") == {1.0}
    with pytest.warns(ConfigurationChangedWarning):
        assert values(own(22.0, logged=read), tmp_path / "run") == {22.0}


def test_a_file_edited_after_it_was_imported_is_named(own, tmp_path):
    own(1.0)
    with pytest.raises(WorkerError, match=r"other versions of own_.*a file was changed.*kernel"):
        values(own(22.0, read=False), tmp_path / "run")


def test_a_cell_that_cannot_be_loaded_says_what_is_missing(tmp_path):
    with pytest.raises(WorkerError, match=r"could not load a cell \(UnpicklingError.*PYTHONPATH"):
        run_sent(SentCell(b"no cell", {}, (), 1))


def test_a_cell_arrives_as_it_was(tmp_path):
    study = tiny_study()
    cell = Cell("tiny", study.problem, study.arms[0], 0, tmp_path, {}, "abc")
    [on_its_way] = sent([cell], parent=7)
    assert on_its_way.parent == 7
    assert pickle.loads(on_its_way.pickled).key == ("slow", 0)
