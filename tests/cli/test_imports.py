import sys

import pytest

from bn_lightning.cli.imports import check_import_paths


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
        ["--model=__main__.Net"],
    ],
)
def test_what_exists_or_is_no_import_path_passes(arguments):
    check_import_paths(arguments)


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "left_alone.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    check_import_paths(["--model=left_alone.Net"])
    assert "left_alone" not in sys.modules
