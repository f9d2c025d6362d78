import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_all_python_code_runs_in_order(capsys):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "0" in printed
    assert "output head" in printed


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", TEXT))
def test_every_link_into_the_project_leads_somewhere(target):
    assert (README.parent / target).exists()


def test_every_command_named_exists():
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"\$ make (\w+)", TEXT):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
