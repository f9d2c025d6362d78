"""What a comparison is made of: a problem, arms that differ in one respect, a budget, figures."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from bn_lightning.analysis.names import unknown_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as MatplotlibFigure

RECORDED = ("training_loss", "training_seconds")  # what every run records beside the metrics that its module logs


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much training one cell of a study gets.

    Args:
        max_steps: Optimizer steps of one run.
        eval_every: Optimizer steps between two evaluations; step 0, before any training, is evaluated too.
        seeds: How many seeds a study runs by default: 0 … seeds - 1.

    Raises:
        ValueError: If a number is not positive, or the last evaluation would not fall on the last step.
    """

    max_steps: int
    eval_every: int = 50
    seeds: int = 6

    def __post_init__(self) -> None:
        if min(self.max_steps, self.eval_every, self.seeds) < 1:
            raise ValueError(f"Steps and seeds of a budget are at least 1, not {self}.")
        if self.max_steps % self.eval_every:
            raise ValueError(
                f"{self.max_steps} steps evaluated every {self.eval_every} would leave the last step unseen: let "
                "max_steps be a multiple of eval_every."
            )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model, its data, and the number that says how well it does.

    Args:
        name: Short name, used in tables and in the run folder.
        module: Makes a fresh LightningModule; called once a cell with the arm's options.
        data: Makes a fresh LightningDataModule; called once a cell.
        monitor: Name of the validation metric that arms are compared by, as the module logs it.
        mode: Whether higher ("max") or lower ("min") is better.
        target: Value of the metric whose first passage is timed; None for no timing. Fix it before the runs.
        budget: Length of a run, spacing of evaluations, number of seeds.
        layer_of_interest: Path of the layer whose pre-activations a study may follow in detail.
        trainer_options: Further arguments for the Trainer, such as `{"accelerator": "cpu"}`.
        options: What module and data were made with, in words; shown, and part of a cell's configuration.

    Raises:
        ValueError: If mode is neither "max" nor "min", or `monitor` has a name that every run records by itself.
    """

    name: str
    module: Callable[..., Any]
    data: Callable[..., Any]
    monitor: str
    mode: Literal["max", "min"] = "max"
    target: float | None = None
    budget: Budget
    layer_of_interest: str | None = None
    trainer_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise ValueError(f"The mode of problem {self.name!r} is 'max' or 'min', not {self.mode!r}.")
        if self.monitor in RECORDED:
            raise ValueError(
                f"Arms are compared by a validation metric, and {self.monitor!r} is what every run records of its "
                f"training. Log the metric under another name, such as 'val_{self.monitor}', and let that be the "
                "monitor (--monitor)."
            )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things compared: callbacks that change the training, or options of the module.

    Args:
        name: Short name; also the name of the arm's folder.
        callbacks: Makes fresh Lightning callbacks; called once a cell.
        factors: In what the arm differs, as plain values; stored with every cell.
        options: Keyword arguments for the problem's `module`.
        label: Words for figures and tables; the name by default.
        budget: Length and evaluations of this arm's runs, in place of the problem's; its number of seeds is not used.

    Raises:
        ValueError: If the name cannot be a folder's name.

    Example:
        >>> Arm(name="before", factors={"placement": "before"}).label
        'before'
    """

    name: str
    callbacks: Callable[[], list[Any]] = list
    factors: Mapping[str, str | float | bool] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or any(character in self.name for character in "/\\\0"):
            raise ValueError(f"An arm's name becomes a folder's: {self.name!r} is empty, hidden or holds a slash.")
        object.__setattr__(self, "label", self.label or self.name)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a study's report.

    Args:
        name: Name of its file, without an ending.
        caption: What it shows, in words.
        draw: Draws it: `draw(results, cells, study)` gives a matplotlib figure.
    """

    name: str
    caption: str
    draw: Callable[["pd.DataFrame", "pd.DataFrame", "Study"], "MatplotlibFigure"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, and the arms whose comparison answers it.

    Args:
        name: Short name, as on the command line.
        question: The question in words.
        arms: What is compared, in the order of tables and figures.
        reference: Name of the arm that every other one is compared with.
        problem: What is trained.
        source: Paper and section the question comes from.
        figures: Figures of the report; without any it gets those that suit every study.
        file: Path of the file of yours that it came from, if it did, by which a report finds the figures again.

    Raises:
        ValueError: If there is no arm, or two share a name.
        UnknownNameError: If the reference is no arm.

    Example:
        >>> budget = Budget(max_steps=100)
        >>> problem = Problem(name="mine", module=object, data=object, monitor="val_loss", mode="min", budget=budget)
        >>> arms = (Arm(name="none"), Arm(name="before"))
        >>> Study(name="mine", question="Does it help?", arms=arms, reference="none", problem=problem).arm("none").name
        'none'
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    reference: str
    problem: Problem
    source: str = ""
    figures: tuple[Figure, ...] = ()
    file: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", tuple(self.arms))  # a generator could be read once only
        names = [arm.name for arm in self.arms]
        if not names:
            raise ValueError(f"Study {self.name!r} has no arms, so there is nothing to compare.")
        # File systems that ignore case would give "A" and "a" one folder.
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(f"Arms of study {self.name!r} share a name: {', '.join(names)}.")
        self.arm(self.reference)

    def arm(self, name: str) -> Arm:
        """The arm called `name`.

        Args:
            name: Name of an arm.

        Returns:
            The arm.

        Raises:
            UnknownNameError: If there is none; the message names the near ones.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise unknown_name(f"arm of study {self.name!r}", name, [arm.name for arm in self.arms])

    def only(self, arms: str | Iterable[str]) -> "Study":
        """The study with some of its arms, in its own order.

        Args:
            arms: Names of arms or fnmatch patterns, such as "relu_*"; a string holds several with commas between.

        Returns:
            The smaller study; where its reference is left out, the first arm that is kept becomes the reference.

        Raises:
            UnknownNameError: If a name or pattern matches no arm; the message names the near ones.
            ValueError: If none is given.

        Example:
            >>> from bn_lightning.analysis.catalog import find_study
            >>> [arm.name for arm in find_study("placement").only("none,before*").arms]
            ['none', 'before', 'before_plain']
        """
        wanted = [name.strip() for name in (arms.split(",") if isinstance(arms, str) else arms)]
        wanted = [name for name in wanted if name]
        names = [arm.name for arm in self.arms]
        if not wanted:
            raise ValueError(f"No arm of study {self.name!r} was named; there are: {', '.join(names)}.")
        for pattern in wanted:
            if not fnmatch.filter(names, pattern):
                raise unknown_name(f"arm of study {self.name!r}", pattern, names)
        kept = tuple(arm for arm in self.arms if any(fnmatch.fnmatchcase(arm.name, pattern) for pattern in wanted))
        reference = self.reference if self.reference in {arm.name for arm in kept} else kept[0].name
        return replace(self, arms=kept, reference=reference)
