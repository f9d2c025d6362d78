import functools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny import TinyData, TinyNet, WeightsSeen, tiny_problem, tiny_study

from bn_lightning.analysis import configuration
from bn_lightning.analysis.configuration import cell_configuration, configuration_hash, versions
from bn_lightning.analysis.description import describe
from bn_lightning.analysis.run_folder import RunFolder
from bn_lightning.analysis.runner import _cells
from bn_lightning.analysis.study import Arm, Budget


def digest(problem: Any = None, arm: Any = None) -> str:
    return configuration_hash(cell_configuration(problem or tiny_problem(), arm or Arm(name="a")))


@pytest.mark.parametrize(
    "problem",
    [
        {"module": functools.partial(TinyNet, lr=0.5)},
        {"module": lambda: TinyNet(lr=0.5)},
        {"monitor": "acc"},
        {"mode": "max"},
        {"budget": Budget(max_steps=20, eval_every=5)},
        {"budget": Budget(max_steps=10, eval_every=10)},
        {"trainer_options": {"accelerator": "cpu", "precision": "64"}},
        {"options": {"batch_size": 7}},
    ],
)
def test_everything_that_changes_the_numbers_changes_the_hash(problem):
    assert digest(tiny_problem(**problem)) != digest()


@pytest.mark.parametrize(
    "arm",
    [
        Arm(name="b"),
        Arm(name="a", options={"lr": 1.0}),
        Arm(name="a", factors={"placement": "before"}),
        Arm(name="a", callbacks=lambda: [WeightsSeen()]),
        Arm(name="a", callbacks=lambda: [WeightsSeen(draws=3)]),
    ],
)
def test_everything_that_changes_an_arm_changes_the_hash(arm):
    others = [Arm(name="a"), Arm(name="a", callbacks=lambda: [WeightsSeen(draws=2)])]
    assert len({digest(arm=arm), *(digest(arm=other) for other in others)}) == 3


def test_the_target_and_the_number_of_seeds_do_not():
    assert digest(tiny_problem(target=0.5)) == digest()
    assert digest(tiny_problem(budget=Budget(max_steps=10, eval_every=5, seeds=9))) == digest()


def test_a_label_does_not():
    assert digest(arm=Arm(name="a", label="in other words")) == digest()


def test_the_hash_is_the_same_in_another_process():
    code = (
        "from bn_lightning.analysis.configuration import *; from bn_lightning.analysis.catalog import find_study\n"
        "from bn_lightning.analysis.description import describe\n"
        "s = find_study('placement')\n"
        "print([configuration_hash(cell_configuration(s.problem, a)) for a in s.arms], {'x', 'y', 'z'})\n"
        "print(configuration_hash(describe(lambda x: x in {'p', 'q', 'r'})))"
    )
    printed = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        first, last = done.stdout.splitlines()
        printed.append((first.split("]")[0], last))
    assert printed[0] == printed[1]
    assert len(set(printed[0][0].split("'"))) >= 4


def test_versions_name_what_numbers_depend_on():
    assert versions()["torch"] == torch.__version__
    assert {"python", "bn-lightning", "pytorch-lightning", "torchmetrics", "numpy"} <= set(versions())


def test_what_arms_share_is_described_once_for_all(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(configuration, "describe", lambda value: asked.append(value) or describe(value))
    study = tiny_study()
    cells = _cells(study, [0], RunFolder(tmp_path), redo=False)
    assert [value for value in asked if value is study.problem.data] == [TinyData]
    assert [cell.configuration for cell in cells] == [cell_configuration(study.problem, arm) for arm in study.arms]
