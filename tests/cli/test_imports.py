import sys

import pytest

from bn_lightning.cli.imports import check_import_paths
from bn_lightning.errors import UnknownNameError


@pytest.mark.parametrize("arguments", [["--data=nowhere.deep.Data"], ["--data", "nowhere.deep.Data"]])
def test_a_module_that_does_not_exist_is_named_with_every_folder_searched(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no module 'nowhere', which --data nowhere\.deep\.Data names") as error:
        check_import_paths(["compare", "placement", *arguments])
    assert str(error.value).count(str(tmp_path)) == 1, "a folder that stands twice is named once"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model=tiny.TinyNet", "--data", "tiny.TinyData"],
        ["--model", "json.JSONDecoder"],
        ["--model=TinyNet"],
        ["--model={'class_path': 'a.B'}"],
        ["--model"],
        ["--model.lr=0.1"],
        ["report", "nowhere.folder"],
        ["--model=__main__.__name__"],
    ],
)
def test_what_exists_or_is_no_import_path_passes(arguments):
    check_import_paths(arguments)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `mine` with a module that cannot be imported, one of wrong syntax, and one with a class."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "lacking.py").write_text("import json\n\nimport not_installed\n")
    (tmp_path / "mine" / "wrong.py").write_text("class Net\n")
    (tmp_path / "mine" / "nets.py").write_text("from json import JSONDecoder\n\nclass LitNet:\n    class Inner: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mine"
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_a_module_that_fails_as_it_is_imported_is_named_with_the_line(package):
    with pytest.raises(ValueError, match=r"'mine.lacking', which --model mine.lacking.Net names, fails as") as error:
        check_import_paths(["--model", "mine.lacking.Net"])
    said = "ModuleNotFoundError: No module named 'not_installed', at "
    assert str(error.value).endswith(f"{said}{package / 'lacking.py'}, line 3.")
    with pytest.raises(ValueError, match=r"SyntaxError: expected ':' \(wrong.py, line 1\)\.$"):
        check_import_paths(["--data=mine.wrong.Data"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("mine.nets.LitNett", r"There is no name in mine.nets .from --model mine.nets.LitNett. 'LitNett'. Did you mean"
         r" 'LitNet'\? There are: LitNet\.$"),
        ("mine.net.LitNet", r"There is no name in mine .from --model mine.net.LitNet. 'net'"),
        ("mine.nets.LitNet.Iner", "'Iner'. Did you mean 'Inner'"),
    ],
)  # fmt: skip
def test_a_name_that_a_module_lacks_is_answered_with_the_near_ones(package, path, words):
    with pytest.raises(UnknownNameError, match=words):
        check_import_paths(["--model", path])


def test_a_class_in_a_module_of_a_package_passes(package):
    check_import_paths(["--model", "mine.nets.LitNet", "--data=mine.nets.LitNet.Inner"])
