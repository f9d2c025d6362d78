"""Run a LightningModule for insertion: to find its sites, and to let new norms start as the identity."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from torch import nn

from bn_lightning.callbacks._compat import LightningModule, Trainer, misconfiguration, rank_zero_warn
from bn_lightning.callbacks._dry_run import idle_optimizers
from bn_lightning.callbacks._example import examples_of, first_training_batches
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.callbacks._reached import note_called, unreached_networks
from bn_lightning.errors import InsertionWarning
from bn_lightning.surgery.plan import InsertionPlan
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.statistics.identity_start import start_as_identity

_BY_HAND = "bnl.insert_batch_norm(module.network, (x,)) on each network before fit"


@contextmanager
def _no_trace_left(module: "LightningModule", entry: str) -> Iterator[None]:
    with ExitStack() as guards:
        guards.enter_context(no_trace(module))
        if entry == "training_step":
            guards.enter_context(idle_optimizers(module))
        yield


def trace_plan(
    trainer: "Trainer", module: "LightningModule", *, entry: str | None, num_examples: int, options: Mapping[str, Any]
) -> InsertionPlan:
    """Plan the insertion into a module with its own example or the first training batches.

    Args:
        trainer: The Trainer that is setting up.
        module: Its LightningModule.
        entry: What to run, or None for what the module's settings suggest.
        num_examples: How many training batches to run.
        options: Further options of `plan_insertion`.

    Returns:
        The plan.

    Raises:
        MisconfigurationException: If there is nothing to run the module on.
        NoSiteError: If nothing in the module can be normalised.
    """
    first, *more = examples_of(trainer, module, entry=entry, num_examples=num_examples)
    with note_called(module) as called, _no_trace_left(module, first.entry):
        try:
            plan = plan_insertion(
                module,
                first.args,
                first.kwargs,
                entry=first.entry,
                more_examples=[(example.args, example.kwargs) for example in more],
                **options,
            )
        except Exception as error:
            if first.entry == "training_step":
                error.add_note(_why_training_step(module))
            raise
    if options.get("include") is None:
        _warn_of_unreached(module, called, first.entry)
    return plan


def calibrate_identity(trainer: "Trainer", module: "LightningModule", num_batches: int) -> None:
    """Let the norms that were just inserted hand on what they receive.

    Args:
        trainer: The Trainer, about to fit.
        module: Its LightningModule, with untrained norms.
        num_batches: From how many training batches to take the statistics; fewer where an epoch has fewer.

    Raises:
        MisconfigurationException: If there are no training data.
    """
    batches = first_training_batches(trainer, module, num_batches)

    def numbered() -> Generator[tuple[int, Any], None, None]:
        # Left before the norms are written, which a step's own writing to parameters would be taken for.
        with _no_trace_left(module, "training_step"):
            yield from enumerate(batches)

    with closing(numbered()) as pairs:
        start_as_identity(module, pairs, forward=lambda _, pair: module.training_step(pair[1], pair[0]))


def refuse_sharded(trainer: "Trainer", module: "LightningModule") -> None:
    """Refuse a module whose `configure_model` sharded its layers: norms that come later would belong to no shard.

    Args:
        trainer: The Trainer that is setting up.
        module: Its LightningModule.

    Raises:
        MisconfigurationException: If a layer is sharded.
    """
    sharded = [name for name, parameter in module.named_parameters() if type(parameter.data).__name__ == "DTensor"]
    sharded += [path for path, part in module.named_modules() if type(part).__name__ == "FullyShardedDataParallel"]
    if sharded:
        raise misconfiguration(
            trainer,
            f"{type(module).__name__} shards its layers ({sharded[0]} …) before norms can be inserted, and the "
            "gradients of norms that are added afterwards would not be reduced over the ranks. In configure_model, "
            "insert first and shard then: bnl.insert_batch_norm(self.network, (x,)) before fully_shard(self.network).",
        )


def _why_training_step(module: "LightningModule") -> str:
    if not module.automatic_optimization:
        return (
            "The module optimizes manually, and its training_step ran on the first training batch with idle optimizers "
            "(manual_backward and steps do nothing). If it cannot run so, set example_input_array to a batch of "
            f"inputs, and forward is traced instead; or call {_BY_HAND}."
        )
    return (
        "The module has no example_input_array, so training_step ran on the first training batch. "
        "Set example_input_array to a batch of inputs, and forward is traced instead."
    )


def _warn_of_unreached(module: nn.Module, called: set[nn.Module], entry: str) -> None:
    unreached = unreached_networks(module, called)
    if not unreached:
        return
    way = (
        "BatchNormInsertion(entry='training_step') traces a whole training step, which also runs the other networks"
        if entry == "forward"
        else "BatchNormInsertion(num_examples=…) traces more batches, if others take that path"
    )
    names = ", ".join(map(repr, unreached))
    rank_zero_warn(
        f"BatchNormInsertion saw {type(module).__name__}.{entry} run, which did not reach {names}, so no norm was "
        f"inserted there. {way}; or call {_BY_HAND}. If these are to stay as they are, name the sites that you want "
        "with include=[...], and this warning is not given.",
        category=InsertionWarning,
    )
