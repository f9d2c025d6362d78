"""What a DataLoader is made with besides its data and how they are batched, to make one like it."""

from typing import Any

from torch.utils.data import DataLoader

_NAMES = (
    "collate_fn",
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "prefetch_factor",
    "persistent_workers",
)


def loader_settings(loader: DataLoader) -> dict[str, Any]:
    """Arguments that give another DataLoader the same workers, collate function and pinned memory.

    Args:
        loader: The loader.

    Returns:
        Keyword arguments of DataLoader.

    Example:
        >>> loader_settings(DataLoader([1, 2], collate_fn=sum))["collate_fn"] is sum
        True
    """
    settings = {name: getattr(loader, name) for name in _NAMES}
    if loader.num_workers:
        settings["multiprocessing_context"] = loader.multiprocessing_context
    return settings
