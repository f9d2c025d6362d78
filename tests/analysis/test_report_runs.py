import re
from urllib.parse import parse_qs, urlsplit

import pandas as pd
from runs import ARMS, made_up_cells, made_up_results

from bn_lightning.analysis.report_runs import outdated_cells, run_links, unreached_target
from bn_lightning.analysis.study import Arm, Budget, Problem, Study


def study(**changes):
    given = {"name": "digits", "module": object, "data": object, "monitor": "test_accuracy", "target": 0.9}
    problem = Problem(**{**given, "budget": Budget(max_steps=300), **changes})
    return Study(name="s", question="?", arms=tuple(map(_arm, ARMS)), reference="none", problem=problem)


def _arm(name):
    return Arm(name=name)


def test_a_link_shows_one_run_and_no_other():
    cells = pd.DataFrame({"arm": ["lr0.1", "lr0.1", "lr0x1"], "seed": [1, 11, 1]})
    links = list(run_links(cells))
    assert [link.run for link in links] == ["lr0.1/seed_1", "lr0.1/seed_11", "lr0x1/seed_1"]
    for link in links:
        [pattern] = parse_qs(urlsplit(link.address).query)["runFilter"]
        assert [other.run for other in links if re.search(pattern, other.run)] == [link.run]


def test_an_address_holds_no_markup():
    [link] = run_links(pd.DataFrame({"arm": ['<a href="x">'], "seed": [0]}))
    assert not set('<>"') & set(link.address)


def test_outdated_cells_are_counted():
    cells = made_up_cells(made_up_results(seeds=2, max_steps=0))
    assert not list(outdated_cells(cells))
    cells.loc[:1, "status"] = "outdated"
    [said] = outdated_cells(cells)
    assert said.startswith(f"2 of {2 * len(ARMS)} cells are outdated")


def test_a_target_that_no_run_reached_is_said_with_the_best_value():
    results = made_up_results(seeds=2, max_steps=300)
    best = results[results["quantity"] == "test_accuracy"]["value"].max()
    [said] = unreached_target(results, study(target=0.9999))
    assert "No run reached the target, test_accuracy 0.9999" in said
    assert f"the best value of any run was {best:.4g}" in said
    low = results[results["quantity"] == "test_accuracy"]["value"].min()
    [said] = unreached_target(results, study(target=-1.0, mode="min"))
    assert f"the best value of any run was {low:.4g}" in said


def test_nothing_is_said_where_one_run_did_or_there_is_no_target():
    results = made_up_results(seeds=2, max_steps=300)
    assert not list(unreached_target(results, study()))
    assert not list(unreached_target(results, study(target=None)))
    assert not list(unreached_target(results.iloc[:0], study()))


def test_runs_that_all_diverged_reached_nothing():
    results = made_up_results(seeds=1, max_steps=300, diverged=tuple((arm, 0) for arm in ARMS))
    assert len(list(unreached_target(results, study(target=0.9999)))) == 1
    assert len(made_up_cells(results)) == 3
