"""A user's class in files of its own, written anew and described."""

import importlib
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from bn_lightning.analysis.description import describe


def describe_net(folder: Path, monkeypatch: pytest.MonkeyPatch, **texts: str) -> Any:
    """What is said of the class `Net` of the last of some modules, named `..._of_mine` and given by their text."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    for name in [name for name in sys.modules if name.partition(".")[0].endswith("_of_mine")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    return describe(importlib.import_module(list(texts)[-1]).Net)
