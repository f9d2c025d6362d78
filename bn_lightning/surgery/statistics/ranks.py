"""Merge what the ranks collected: one gather of one float64 vector, whatever the number of layers."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bn_lightning.functional.population import BatchStatistics
from bn_lightning.surgery.forward import device_of

Gather = Callable[[Tensor], Sequence[Tensor]]


def gather_from_ranks(model: nn.Module) -> Gather:
    """A gather over the default process group, or one that hands the vector back where there is no group.

    Args:
        model: Its device is used where the backend cannot send from the CPU.

    Returns:
        A function from this rank's vector to the vectors of all ranks, on the CPU.
    """

    def gather(vector: Tensor) -> list[Tensor]:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return [vector]
        device = device_of(model)
        if device is not None and "gloo" not in str(dist.get_backend()):
            vector = vector.to(device)
        received = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
        dist.all_gather(received, vector)
        return [part.cpu() for part in received]

    return gather


def merge_over_ranks(
    sums: Sequence[BatchStatistics | None],
    channels: Sequence[int],
    *,
    counters: tuple[int, int],
    failure: Exception | None,
    gather: Gather,
) -> tuple[list[BatchStatistics], int, int]:
    """The statistics of every layer over all ranks.

    Args:
        sums: This rank's statistics of each layer; None where a layer saw nothing.
        channels: Channels of each layer.
        counters: Batches that this rank used and left out.
        failure: What went wrong on this rank, so that the others need not wait for it.
        gather: From this rank's vector to those of all ranks.

    Returns:
        Statistics of each layer (count 0 where nothing was seen), batches used, batches left out.

    Raises:
        Exception: `failure`, after the other ranks have been told.
        RuntimeError: If another rank failed.
    """
    parts = [torch.tensor([float(failure is not None), *map(float, counters)], dtype=torch.float64)]
    for layer, width in zip(sums, channels, strict=True):
        parts.append(torch.zeros(2 + 4 * width, dtype=torch.float64) if layer is None else _packed(layer))
    received = gather(torch.cat(parts))
    if failure is not None:
        raise failure
    failed = [rank for rank, vector in enumerate(received) if vector[0] != 0]
    if failed:
        raise RuntimeError(
            f"Recalibration failed on rank {', '.join(map(str, failed))}, whose error says why; the statistics of "
            "this rank were left as they were."
        )
    merged: list[BatchStatistics] = []
    offset = 3
    for width in channels:
        end = offset + 2 + 4 * width
        total = _unpacked(received[0][offset:end])
        for vector in received[1:]:
            total = total.merged(_unpacked(vector[offset:end]))
        merged.append(total)
        offset = end
    return merged, int(sum(vector[1] for vector in received)), int(sum(vector[2] for vector in received))


def _packed(layer: BatchStatistics) -> Tensor:
    return torch.cat(
        [
            torch.stack([layer.batches, layer.count]),
            layer.mean,
            layer.m2,
            layer.sum_of_means,
            layer.sum_of_variances,
        ]
    )


def _unpacked(vector: Tensor) -> BatchStatistics:
    return BatchStatistics(vector[0], vector[1], *vector[2:].chunk(4))
