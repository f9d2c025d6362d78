import dataclasses

import numpy as np
from runs import ARMS, made_up_cells, made_up_results, made_up_times

from bn_lightning.analysis.plots.saving import figure_png
from bn_lightning.analysis.plots.standard import standard_figures
from bn_lightning.analysis.study import Arm, Budget, Problem, Study

RESULTS = made_up_results(seeds=6, max_steps=300)
PROBLEM = Problem(
    name="digits", module=object, data=object, monitor="test_accuracy", target=0.9, budget=Budget(max_steps=300)
)
STUDY = Study(
    name="mine",
    question="?",
    arms=tuple(Arm(name=name, label=label) for name, label in ARMS.items()),
    reference="none",
    problem=PROBLEM,
)


def drawn(study):
    return {figure.name: figure.draw(RESULTS, made_up_cells(RESULTS), study) for figure in standard_figures(study)}


def test_labels_are_shown_as_they_are_written_and_never_as_formulas():
    arms = tuple(Arm(name=name, label=f"{name} $^$") for name in ARMS)
    for figure in drawn(dataclasses.replace(STUDY, arms=arms)).values():
        assert figure_png(figure)


def test_each_figure_shows_the_studys_metric_target_and_labels():
    figures = drawn(STUDY)
    assert list(figures) == ["metric", "steps_to_target", "differences"]
    [metric] = figures["metric"].axes
    assert metric.get_ylabel() == "test accuracy"
    assert [text.get_text() for text in metric.get_legend().get_texts()] == [*ARMS.values(), "target 0.9"]

    steps = figures["steps_to_target"].axes[0]
    times = made_up_times(RESULTS, 0.9)
    seen = np.concatenate([line.get_xdata() for line in steps.lines if line.get_gid() == "seen"])
    np.testing.assert_array_equal(seen, times.loc[~times["censored"], "steps"])

    last = RESULTS[(RESULTS["step"] == 300) & (RESULTS["quantity"] == "test_accuracy")]
    final = last.pivot(index="seed", columns="arm", values="value")
    differences = figures["differences"].axes[0]
    points = [line.get_xdata()[0] for line in differences.lines if line.get_linestyle() == "None"]
    np.testing.assert_allclose(points, [(final[arm] - final["none"]).mean() for arm in ("before", "after")])


def test_without_a_target_there_are_no_steps_to_it():
    study = dataclasses.replace(STUDY, problem=dataclasses.replace(PROBLEM, target=None))
    assert list(drawn(study)) == ["metric", "differences"]
