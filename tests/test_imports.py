import subprocess
import sys

import pytest

HEAVY = ("pytorch_lightning", "lightning", "torchmetrics", "matplotlib", "pandas", "jsonargparse", "seaborn", "rich")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*(n for n in {HEAVY!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_none_of_the_heavy_libraries():
    assert loaded_by("import bn_lightning") == set()


@pytest.mark.parametrize("name", ["torchmetrics", "pandas"])
def test_the_test_above_can_fail(name):
    assert name in loaded_by(f"import bn_lightning, {name}")


def test_the_floors_hold():
    # In a process of its own: it switches off the logs of whatever is loaded.
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
