"""What a recipe changed, by name."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_SWITCHES = ("remove_dropout", "remove_local_response_norm", "shuffle")


@dataclass(frozen=True)
class RecipeChange:
    """One thing that a recipe changed, or had to leave.

    Attributes:
        item: The item of the recipe, as its argument is called.
        name: What was changed: a module's path, an optimizer's group, a scheduler, a loader.
        before: Its value before.
        after: Its value now, or why it was left.
        left: Whether it is as it was.
    """

    item: str
    name: str
    before: str
    after: str
    left: bool = False

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.before}, {self.after}" if self.left else f"{self.name}: {self.before} → {self.after}"
        )


@dataclass(frozen=True)
class RecipeReport:
    """What a recipe changed.

    Attributes:
        changes: One entry for each thing that was changed or, where it was asked for and could not be, left.
        without_effect: The items that were switched on and found nothing to change.
    """

    changes: tuple[RecipeChange, ...]
    without_effect: tuple[str, ...] = ()

    def table(self) -> "pd.DataFrame":
        """One row an entry.

        Returns:
            Columns `item`, `name`, `before`, `after` (text) and `left` (bool).
        """
        import pandas as pd

        columns = ["item", "name", "before", "after", "left"]
        return pd.DataFrame([[getattr(change, name) for name in columns] for change in self.changes], columns=columns)

    def __str__(self) -> str:
        items: dict[str, list[str]] = {}
        for change in self.changes:
            items.setdefault(change.item, []).append(str(change))
        return "\n".join(f"  {item}: {'; '.join(entries)}" for item, entries in items.items())


def written(value: float) -> str:
    """A number as a report shows it.

    Args:
        value: The number.

    Returns:
        Up to six significant digits.
    """
    return f"{value:g}"


def nothing_found(missing: tuple[str, ...], report: RecipeReport) -> str:
    """What to tell the user whose recipe found nothing for some of its items.

    Args:
        missing: The items.
        report: What was changed and left.

    Returns:
        Which, why as far as it is known, and how to switch them off.
    """
    text = f"BatchNormRecipe found nothing to change for {', '.join(missing)}"
    reasons = [str(change) for change in report.changes if change.left and change.item in missing]
    if reasons:
        text += f" ({'; '.join(reasons)})"
    off = ", ".join(f"{name}={'False' if name in _SWITCHES else 'None'}" for name in missing)
    return f"{text}. Where that is as it should be, switch it off: {off}."
