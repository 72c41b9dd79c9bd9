"""SIGTERM as an exception, so that what must be undone is undone before the process ends.

Airflow ends a task by SIGTERM, and some seconds later by SIGKILL. Airflow 2 turns the first into an
exception; Airflow 3 calls the operator's ``on_kill`` and lets the task's code run on, so that no ``finally``
of it is reached.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def termination() -> Iterator[Callable[[], None]]:
    """Raise SystemExit inside the block when SIGTERM comes; whoever handled it before is asked first.

    Yields a function that holds SIGTERM back from then on, until the block ends: for the undoing. Outside the
    main thread, where Python delivers no signal, the block is left as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)
    process, held, missed = os.getpid(), False, False

    def handle(signum: int, frame: Any) -> None:
        nonlocal missed
        if held:
            missed = True
            return
        if callable(before):
            before(signum, frame)
        if os.getpid() == process:
            raise SystemExit(128 + signum)

    def hold() -> None:
        nonlocal held
        held = True

    if before is signal.SIG_IGN or before is None:
        yield hold
        return
    signal.signal(signal.SIGTERM, handle)
    try:
        yield hold
    finally:
        signal.signal(signal.SIGTERM, before)
        if missed:
            signal.raise_signal(signal.SIGTERM)
