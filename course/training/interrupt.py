"""Ctrl-C that waits: a step stopped half-way would leave weights that no step produced."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C was pressed. The first one is only noted, a second one does not wait.

    Outside the main thread there is nothing to defer.
    """
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return
    previous = signal.getsignal(signal.SIGINT)

    def remember(signum: int, frame: object) -> None:
        seen.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
