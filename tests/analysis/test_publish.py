import json
import sys

import pytest
from tiny import TinyData, tiny_problem, tiny_study

from bn_lightning.analysis.catalog import find_study
from bn_lightning.analysis.publish import publish, publish_folder
from bn_lightning.analysis.run_folder import RunFolder
from bn_lightning.analysis.runner import ConfigurationChangedWarning, StudyInterrupted, execute
from bn_lightning.analysis.study import Arm, Figure
from bn_lightning.errors import NoEffectWarning, RunFolderError


def test_a_study_of_the_users_own_is_reported_from_its_files(tmp_path):
    execute(tiny_study(), out=tmp_path, seeds=2, progress=False)
    published = publish_folder(tmp_path)
    assert published.summary["arm"].tolist() == ["slow", "quick"]
    assert "Which rate?" in published.path.read_text(encoding="utf-8")


STUDY_FILE = """
from bn_lightning.analysis import Arm, Figure, Study
from bn_lightning.analysis.plots.standard import metric_figure
import dataclasses

def study(problem):
    figure = dataclasses.replace(metric_figure(problem), name="of_its_own")
    arms = (Arm(name="slow"), Arm(name="quick", options={"lr": 0.2}))
    return Study(name="mine", question="?", arms=arms, reference="slow", problem=problem, figures=(figure,))
"""


def test_a_study_file_gives_its_figures_again_and_is_missed_where_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    file, out = tmp_path / "own_figures.py", tmp_path / "run"
    file.write_text(STUDY_FILE)
    execute(find_study(str(file), problem=tiny_problem()), out=out, seeds=1, progress=False)
    assert publish_folder(out).remarks == ()
    assert [path.stem for path in (out / "figures").iterdir()] == ["of_its_own"]
    file.unlink()
    [remark] = publish_folder(out).remarks
    assert "The figures are those of any study, as the study's own file could not be used: There is no study" in remark
    assert "could not be used" in (out / "report.html").read_text(encoding="utf-8")
    assert {path.stem for path in (out / "figures").iterdir()} >= {"metric", "differences"}
    sys.modules.pop("own_figures")


def test_a_figure_of_a_users_that_raises_anything_is_left_out_and_named(tmp_path):
    def draw(results, cells, study):
        raise KeyError("no such quantity")

    study = tiny_study(figures=(Figure(name="broken", caption="", draw=draw),))
    run = execute(study, out=tmp_path, seeds=1, progress=False)
    with pytest.warns(NoEffectWarning, match="Figure broken could not be drawn: KeyError: 'no such quantity'"):
        published = publish(run.out, study=study, results=run.results, cells=run.cells)
    assert "Figure broken could not be drawn" in published.path.read_text(encoding="utf-8")


def test_a_study_read_back_cannot_be_trained(tmp_path):
    from bn_lightning.analysis.publish import _remembered_study

    execute(tiny_study(), out=tmp_path, seeds=1, progress=False)
    folder = RunFolder(tmp_path)
    study = _remembered_study(folder, folder.owner())
    assert [arm.options for arm in study.arms] == [{"lr": 0.01}, {"lr": 0.2}]
    with pytest.raises(RunFolderError, match="read back from its files cannot be trained"):
        study.problem.module()


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(RunFolderError, match=r"holds no study\.json"):
        publish_folder(tmp_path)


def test_a_run_without_a_finished_cell_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim(tiny_study())
    folder.gather(tiny_study(), {})
    with pytest.raises(RunFolderError, match="holds no finished cell yet"):
        publish_folder(tmp_path)


def test_what_an_interrupted_run_of_a_changed_study_did_not_reach_is_missing_and_named(tmp_path):
    made = []

    def stopping():
        made.append(1)
        if len(made) > 2:  # the first call describes the arm, the second is that of a cell
            raise KeyboardInterrupt
        return []

    execute(tiny_study(Arm(name="none"), Arm(name="a")), out=tmp_path, seeds=3, progress=False)
    changed = tiny_study(Arm(name="none"), Arm(name="a", options={"lr": 0.2}, callbacks=stopping))
    with pytest.warns(ConfigurationChangedWarning), pytest.raises(StudyInterrupted, match="4 of 6 cells are finished"):
        execute(changed, out=tmp_path, seeds=3, progress=False)
    published = publish_folder(tmp_path)
    assert published.summary["seeds"].tolist() == [3, 1]
    assert published.comparisons["pairs"].tolist() == [1]
    [remark] = published.remarks
    assert remark.startswith("1 of 6 cells are outdated: they were trained with another configuration")
    page = published.path.read_text(encoding="utf-8")
    assert "a, seed 1: running; its results are missing here." in page
    assert "a, seed 2: outdated (not trained yet with this configuration); its results are missing here." in page
    assert "4 of 6 finished" in page


def test_a_changed_run_that_is_cut_off_at_once_leaves_no_tables_of_the_old_one(tmp_path):
    class Unprepared(TinyData):
        def prepare_data(self):
            raise OSError("no network")

    execute(tiny_study(), out=tmp_path, seeds=1, progress=False)
    changed = tiny_study(problem=tiny_problem(data=Unprepared))
    with pytest.warns(ConfigurationChangedWarning), pytest.raises(OSError, match="no network"):
        execute(changed, out=tmp_path, seeds=1, progress=False)
    with pytest.raises(RunFolderError, match=r"no finished cell yet\. 2 of 2 cells are outdated.*Run the same again"):
        publish_folder(tmp_path)
    assert execute(tiny_study(), out=tmp_path, seeds=1, progress=False).trained == 0


def test_a_study_file_that_lacks_something_is_named(tmp_path):
    execute(tiny_study(), out=tmp_path, seeds=1, progress=False)
    said = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps({name: said[name] for name in ("study", "problem")}))
    lacks = r"study\.json lacks what a report needs: KeyError\('monitor'\).*another version.*keeps its finished cells"
    with pytest.raises(RunFolderError, match=lacks):
        publish_folder(tmp_path)
    assert execute(tiny_study(), out=tmp_path, seeds=1, progress=False).trained == 0
    assert publish_folder(tmp_path).path.is_file()


def test_a_report_is_written_as_markdown_too(tmp_path):
    study = tiny_study(problem=tiny_problem(target=-1.0))
    execute(study, out=tmp_path, seeds=2, progress=False)
    published = publish_folder(tmp_path, form="markdown")
    assert published.path == tmp_path / "report.md"
    assert "Which rate?" in published.path.read_text(encoding="utf-8")
    [remark] = published.remarks
    assert "No run reached the target, val_loss -1" in remark
