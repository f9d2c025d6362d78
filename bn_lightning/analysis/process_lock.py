"""Locks between processes: two parents on one run folder, or a cell handed out twice, cannot mix their files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def lock_file(out: Path, name: str) -> Path:
    """Where the lock called `name` of a run folder lies.

    Args:
        out: The run folder.
        name: Name of the lock.

    Returns:
        Its path; the folder it lies in is made if need be.

    Example:
        >>> import tempfile
        >>> lock_file(Path(tempfile.mkdtemp()), "study").name
        'study.lock'
    """
    folder = out / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


@contextmanager
def held(out: Path, name: str) -> Iterator[bool]:
    """Hold a lock of a run folder; wait for whoever holds it.

    The operating system lets go of the lock when a process ends by whatever means, so none is left over after kill -9.
    On a file system without locks nothing is held.

    Args:
        out: The run folder.
        name: Name of the lock.

    Yields:
        Whether another process held it before.
    """
    lock = FileLock(lock_file(out, name))
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        lock.acquire()
    except NotImplementedError:  # some network file systems are mounted without locks
        yield False
        return
    try:
        yield waited
    finally:
        lock.release()


def first_free(out: Path, name: str, *, places: int) -> tuple[int, FileLock | None]:
    """Take the first place, of several with numbers, that no other process holds, for as long as this one lives.

    Args:
        out: The run folder.
        name: Name of the places.
        places: How many to try.

    Returns:
        The number, and the lock, which is to be kept; 0 and None if all are taken or the file system has no locks.
    """
    for number in range(places):
        lock = FileLock(lock_file(out, f"{name}_{number}"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        except NotImplementedError:
            break
        return number, lock
    return 0, None
