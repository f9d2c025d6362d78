# %% [markdown]
# # The paper's first experiment, with seeds and intervals
# Ioffe & Szegedy (2015, section 4.1, figure 1): a network of 3 × 100 sigmoids reads binarized MNIST for 50,000 steps of
# 60 images. The paper shows one run with batch norm and one without. Here there are three arms (without, before and
# after the nonlinearity) with six seeds each, once at one learning rate for all arms and once at the rate that suits
# each arm on a validation split, because the answer differs.
#
#     BN_LIGHTNING_DATA=FOLDER_WITH_MNIST python examples/mnist_figure1.py
#
# An hour or two on two cores; what is finished is not run again. Without a folder the embedded digits are used.

# %%
import dataclasses
import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from bn_lightning.analysis.catalog import find_study
from bn_lightning.analysis.configuration import versions
from bn_lightning.analysis.drift import percentile_drift
from bn_lightning.analysis.number_format import table_text
from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.publish import publish
from bn_lightning.analysis.runner import Run, execute
from bn_lightning.analysis.statistics import mean_interval
from bn_lightning.analysis.study import Budget, Study
from bn_lightning.analysis.summary import compare, summarise
from bn_lightning.analysis.tuning import GRID_SEEDS, Tuned, tune_learning_rate

TARGETS = (0.90, 0.95, 0.97)
RESULTS = str(Path(__file__).with_suffix(""))  # a folder beside this script
GRID = (1, 3, 10, 30, 100)  # multiples of the learning rate of the first comparison
CLAIMS = """The paper claims, of one run each, that the network with batch norm (before the nonlinearity) trains faster
and reaches a higher test accuracy, and that the distribution of what one typical sigmoid receives is much more stable
with it than without (figure 1)."""


# %% [markdown]
# ## Run
def run_both(
    data_dir: str | None, steps: int, eval_every: int, seeds: int, jobs: int, lr: float, tune_steps: int, out: Path
) -> tuple[Run, Run, Tuned]:
    budget = Budget(max_steps=steps, eval_every=eval_every, seeds=seeds)
    problem = dataclasses.replace(digits_problem(data_dir=data_dir, lr=lr, weight_std=0.05), budget=budget)
    study = find_study("placement", problem=problem).only("none,before,after")
    one_rate = execute(study, jobs=jobs, out=out / "one_rate")
    validation = digits_problem(data_dir=data_dir, lr=lr, weight_std=0.05, evaluate="validation")
    tuned = tune_learning_rate(
        study, on=validation, multiples=GRID, max_steps=tune_steps, jobs=jobs, out=out / "learning_rates"
    )
    return one_rate, execute(tuned.study, jobs=jobs, out=out / "tuned_rates"), tuned


# %% [markdown]
# ## Numbers
def at_target(study: Study, target: float) -> Study:
    return dataclasses.replace(study, problem=dataclasses.replace(study.problem, target=target))


def steps_table(run: Run) -> pd.DataFrame:
    """Steps to each target: median, range and how many never came; ratio to the network without batch norm."""
    rows = []
    for target in TARGETS:
        study = at_target(run.study, target)
        summary = summarise(run.results, run.cells, study).set_index("arm")
        ratios = compare(run.results, run.cells, study)
        ratios = ratios[ratios["quantity"] == "steps to target"].set_index("arm")
        for arm in run.study.arms:
            found = summary.loc[arm.name]
            row = {"target": f"{target:.0%}", "arm": arm.label, "steps": found["steps_to_target"]}
            row |= {"steps_min": found["steps_min"], "steps_max": found["steps_max"], "censored": found["censored"]}
            ratio = ratios.loc[arm.name] if arm.name in ratios.index else {}
            row |= {"times_faster": ratio.get("estimate", math.nan), "low": ratio.get("low", math.nan)}
            row |= {
                "high": ratio.get("high", math.nan),
                "pairs": ratio.get("pairs"),
                "verdict": ratio.get("verdict", ""),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def final_table(run: Run) -> pd.DataFrame:
    summary = summarise(run.results, run.cells, run.study)
    comparisons = compare(run.results, run.cells, run.study)
    metric = comparisons[comparisons["quantity"] == run.study.problem.monitor].set_index("arm")
    columns = ["label", "seeds", "diverged", run.study.problem.monitor, "low", "high"]
    verdicts = [metric["verdict"].get(arm, "") for arm in summary["arm"]]
    differences = [metric["estimate"].get(arm, math.nan) for arm in summary["arm"]]
    return summary[columns].assign(difference=differences, verdict=verdicts)


def drift_table(run: Run) -> pd.DataFrame:
    """Mean over seeds with its 95 % interval of how far each percentile of the followed unit moved."""
    drift = percentile_drift(run.results, layer=str(run.study.problem.layer_of_interest))
    rows = []
    for arm in run.study.arms:
        for percentile, of_arm in drift[drift["arm"] == arm.name].groupby("percentile"):
            row = {"arm": arm.label, "percentile": f"{percentile:g}"}
            for name in ("range", "relative_range", "path", "relative_path"):
                interval = mean_interval(of_arm[name].dropna().to_numpy())
                row |= {name: interval.mean, f"{name} low": interval.low, f"{name} high": interval.high}
            rows.append(row | {"seeds": of_arm["range"].notna().sum()})
    table = pd.DataFrame(rows)
    # Neighbouring columns called low and high are shown as one interval.
    return table.set_axis([name.rsplit(" ", 1)[-1] for name in table.columns], axis="columns")


# %% [markdown]
# ## Write down
def markdown(table: pd.DataFrame) -> str:
    text = table_text(table)
    lines = [text.headers, ["--:" if numeric else ":--" for numeric in text.numeric], *text.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def commit() -> str:
    try:
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        here = Path(__file__).parent
        return subprocess.run(asked, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not in a git repository"


def write_down(one_rate: Run, tuned_rates: Run, tuned: Tuned, *, results: Path, lr: float, tune_steps: int) -> Path:
    results.mkdir(parents=True, exist_ok=True)
    problem = one_rate.study.problem
    arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
    chosen = tuned.grid[tuned.grid["chosen"]]
    rates = ", ".join(f"{row.arm} {row.multiple * lr:g}" for row in chosen.itertuples())
    parts = [
        f"# The paper's first experiment on {problem.name}: tables as measured\n",
        CLAIMS + "\n",
        f"- command: `{shlex.join(['python', *arguments])}`\n- commit: {commit()}\n"
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions().items())}\n"
        f"- {problem.budget.max_steps:,} steps of 60 images, evaluated every {problem.budget.eval_every}, "
        f"{one_rate.cells['seed'].nunique()} seeds, weights from N(0, 0.05²)\n"
        f"- rates tuned on the validation split: {tune_steps:,} steps, seeds {GRID_SEEDS}, chosen {rates}\n",
    ]
    settings = {"one_rate": (f"One learning rate, {lr:g}, for all arms", one_rate)}
    settings["tuned_rates"] = (f"The learning rate tuned per arm ({rates})", tuned_rates)
    for name, (title, run) in settings.items():
        publish(run.out, study=run.study, results=run.results, cells=run.cells)
        for figure in sorted((run.out / "figures").glob("*.png")):
            shutil.copy(figure, results / f"{name}_{figure.name}")
        parts += [f"## {title}\n", "Test accuracy at the last step, mean with its 95 % interval:\n"]
        parts += [markdown(final_table(run)), "Optimizer steps to a test accuracy (median over seeds, ∞ where half or"]
        parts += ["more never came; the ratio is over pairs in which both did, above 1 is faster than without):\n"]
        parts += [markdown(steps_table(run)), "How far the percentiles of what the followed unit receives move; range"]
        parts += [
            "and path over all steps, also relative to the mean width between the 15th and the 85th percentile:\n"
        ]
        parts += [markdown(drift_table(run))]
        parts += [f"![metric]({name}_metric.png)\n\n![percentiles]({name}_percentiles.png)\n"]
    parts += ["## The grid of learning rates\n", markdown(tuned.grid)]
    path = results / "README.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


# %%
def main(
    *,
    data_dir: str | None = None,
    steps: int = 50_000,
    eval_every: int = 50,
    seeds: int = 6,
    jobs: int = 2,
    lr: float = 0.1,
    tune_steps: int = 5_000,
    out: str = "bn_lightning_runs/mnist_figure1",
    results: str = RESULTS,
) -> None:
    """Run the paper's first experiment, at one rate and at tuned rates, and write tables and figures.

    Args:
        data_dir: Folder with mnist.npz, or to download it into; by default BN_LIGHTNING_DATA, else the embedded digits.
        steps: Optimizer steps of a run.
        eval_every: Optimizer steps between evaluations.
        seeds: Number of seeds.
        jobs: Number of processes.
        lr: The learning rate of all arms in the first comparison.
        tune_steps: Optimizer steps of a tuning run.
        out: Folder of the runs.
        results: Folder for tables and figures.
    """
    one_rate, tuned_rates, tuned = run_both(data_dir, steps, eval_every, seeds, jobs, lr, tune_steps, Path(out))
    path = write_down(one_rate, tuned_rates, tuned, results=Path(results), lr=lr, tune_steps=tune_steps)
    print(path.read_text(encoding="utf-8"))
    # The point: at one rate, batch norm reaches 90 % no later than the same network without.
    first = steps_table(one_rate).set_index(["target", "arm"])["steps"]
    assert first["90%", "BN before"] <= first["90%", "without BN"], first


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
