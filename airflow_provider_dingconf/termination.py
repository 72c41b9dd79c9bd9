"""Interruptions as exceptions, so that what must be undone is undone before the process ends.

Airflow ends a task by SIGTERM, and some seconds later by SIGKILL. Airflow 2 turns the first into an
exception; Airflow 3 calls the operator's ``on_kill`` and lets the task's code run on, so that no ``finally``
of it is reached. An execution timeout is an exception out of the handler of SIGALRM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

T = TypeVar("T")


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


def run_in_thread(work: Coroutine[Any, Any, T], *, to_the_end: bool = False) -> T:
    """Run a coroutine in an event loop of a thread of its own, and return what it returns.

    Where the caller is interrupted, the coroutine is cancelled, and the interruption goes on once it has
    ended. An event loop in the main thread would swallow an execution timeout that comes while a callback
    runs.

    :param work: the coroutine.
    :param to_the_end: whether it is not cancelled, but waited for.
    """
    result: Future[T] = Future()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []
    stopped = False

    async def begin() -> T:
        running.append((asyncio.get_running_loop(), cast("asyncio.Task[T]", asyncio.current_task())))
        if stopped:
            work.close()
            raise asyncio.CancelledError
        return await work

    def run() -> None:
        try:
            result.set_result(asyncio.run(begin()))
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="dingtalk")
    try:
        thread.start()
        return result.result()
    except BaseException:
        with termination() as hold_termination:
            hold_termination()
            stopped = not to_the_end
            if stopped and running:
                loop, task = running[0]
                with suppress(RuntimeError):  # it has just ended
                    loop.call_soon_threadsafe(task.cancel)
            if thread.ident is not None:
                thread.join()
        raise
