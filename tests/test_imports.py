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
    from importlinter.cli import lint_imports

    assert lint_imports(no_cache=True) == 0
