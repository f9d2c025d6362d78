import os
import sys
from pathlib import Path

import pytest
from tiny import TinyData, TinyNet, tiny_problem

from bn_lightning.analysis.catalog import default_problem, find_study
from bn_lightning.analysis.prepare import prepare_study
from bn_lightning.analysis.run import run_study
from bn_lightning.analysis.study_file import study_module
from bn_lightning.errors import UnknownNameError

TEXT = """
from bn_lightning.analysis import Arm, Study
from {helper} import LABEL

def study(problem):
    arms = (Arm(name="a", label=LABEL), Arm(name="b", callbacks=made))
    return Study(name="mine", question="{question}", arms=arms, reference="a", problem=problem)

def made():
    return []
"""


@pytest.fixture(autouse=True)
def modules_as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith(("own_", "beside_"))]:
        del sys.modules[name]


@pytest.fixture
def study_file(tmp_path):
    """Writes a study file, of a name of its own, with a module beside it."""
    helper, name = f"beside_{tmp_path.name}", f"own_{tmp_path.name}"
    (tmp_path / f"{helper}.py").write_text("LABEL = 'from beside'\n")

    def write(question="Which?", more=""):
        path = tmp_path / f"{name}.py"
        path.write_text(TEXT.format(helper=helper, question=question) + more)
        return str(path)

    return write


def test_a_file_gives_a_study_on_the_digits_or_on_any_problem(study_file, monkeypatch):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    path = study_file()
    assert find_study(path).problem.name == "digits"
    study = find_study(path, problem=tiny_problem())
    assert (study.name, study.problem.name, study.file) == ("mine", "tiny", path)
    assert [arm.label for arm in study.arms] == ["from beside", "b"]


def test_its_own_problem_is_taken_and_told_of_a_folder_only_if_it_takes_one(study_file, tmp_path):
    path = study_file(more="def default_problem():\n    from tiny import tiny_problem\n    return tiny_problem()\n")
    assert default_problem(path).name == "tiny"
    with pytest.raises(ValueError, match=r"data_dir \(--data-dir\) was given, and default_problem of .* takes none"):
        default_problem(path, data_dir=tmp_path)


def test_a_changed_file_is_read_again(study_file):
    assert find_study(study_file(), problem=tiny_problem()).question == "Which?"
    assert find_study(study_file("Which one now?"), problem=tiny_problem()).question == "Which one now?"


def test_a_relative_path_is_looked_for_in_the_folder_of_the_process(study_file, tmp_path, monkeypatch):
    path = study_file()
    monkeypatch.chdir(tmp_path)
    assert find_study(os.path.basename(path), problem=tiny_problem()).file == path


@pytest.mark.parametrize("jobs", [1, 2])
def test_it_runs_by_its_path_in_this_process_and_in_others(study_file, tmp_path, jobs):
    results = run_study(
        study_file(), model=tiny_problem().module, data=tiny_problem().data, monitor="val_loss", mode="min",
        max_steps=4, eval_every=2, seeds=1, jobs=jobs, out=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert set(results["arm"]) == {"a", "b"}


def test_a_file_that_is_not_there_is_answered_with_the_near_ones(study_file, tmp_path):
    near = os.path.basename(study_file())
    with pytest.raises(UnknownNameError, match=rf"no study file in .*Did you mean '{near}'"):
        study_module(tmp_path / f"{near[:-4]}.py")
    with pytest.raises(UnknownNameError, match=r"no study file in .*nowhere 'a\.py'. There are: none"):
        study_module(tmp_path / "nowhere" / "a.py")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("my-study.py", "", r"'my-study' cannot be one. Call it, for instance, my_study\.py"),
        ("torch.py", "", r"has the name of a module of .*torch.*Give it another name"),
        ("builtins.py", "", r"has the name of a module .*Give it another name"),
        (
            "own_broken.py",
            "\n1 / 0\n",
            r"own_broken\.py fails as it is imported: ZeroDivisionError.*broken\.py, line 2",
        ),
        ("own_wrong.py", "def study(:\n", r"own_wrong\.py fails as it is imported: SyntaxError"),
        ("own_ends.py", "import sys\nsys.exit(2)\n", r"fails as it is imported: SystemExit: 2, at .*ends\.py, line 2"),
        ("own_empty.py", "def stud(): ...\n", r"holds no function study\(problem\).*it holds: stud\."),
        ("own_bare.py", "", r"holds no function study\(problem\).*it holds: nothing\."),
        ("own_class.py", "class study: ...\n", r"but a study that is the class study; of its own it holds: study\."),
        ("own_ready.py", "study = 3\n", r"but a study that is of the type int; of its own it holds: nothing\."),
        ("own_bytes.py", "word = '\udce9'\n", r"own_bytes\.py fails as it is imported: SyntaxError"),
    ],
)
def test_a_file_that_holds_no_study_is_named_with_the_reason(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        study_module(tmp_path / name)


def test_a_function_that_gives_no_study_is_named(tmp_path):
    (tmp_path / "own_none.py").write_text("def study(problem): return problem\n")
    with pytest.raises(ValueError, match=r"study\(problem\) of .*own_none\.py gave a Problem, and should give a Study"):
        find_study(str(tmp_path / "own_none.py"), problem=tiny_problem())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("def study(problem, n): ...\n", r"study of .* is called as study\(problem\), but that fails: missing.*'n'"),
        ("default_problem = 3\n", r"default_problem of .* is a int, and should be a function: default_problem\("),
        ("def default_problem(n): ...\n", r"default_problem of .* is called as .*, but that fails: missing.*'n'"),
        ("def default_problem(): ...\n", r"default_problem of .* gave a NoneType, and should give a Problem"),
    ],
)
def test_functions_of_another_form_are_named(study_file, more, message):
    with pytest.raises(ValueError, match=message):
        find_study(study_file(more=more))


def test_a_study_of_another_problem_than_it_was_handed_is_refused(study_file):
    more = "import dataclasses\nplain = study\n"
    more += "def study(problem): return plain(dataclasses.replace(problem, target=0.5, mode='max'))\n"
    with pytest.raises(
        ValueError, match=r"study\(problem\) of .*other are: mode, target\. Hand the problem on as it is"
    ):
        prepare_study(
            study_file(more=more), model=tiny_problem().module, data=tiny_problem().data, monitor="val_loss", mode="min"
        )


@pytest.mark.parametrize(
    "more",
    [
        "import functools\nstudy = functools.partial(study)\n",
        "plain = study\nclass Maker:\n    def __call__(self, problem): return plain(problem)\nstudy = Maker()\n",
    ],
)
def test_whatever_can_be_called_gives_a_study(study_file, more):
    assert find_study(study_file(more=more), problem=tiny_problem()).name == "mine"


def test_the_file_may_be_given_as_a_path_and_in_any_encoding_of_python(study_file):
    path = Path(study_file())
    path.write_bytes("# -*- coding: latin-1 -*-\n# é\n".encode("latin-1") + path.read_bytes())
    study = prepare_study(path, model=TinyNet, data=TinyData, monitor="val_loss")
    assert (study.name, study.file) == ("mine", str(path))


def test_what_was_taken_out_of_a_file_is_gone(study_file):
    more = "def default_problem():\n    from tiny import tiny_problem\n    return tiny_problem()\n"
    assert default_problem(study_file(more=more)).name == "tiny"
    assert default_problem(study_file()).name == "digits"


def test_a_folder_of_the_name_is_no_study_file(tmp_path):
    (tmp_path / "own.py").mkdir()
    with pytest.raises(UnknownNameError, match=r"no study file in .*'own\.py'\. There are: none\."):
        study_module(tmp_path / "own.py")


def test_a_neighbour_that_another_folder_has_given_already_is_named(study_file, tmp_path):
    path = study_file()
    find_study(path, problem=tiny_problem())
    other = tmp_path / "other"
    other.mkdir()
    (other / f"beside_{tmp_path.name}.py").write_text("LABEL = 'of the other'\n")
    moved = other / f"own_too_{tmp_path.name}.py"
    moved.write_bytes(Path(path).read_bytes())
    with pytest.raises(ValueError, match=rf"imports beside_{tmp_path.name}, of which this process has another already"):
        find_study(moved, problem=tiny_problem())
    assert find_study(path, problem=tiny_problem()).arms[0].label == "from beside"
