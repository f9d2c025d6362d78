"""The problem of later papers on batch norm: a convolutional network sorts CIFAR-10."""

import functools
from pathlib import Path
from typing import Any, Literal

from bn_lightning.analysis.names import unknown_name
from bn_lightning.analysis.problems.cifar_file import cifar_path
from bn_lightning.analysis.problems.mnist_file import data_folder
from bn_lightning.analysis.study import Budget, Problem

PAPER_STEPS = 15_000
NETWORKS = ("vgg", "nin")


def cifar_problem(
    network: Literal["vgg", "nin"] = "vgg",
    *,
    data_dir: str | Path | None = None,
    evaluate: Literal["test", "validation"] = "test",
    lr: float = 0.1,
    width: int | None = None,
    convolutions: int = 8,
) -> Problem:
    """A VGG-like or network-in-network model on CIFAR-10, batch 128, plain SGD, without augmentation.

    Source: Santurkar et al. (2018): VGG, rate 0.1, 15,000 steps, 83 % with batch norm and 80 % without.

    Args:
        network: "vgg" or "nin".
        data_dir: Folder with `cifar10.npz` or `cifar10_small.npz`; by default the one BN_LIGHTNING_DATA names.
        evaluate: The set that curves are of: "test", or "validation" for tuning.
        lr: Learning rate.
        width: Channels of the network; by default those of its paper, 64 and 192.
        convolutions: Of the VGG: 8 or 6.

    Returns:
        The problem, called "cifar10_vgg" or "cifar10_nin", or "cifar10_small_…" on a subset.

    Raises:
        UnknownNameError: If there is no such network.
        RunFolderError: If no folder with the file is named.
    """
    if network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS)
    folder = data_folder(data_dir)
    path = cifar_path(folder)
    options: dict[str, Any] = {"lr": lr, "width": width or {"vgg": 64, "nin": 192}[network]}
    if network == "vgg":
        options["convolutions"] = convolutions
    return Problem(
        name=f"{path.stem}_{network}",
        module=functools.partial(_module, network, evaluate=evaluate, **options),
        data=functools.partial(_data, data_dir=str(folder), evaluate=evaluate),
        monitor=f"{evaluate}_accuracy",
        mode="max",
        budget=Budget(max_steps=PAPER_STEPS, eval_every=250),
        trainer_options={"accelerator": "cpu"},
        options={**options, "network": network, "evaluate": evaluate, "batch_size": 128},
    )


def _module(network: str, **options: Any) -> Any:
    from bn_lightning.analysis.problems.nin import NIN
    from bn_lightning.analysis.problems.vgg import VGG

    return (VGG if network == "vgg" else NIN)(**options)


def _data(**options: Any) -> Any:
    from bn_lightning.analysis.problems.cifar_data import CifarData

    return CifarData(**options)
