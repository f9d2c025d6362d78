"""Tell the visits of one site apart: a layer that is called twice in a forward is two rows, not one."""

from collections.abc import Sequence

from torch import Tensor

from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.running.taps import Receiver

# A recurrent layer is visited once a time step, and sequences differ in length: its steps stay together.
_MOST_VISITS = 8


def split_visits(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Repeat each site that a forward visits several times, once for each visit.

    Sites on a layer with more than eight visits, as of a recurrent one, stay one; so do those of other
    kinds, which are one call in the code.

    Args:
        sites: Sites of a plan, in the order of the forward.

    Returns:
        The sites, repeated ones side by side.
    """
    return tuple(site for site in sites for _ in range(_visits(site)))


class Visits:
    """Passes each visit of a repeated site on under the site's own place among the repeats.

    Calls are counted modulo the visits of a forward, so nothing has to be reset between forwards.

    Args:
        sites: What `split_visits` returned.
        receive: Receives the visits.
    """

    def __init__(self, sites: Sequence[Site], receive: Receiver) -> None:
        self._receive = receive
        # For each place: which visit it stands for, of how many.
        self._turns: list[tuple[int, int]] = []
        self._calls = [0] * len(sites)
        while len(self._turns) < len(sites):
            number = _visits(sites[len(self._turns)])
            self._turns += [(turn, number) for turn in range(number)]

    def __call__(self, layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        """Pass an activation on if this visit is the place's own."""
        turn, number = self._turns[index]
        if number > 1:
            visit = self._calls[index]
            self._calls[index] = (visit + 1) % number
            if visit != turn:
                return
        self._receive(layer, index, activation, channel_dim)


def receiver_of(sites: Sequence[Site], receive: Receiver) -> Receiver:
    """What hooks shall call: `receive` itself where no site is repeated, which costs least.

    Args:
        sites: What `split_visits` returned.
        receive: Called with each place's own visits.

    Returns:
        A receiver for `tap_preactivations`.
    """
    return Visits(sites, receive) if any(_visits(site) > 1 for site in sites) else receive


def _visits(site: Site) -> int:
    return site.visits if site.attach == "producer" and 1 < site.visits <= _MOST_VISITS else 1
