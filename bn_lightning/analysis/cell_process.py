"""One of the processes that train a cell together; torchrun runs this file once for each."""

import os
import pickle
import signal
import sys
import traceback
from pathlib import Path

from bn_lightning.analysis.cell_processes import CELL, FAILURE, TRAINING
from bn_lightning.analysis.own_code import check_same_code
from bn_lightning.analysis.worker_process import end_with_the_parent


def main(room: Path) -> None:
    """Train the cell in `room`, and write its results there if this process is the first.

    Args:
        room: Folder with the pickled cell.
    """
    # Whoever started the processes hears Ctrl-C too, and ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_the_parent(os.getppid())
    rank = int(os.environ["RANK"])
    try:
        code, (problem, arm, seed, folder) = pickle.loads((room / CELL).read_bytes())
        check_same_code(code)
        # Lightning's sampler orders the data by this variable, and by nothing else.
        os.environ["PL_GLOBAL_SEED"] = str(seed)
        from bn_lightning.analysis.training import train

        training = train(problem, arm, seed=seed, folder=folder)
    except BaseException as error:
        failure = (rank, f"{type(error).__name__}: {error}", traceback.format_exc())
        (room / FAILURE.format(rank=rank)).write_bytes(pickle.dumps(failure))
        raise
    if rank == 0:
        (room / TRAINING).write_bytes(pickle.dumps(training))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
