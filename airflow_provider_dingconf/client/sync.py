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
from functools import partial
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


class _AwaitedBlocks:
    """The blocks that are open in event loops of the main thread; they overlap as they like."""

    def __init__(self) -> None:
        self._cancels: dict[object, Callable[[], object]] = {}
        self._before: Any = None
        self._process = 0
        self._missed = False

    @contextmanager
    def cancelled_by_termination(self) -> Iterator[None]:
        """Cancel the asyncio task that is in the block when SIGTERM comes.

        The signal is passed on to whoever handled it before when the last of the blocks has ended. Outside
        the main thread, the block is left as it is.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)
        if before is signal.SIG_IGN or before is None:
            yield
            return
        if not self._cancels:
            self._process, self._missed = os.getpid(), False
            if before != self._handle:
                self._before = before
                signal.signal(signal.SIGTERM, self._handle)
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        block = object()
        self._cancels[block] = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        try:
            yield
        finally:
            del self._cancels[block]
            if not self._cancels and signal.getsignal(signal.SIGTERM) == self._handle:
                signal.signal(signal.SIGTERM, self._before)
                if self._missed:
                    signal.raise_signal(signal.SIGTERM)

    def _handle(self, signum: int, _frame: Any) -> None:
        if not self._cancels or os.getpid() != self._process:  # a process forked in a block is none of it
            signal.signal(signum, self._before)
            signal.raise_signal(signum)
        elif not self._missed:
            self._missed = True
            for cancel in list(self._cancels.values()):
                cancel()


cancelled_by_termination = _AwaitedBlocks().cancelled_by_termination


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
