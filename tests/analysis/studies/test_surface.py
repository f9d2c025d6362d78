import dataclasses
import math

import pandas as pd
import pytest

from bn_lightning.analysis.catalog import default_problem
from bn_lightning.analysis.landscape_points import landscape_points
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.studies._one_factor import PLACEMENTS
from bn_lightning.analysis.studies.surface import SHORT_SIDE, SIDE, by_kind, study
from bn_lightning.analysis.study import Budget


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    problem = dataclasses.replace(default_problem("surface"), budget=Budget(max_steps=10, eval_every=5))
    return execute(study(problem), seeds=1, out=tmp_path_factory.mktemp("surface"), progress=False)


def figures(run, results):
    return {figure.name: figure.draw(results, run.cells, run.study) for figure in run.study.figures}


def test_lines_planes_and_eigenvalues_are_measured_in_every_arm(run):
    assert run.failures == ()
    points = landscape_points(run.results)
    for arm in PLACEMENTS:
        own = points[points["arm"] == arm]
        counts = own[own["norm_mode"] == "train"].groupby("surface").size().to_dict()
        line, plane = 2 * SHORT_SIDE - 1, SHORT_SIDE**2
        assert counts == {
            "start_line": line, "end_line": line, "way": 3 * SHORT_SIDE - 2, "start_plane": plane, "end_plane": plane
        }  # fmt: skip
        assert (own["norm_mode"] == "eval").any() == (arm != "none")
    eigenvalues = by_kind(run.results, "hessian_eigenvalue_1")
    assert set(zip(eigenvalues["arm"], eigenvalues["kind"], strict=True)) == {
        ("none", "train"), ("before", "train"), ("before", "eval"), ("after", "train"), ("after", "eval")
    }  # fmt: skip
    assert eigenvalues["value"].gt(0).all()


def test_all_arms_start_from_one_point_of_the_way_and_end_at_their_solution(run):
    points = landscape_points(run.results).set_index(["arm", "surface", "norm_mode", "first"])["loss"]
    for arm in PLACEMENTS:
        assert points[arm, "way", "train", 1.0] == pytest.approx(points[arm, "end_line", "train", 0.0].item(), rel=1e-5)


def test_long_runs_get_finer_planes():
    problem = default_problem("surface")
    assert [arm.callbacks()[-1].side for arm in study(problem).arms] == [SIDE] * 3
    arms = {arm.name: arm.callbacks() for arm in study(problem).arms}
    assert [arms[name][0].placement for name in ("before", "after")] == ["before", "after"]


def test_kinds_are_told_apart_by_their_names():
    rows = [("none", 0, "plateau_share_start", 0.5), ("none", 0, "plateau_share_end", 0.1), ("none", 0, "loss", 1.0)]
    table = by_kind(pd.DataFrame(rows, columns=["arm", "seed", "quantity", "value"]), "plateau_share")
    assert table[["measure", "kind", "value"]].to_numpy().tolist() == [
        ["plateau_share", "start", 0.5],
        ["plateau_share", "end", 0.1],
    ]


def test_every_figure_is_drawn(run):
    made = figures(run, run.results)
    assert list(made) == ["lines", "planes", "curvature", "plateaus", "metric"]
    assert [ax.get_title() for ax in made["lines"].axes][:2] == ["around the initial weights", "around the solution"]
    assert made["planes"].axes[0].get_title() == "without BN, seed 0"


def test_diverged_runs_get_a_note_in_place_of_a_figure(run):
    metric = run.results["quantity"] == run.study.problem.monitor
    made = figures(run, run.results.assign(value=run.results["value"].where(metric, math.nan)))
    assert [made[name].texts[0].get_text()[:6] for name in ("lines", "planes", "curvature", "plateaus")] == [
        "No run"
    ] * 4
