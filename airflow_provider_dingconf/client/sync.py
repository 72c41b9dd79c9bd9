"""The background event loop, in which coroutines run for synchronous callers, and interruptions of a wait.

:func:`run` waits for a coroutine in the background event loop. :func:`sync` makes a synchronous method from
an async one. If the wait is interrupted (by SIGTERM, the SIGALRM of Airflow's execution timeout, or Ctrl-C),
the coroutine is cancelled, and the interruption is raised when the coroutine's clean-up has ended. In
a coroutine, :func:`within` waits for a limited time, and :func:`shielded` whatever cancels it.

:func:`termination` and :func:`cancelled_by_termination` turn SIGTERM, with which Airflow ends a task, into an
exception inside a block. Airflow 2 does that itself. Airflow 3 calls the operator's ``on_kill`` and lets the
task's code continue, so no ``finally`` of the task is reached before SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial, update_wrapper
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Iterable

P = ParamSpec("P")
T = TypeVar("T")

CLEAN_UP_SECONDS = 4.0
"""The time limit of a clean-up after an interruption: Airflow sends SIGKILL 5 seconds after SIGTERM."""

EXIT_SECONDS = 1.0
"""How long closing connections may delay the end of a process."""

SIGNAL_SECONDS = 0.5
"""How long it takes at most until a wait notices a signal that another thread received."""

Work = Callable[[], Coroutine[Any, Any, T]]

_INTERRUPTIONS = (signal.SIGTERM, signal.SIGALRM, signal.SIGINT)


class _Worker(futures.ThreadPoolExecutor):
    """One daemon thread for blocking work. Python's pools take no work once the main thread has ended."""

    def __init__(self) -> None:
        super().__init__()  # starts no thread
        self._given: SimpleQueue[tuple[futures.Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name="dingtalk", daemon=True).start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        future: futures.Future[T] = futures.Future()
        self._given.put((future, partial(fn, *args, **kwargs)))
        return future

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTIONS)  # see below
        while True:
            future, work = self._given.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)


class _Background:
    """An event loop in a thread: one for the process, because one for each hook needs many descriptors."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_Worker())
        self.tasks: dict[object, asyncio.Task[Any]] = {}
        """The running asyncio tasks, by job."""
        thread = threading.Thread(target=self._run, name="dingtalk", daemon=True)
        thread.start()
        self.thread_id = thread.ident

    def _run(self) -> None:
        # If two signals come together, the kernel may give one to this thread. Python would handle it in the
        # main thread, but not wake that thread, which may be asleep in a locked block.
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTIONS)
        self.loop.run_forever()


_background: _Background | None = None
_starting = threading.Lock()
_inherited: list[object] = []
_later: set[futures.Future[object]] = set()


def keep_after_fork(inherited: Callable[[], object]) -> None:
    """Never garbage-collect in a forked child what it inherits.

    A child that garbage-collects an event loop or a session of its parent can hang the parent, because they
    share the kernel's list of the sockets that the loop waits for.
    """
    os.register_at_fork(after_in_child=lambda: _inherited.append(inherited()))


def _forget_parents_loop() -> _Background | None:
    global _background, _starting
    parents, _background, _starting = _background, None, threading.Lock()
    return parents


keep_after_fork(_forget_parents_loop)


def _current() -> _Background:
    global _background  # noqa: PLW0603 - the process has one
    with _starting:
        if _background is None:
            _background = _Background()
        return _background


def is_background(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a loop is the background event loop of this process."""
    return _background is not None and _background.loop is loop


def run_at_exit(works: Iterable[Work[object]]) -> None:
    """Run coroutines in the background event loop, if there is one, when the process ends."""
    futures.wait(list(filter(None, map(run_later, works))), EXIT_SECONDS)


def run_later(work: Work[object]) -> futures.Future[object] | None:
    """Run a coroutine in the background event loop, if there is one, without waiting for it."""
    if _background is None:
        return None
    future = asyncio.run_coroutine_threadsafe(work(), _background.loop)
    _later.add(future)  # asyncio itself would not keep it
    future.add_done_callback(_later.discard)
    return future


class _Job(Generic[T]):
    """A coroutine that a thread waits for. Its methods run in the event loop.

    Only the loop's side references the asyncio task. If the waiter's frame held the task, the task would be
    deleted there, and callbacks of weak references to it would swallow an exception from a signal handler.
    """

    result: T
    error: BaseException | None = None
    succeeded = interrupted = False

    def __init__(self, work: Work[T], undo: Callable[[T], Awaitable[object]] | None) -> None:
        self.work = work
        self.undo = undo
        self.background = _background or _current()
        self.finished = threading.Lock()
        self.cleaned_up = threading.Lock()
        self.finished.acquire()
        self.cleaned_up.acquire()

    def begin(self) -> None:
        if not self.interrupted:
            self.background.tasks[self] = self.background.loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            self.result = await self.work()
            self.succeeded = True
        except BaseException as error:
            self.error = error
        finally:
            del self.background.tasks[self]
            self.finished.release()

    def interrupt(self) -> None:
        self.interrupted = True
        task = self.background.tasks.get(self)
        if task is not None:
            task.cancel()
        self.background.tasks[self.cleaned_up] = self.background.loop.create_task(self._clean_up(task))

    async def _clean_up(self, task: asyncio.Task[None] | None) -> None:
        """Wait for the end of the cancelled coroutine, and undo a result that arrived at the same moment."""
        try:
            if task is not None:
                await asyncio.wait([task])
            if self.succeeded and self.undo is not None:
                await self.undo(self.result)
        finally:
            del self.background.tasks[self.cleaned_up]
            self.cleaned_up.release()


def run(work: Work[T], undo: Callable[[T], Awaitable[object]] | None = None) -> T:
    """Run a coroutine in the background event loop, wait for it, and return its result.

    If the wait is interrupted, the coroutine is cancelled. The interruption is raised when the coroutine has
    ended, or after :data:`CLEAN_UP_SECONDS`. Further interruptions wait until then, too.

    :param undo: undoes a result that arrives at the moment of the interruption, because the caller does not
        receive it.
    """
    job = _Job(work, undo)
    background = job.background
    if threading.get_ident() == background.thread_id:
        raise RuntimeError("a callback of this package runs in its event loop: use the async methods there")
    try:
        background.loop.call_soon_threadsafe(job.begin, context=copy_context())
        while not job.finished.acquire(timeout=SIGNAL_SECONDS):
            pass
        # No call from here on: Python runs signal handlers, which may raise, after calls.
        if job.error is None:
            return job.result
    except BaseException:
        with interruptions_held():
            background.loop.call_soon_threadsafe(job.interrupt)
            job.cleaned_up.acquire(timeout=CLEAN_UP_SECONDS + 0.5)
        raise
    error, job.error = job.error, None
    try:
        raise error
    finally:
        del error  # its traceback references this frame, and that of the job


@contextmanager
def interruptions_held() -> Iterator[None]:
    """Hold back signals that would interrupt the main thread, and handle them when the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        came.append(number)

    handlers = {number: signal.signal(number, note) for number in _INTERRUPTIONS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # not set from Python
                signal.signal(number, handler)
        for missed in dict.fromkeys(came):
            signal.raise_signal(missed)


async def within(awaitable: Awaitable[T], seconds: float | None) -> T:
    """Return a result that arrives in time; ``asyncio.wait_for`` can lose a cancellation before Python 3.12.

    :param seconds: how long to wait; None for no limit.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


async def shielded(work: Awaitable[T]) -> T:
    """Await work that must finish, even if the awaiting task is cancelled, once or several times.

    :raises asyncio.CancelledError: the task was cancelled; raised when the work has finished.
    """
    future, cancelled = asyncio.ensure_future(work), False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:  # noqa: PERF203
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError from future.exception()
    return future.result()


class _Connected(Protocol):
    @property
    def _client(self) -> object: ...
    def _connect(self) -> object: ...


C = TypeVar("C", bound=_Connected)
F = TypeVar("F", bound=Callable[..., object])


def sync(
    method: Callable[Concatenate[C, P], Coroutine[Any, Any, T]],
    undo: Callable[[C, T], Awaitable[object]] | None = None,
) -> Callable[Concatenate[C, P], T]:
    """Return the synchronous version of a method whose name begins with ``a``; ``undo`` as in :func:`run`."""

    def wait(self: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._client is None:
            self._connect()  # here: Airflow looks up connections only in the main thread
        # Iterators are consumed here, because they may wait for the background event loop.
        given: Any = [list(each) if isinstance(each, Iterator) else each for each in args]
        named: Any = {name: list(one) if isinstance(one, Iterator) else one for name, one in kwargs.items()}
        work: Work[T] = partial(method, self, *given, **named)
        result: T = run(work, partial(undo, self) if undo else None)
        return result

    return _named(wait, method)


def sync_iterator(
    method: Callable[Concatenate[C, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[C, P], Iterator[T]]:
    """Return the synchronous version of an async generator, whose name begins with ``a``."""

    def iterate(self: C, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        self._connect()
        items = method(self, *args, **kwargs)

        async def following() -> list[T]:
            async for item in items:
                return [item]
            return []

        while found := run(following):
            yield from found

    return _named(iterate, method)


def _named(function: F, method: Any) -> F:
    """Give a synchronous method the name of its async version, without the ``a``."""
    named: Any = update_wrapper(cast("Any", function), method)
    named.__name__ = method.__name__[1:]
    named.__qualname__ = f"{method.__qualname__.rpartition('.')[0]}.{named.__name__}"
    return function


def _replaceable_handler() -> Any:
    """Return the handler of SIGTERM; None if it must not or cannot be replaced."""
    before = signal.getsignal(signal.SIGTERM)
    is_main = threading.current_thread() is threading.main_thread()
    return before if is_main and before is not signal.SIG_IGN else None


@contextmanager
def termination() -> Iterator[None]:
    """Raise SystemExit in the block when SIGTERM comes; call the previous handler first.

    Further signals have no effect until the block ends. Outside the main thread, where Python handles no
    signals, this does nothing.
    """
    before = _replaceable_handler()
    if before is None:
        yield
        return
    process, came, is_over = os.getpid(), False, False

    def handle(number: int, frame: Any) -> None:
        nonlocal came
        if is_over or os.getpid() != process:  # the latter: forked in the block
            signal.signal(number, before)
            signal.raise_signal(number)
        elif not came:
            came = True
            if callable(before):
                before(number, frame)
            raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        is_over = True
        with suppress(ValueError):  # the block ended in another thread, which cannot set handlers
            signal.signal(signal.SIGTERM, before)


class _AsyncBlocks:
    """The open blocks of event loops in the main thread; blocks can overlap in any order."""

    def __init__(self) -> None:
        self._cancels: set[Callable[[], object]] = set()
        self._before: Any = None
        self._process = 0
        self._terminated = False

    @contextmanager
    def cancelled_by_termination(self) -> Iterator[None]:
        """Cancel the asyncio task that is in the block when SIGTERM comes.

        The previous handler is called when the last open block has ended. Outside the main thread, this does
        nothing.
        """
        before = _replaceable_handler()
        if before is None:
            yield
            return
        if not self._cancels:
            self._process, self._terminated = os.getpid(), False
            if before != self._handle:
                self._before = before
                signal.signal(signal.SIGTERM, self._handle)
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        self._cancels.add(cancel)
        try:
            yield
        finally:
            self._cancels.remove(cancel)
            if not self._cancels and signal.getsignal(signal.SIGTERM) == self._handle:
                signal.signal(signal.SIGTERM, self._before)
                if self._terminated:
                    signal.raise_signal(signal.SIGTERM)

    def _handle(self, number: int, _frame: Any) -> None:
        if not self._cancels or os.getpid() != self._process:  # the latter: forked in a block
            signal.signal(number, self._before)
            signal.raise_signal(number)
        elif not self._terminated:
            self._terminated = True
            for cancel in list(self._cancels):
                cancel()


cancelled_by_termination = _AsyncBlocks().cancelled_by_termination
