"""Record pre-activations, activations and outputs of any model over some forward passes, in a plain PyTorch loop."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bn_lightning.errors import NoEffectWarning, NoSiteError
from bn_lightning.probes.activation_record import ActivationRecord
from bn_lightning.probes.activation_table import checked_percentiles, percentile_name
from bn_lightning.probes.gradients import GradientRecorder
from bn_lightning.probes.outputs import Output, OutputTaps, Selector, find_outputs
from bn_lightning.probes.recorded_kinds import ACTIVATIONS, GRADIENTS, PREACTIVATIONS, checked_record
from bn_lightning.probes.recorder import ActivationRecorder, Mode
from bn_lightning.probes.sites import monitored_sites
from bn_lightning.probes.visible_activations import visible_activations
from bn_lightning.probes.visits import receiver_of, split_visits
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import Receiver, activation_is_visible, tap_preactivations

__all__ = ["PERCENTILES", "ActivationRecord", "checked_percentiles", "percentile_name", "record_activations"]

PERCENTILES = (15, 50, 85)


@contextmanager
def record_activations(
    model: nn.Module,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    record: str | Collection[str] = (PREACTIVATIONS,),
    sites: Sequence[Site] | None = None,
    layers: Selector | Sequence[Selector] = (),
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    mode: Mode = "sampled",
    max_elements: int | None = 1024,
    max_samples: int | None = 65536,
) -> Iterator[ActivationRecord]:
    """Record what the nonlinearities of `model` receive or return in every forward pass within the `with` block.

    A pre-activation is the tensor a nonlinearity receives, so after any norm inserted before it; an
    activation is what it returns, before any norm inserted after it. Both are called by the affine layer in front. Of
    each one at most `max_elements` elements a pass are read, all channels equally often and other positions each
    time; smaller ones are read whole. In the exact mode all elements are read once. What each mode says, of n elements
    of which k were read:

    | quantity | sampled | exact |
    | --- | --- | --- |
    | count, nonfinite, by layer and channel | exact | exact |
    | mean, variance, skewness, kurtosis | estimates; `mean_error` is σ/√k, `variance_error` beside it | exact |
    | min, max, dead, by layer and channel | NaN, unless all was read | exact |
    | percentiles of a layer | estimates; `p15_error` is 5 % of σ at k = 1,024 | of 16,384 a pass: 1.2 % of σ |
    | percentiles of a channel | from its share of the k; NaN below 30 kept | the same, of 16,384 |
    | saturated | estimate, at most 1/(2√k) | estimate, at most 1/(2√k) |
    | histograms | estimates, their sum exact | estimates, their sum and range exact |

    Exact means but for rounding: moments are summed around a pivot, in float32 by chunks and in float64 over these.

    The example is run before, in a sandbox. While the block runs, hooks are on the model; they
    change no value, draw no random number and are gone at its end, also by an exception. Passes in
    training and evaluation mode are recorded alike.

    Args:
        model: The module, on any device. Compile it only inside the block: hooks added to a
            compiled module are ignored.
        args: Positional arguments of one example call, a tuple, to find the nonlinearities with.
        kwargs: Its keyword arguments.
        record: "preactivations", "activations" or both; and "gradients", with respect to all that is recorded, of
            backward passes within the block (`ActivationRecord.gradients`).
        sites: Sites of a plan made with `placement="before"`, instead of the example.
        layers: Modules whose outputs are recorded too, by fnmatch patterns on their paths, by type, or by the words
            "affine" and "activation" for all modules that are one (`probes.outputs.find_outputs`); needs the example.
        include: fnmatch patterns on the layers' paths; None takes all.
        exclude: fnmatch patterns on the layers' paths to leave out.
        percentiles: Percentages between 0 and 100.
        mode: "sampled" or "exact".
        max_elements: Elements read of a tensor and pass; None reads all, slowly. At least 16,384 in exact mode.
        max_samples: Elements a layer kept for percentiles; beyond that they are thinned to as many
            quantiles. None keeps all.

    Yields:
        The record; it can be read after the block too.

    Raises:
        NoSiteError: If no nonlinearity has a pre-activation made by an affine layer, or no activation can be seen.
        UnknownNameError: If a pattern or type matches no layer, or there is no such mode or nothing of that name to
            record.
        ValueError: If `record` is empty without `layers`, neither an example nor sites are given, `layers` come
            without an example, or a number is out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.randn(32, 8)
        >>> with record_activations(model, (x,)) as record:
        ...     _ = model(x)
        >>> row = record.table().iloc[0]
        >>> row["layer"], int(row["count"]), bool(abs(row["mean"] - model[0](x).mean()) < 1e-6)
        ('0', 128, True)
    """
    checked, kinds = checked_percentiles(percentiles), checked_record(record, with_outputs=bool(layers))
    model = getattr(model, "_orig_mod", model)
    has_example = args is not None or kwargs is not None
    if not has_example and (sites is None or layers):
        raise ValueError("Give an example call, as in record_activations(model, (x,)), or the sites of a plan.")
    given, named = () if args is None else args, dict(kwargs or {})
    if sites is None:
        sites = _planned(model, given, named, needed=not layers)
    chosen = split_visits(monitored_sites(sites, include=include, exclude=exclude))
    outputs = find_outputs(model, layers, lambda: model(*given, **named)) if layers else ()
    if not chosen and not outputs:
        raise NoSiteError(
            f"None of the {len(sites)} nonlinearities of {type(model).__name__} that were found has a pre-activation "
            "to record: they are gates, or no affine layer feeds them, or include= and exclude= leave none."
        )
    before = chosen if PREACTIVATIONS in kinds else ()
    seen: tuple[bool, ...] = ()
    if ACTIVATIONS in kinds:
        run = (lambda: model(*given, **named)) if has_example else None
        seen = tuple(map(activation_is_visible, chosen)) if run is None else visible_activations(model, chosen, run)
        _tell_unseen(chosen, seen, needed=not before and not outputs)
    after = tuple(site for site, is_seen in zip(chosen, seen, strict=bool(seen)) if is_seen)
    channels = [*(site.channels for site in (*before, *after)), *(output.channels for output in outputs)]
    recorder = ActivationRecorder(
        channels, max_elements=max_elements, max_samples=max_samples, mode=mode, keep_channels=True
    )
    gradients = None
    if GRADIENTS in kinds:
        gradients = GradientRecorder(channels, max_elements=max_elements, max_samples=max_samples, mode=mode)
    with _hooks(model, chosen, seen, outputs, _taker(recorder, gradients), preactivations=bool(before)):
        try:
            yield ActivationRecord(before, after, outputs, recorder=recorder, percentiles=checked, gradients=gradients)
        finally:
            if gradients is not None:
                gradients.taking = False
                gradients.remove()


def _taker(recorder: ActivationRecorder, gradients: GradientRecorder | None) -> Receiver:
    """What hooks call with each tensor and its place."""
    if gradients is None:
        return recorder.receive

    def take(layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        recorder.receive(layer, index, activation, channel_dim)
        gradients.watch(layer, index, activation, channel_dim)

    return take


@contextmanager
def _hooks(
    model: nn.Module,
    sites: Sequence[Site],
    seen: Sequence[bool],
    outputs: Sequence[Output],
    take: Receiver,
    *,
    preactivations: bool,
) -> Iterator[None]:
    first = len(sites) if preactivations else 0
    places = [first + sum(seen[:position]) for position in range(len(seen))]
    behind = first + sum(seen)

    def receive_nothing(layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        pass

    def receive_activation(layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        if seen[index]:
            take(layer, places[index], activation, channel_dim)

    def receive_output(layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        take(layer, behind + index, activation, channel_dim)

    receive = receiver_of(sites, take) if preactivations else receive_nothing
    returned = receiver_of(sites, receive_activation) if any(seen) else None
    with (
        tap_preactivations(model, sites if first or any(seen) else (), receive, receive_activation=returned),
        OutputTaps(model, outputs, receive_output) as taps,
    ):
        handle = model.register_forward_pre_hook(lambda module, args: taps.begin_forward())
        try:
            yield
        finally:
            handle.remove()


def _tell_unseen(sites: Sequence[Site], seen: Sequence[bool], *, needed: bool) -> None:
    unseen = [f"{site.layer} ({site.op})" for site, is_seen in zip(sites, seen, strict=True) if not is_seen]
    if not unseen:
        return
    found = (
        f"What these nonlinearities return cannot be seen: {', '.join(dict.fromkeys(unseen))}. They are spelled with "
        "other functions, as a ReLU by torch.where, or are no call of one; call the function or module of that name"
    )
    if needed and len(unseen) == len(sites):
        raise NoSiteError(f"{found}, or record pre-activations.")
    warnings.warn(f"{found} to have them recorded; the others are.", NoEffectWarning, stacklevel=4)


def _planned(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, needed: bool) -> tuple[Site, ...]:
    before = set(model.modules())
    try:
        sites = plan_insertion(model, args, dict(kwargs)).sites
        # Layers that the model built in this first forward were no modules yet when it began.
        return sites if set(model.modules()) == before else plan_insertion(model, args, dict(kwargs)).sites
    except NoSiteError:
        if needed:
            raise
        return ()
