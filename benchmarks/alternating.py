"""Time functions by turns in one process on one thread, as ratios to the first, with A against A beside them."""

import statistics
import time
from collections.abc import Callable

import torch


def ratios(
    contenders: dict[str, Callable[[], object]],
    *,
    rounds: int,
    inner: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, float, float]]:
    """Ratio of each contender's time to the first one's, round by round.

    The first contender is timed twice a round; its second time gives the row "again (noise)".

    Args:
        contenders: Functions by name; the first is the reference.
        rounds: Number of rounds; each runs every contender, in turning order.
        inner: Calls in one timing.
        clock: Seconds; ``time.thread_time`` on a machine that others load.

    Returns:
        For each name the median ratio and its 2.5 and 97.5 percentiles over the rounds' bootstrap medians.
    """
    torch.set_num_threads(1)
    names = list(contenders)
    order = [*names, "again (noise)"]
    functions = {**contenders, "again (noise)": contenders[names[0]]}
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for number in range(rounds):
        turned = order[number % len(order) :] + order[: number % len(order)]
        for name in turned:
            start = clock()
            for _ in range(inner):
                functions[name]()
            seconds[name].append(clock() - start)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name in order[1:]:
        quotients = torch.tensor(seconds[name]) / torch.tensor(seconds[names[0]])
        draws = quotients[torch.randint(rounds, (2000, rounds), generator=generator)].median(1).values
        low, high = torch.quantile(draws, torch.tensor([0.025, 0.975])).tolist()
        found[name] = (statistics.median(quotients.tolist()), low, high)
    found[names[0]] = (statistics.median(seconds[names[0]]) / inner * 1e3, 0.0, 0.0)
    return found


def show(title: str, found: dict[str, tuple[float, float, float]], reference: str) -> None:
    """Print the ratios as a table, the reference's own time first."""
    print(f"{title}: {reference} takes {found[reference][0]:.3f} ms")
    for name, (median, low, high) in found.items():
        if name != reference:
            print(f"  {name:32} {median:6.3f}  [{low:.3f}, {high:.3f}]")
