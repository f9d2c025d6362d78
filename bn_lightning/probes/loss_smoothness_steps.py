"""How far, and which way, to step along a gradient."""

from collections.abc import Sequence


def sign_of(direction: str) -> float:
    """Which way a step goes along the gradient.

    Args:
        direction: "descent" or "ascent".

    Returns:
        −1 or 1.

    Raises:
        ValueError: If it is neither word.

    Example:
        >>> sign_of("descent")
        -1.0
    """
    if direction not in ("descent", "ascent"):
        raise ValueError(f"A direction is 'descent' or 'ascent', not {direction!r}.")
    return -1.0 if direction == "descent" else 1.0


def steps_along_gradient(
    *,
    step_sizes: Sequence[float] | None = None,
    multiples: Sequence[float] = (0.5, 1, 2, 4),
    learning_rate: float | None = None,
    max_step_size: float | None = None,
) -> tuple[float, ...]:
    """The step sizes asked for, ascending, each once.

    Args:
        step_sizes: In absolute terms; they win.
        multiples: Of the learning rate.
        learning_rate: The optimizer's.
        max_step_size: Larger ones are cut to it.

    Returns:
        Positive step sizes.

    Raises:
        ValueError: If there are none, or one is not positive and finite.

    Example:
        >>> steps_along_gradient(learning_rate=0.2, max_step_size=0.4)
        (0.1, 0.2, 0.4)
    """
    if step_sizes is None:
        if learning_rate is None:
            raise ValueError(
                "No learning rate is known to take multiples of; give learning_rate=, or step_sizes= in absolute terms."
            )
        step_sizes = [multiple * learning_rate for multiple in multiples]
    sizes = sorted({float(size) if max_step_size is None else min(float(size), max_step_size) for size in step_sizes})
    if not sizes or not all(0 < size < float("inf") for size in sizes):
        raise ValueError(f"Step sizes must be positive and finite, got {sizes}.")
    return tuple(sizes)
