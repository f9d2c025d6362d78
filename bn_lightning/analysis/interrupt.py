"""Ctrl-C within a Trainer's loop, which Lightning would end the process on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keyboard_interrupt_kept() -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning turns one into an exit of the process and ignores any further.

    Raises:
        KeyboardInterrupt: On Ctrl-C.

    Example:
        >>> with keyboard_interrupt_kept():
        ...     pass  # trainer.predict(module, datamodule=data)
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
