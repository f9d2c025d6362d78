"""Types of what makes a fresh module or fresh data, under whichever Lightning name is installed.

The command line parses import paths into these; a class of `lightning.pytorch` is none of `pytorch_lightning`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Union

from pytorch_lightning import LightningDataModule, LightningModule

if TYPE_CHECKING:
    ModuleFactory = Callable[[], Any]
    DataFactory = Callable[[], Any]
else:
    ModuleFactory = Callable[[], LightningModule]
    DataFactory = Callable[[], LightningDataModule]
    try:
        import lightning.pytorch as other
    except ModuleNotFoundError as error:
        if error.name != "lightning":
            raise
    else:
        ModuleFactory = Union[ModuleFactory, Callable[[], other.LightningModule]]  # noqa: UP007 - parsed at run time
        DataFactory = Union[DataFactory, Callable[[], other.LightningDataModule]]  # noqa: UP007 - parsed at run time
