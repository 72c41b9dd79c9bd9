"""What the processes do that the tests of interruptions start: each a function of the pipe to the test.

They live in a module that imports no pytest, since the processes import it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import timeout
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.dingtalk.errors import DingTalkError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.operators import LockConferenceOperator

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

FOREVER = 120


def run(name: str, pipe: Connection, environment: dict[str, str], *args: Any) -> None:
    """Run one scenario, the target of a process."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    SCENARIOS[name](pipe, *args)


def locked(pipe: Connection, meeting: str) -> None:
    with DingTalkConferenceHook().locked(meeting):
        pipe.send("inside")
        time.sleep(FOREVER)


def locked_that_fails(pipe: Connection, meeting: str) -> None:
    with DingTalkConferenceHook().locked(meeting):
        raise ZeroDivisionError


def locked_that_interrupts(pipe: Connection, meeting: str) -> None:
    with DingTalkConferenceHook().locked(meeting):
        raise KeyboardInterrupt


def locked_with_a_handler(pipe: Connection, meeting: str) -> None:
    signal.signal(signal.SIGTERM, lambda signum, frame: pipe.send("handled"))
    try:
        locked(pipe, meeting)
    finally:
        pipe.send("handler is back" if signal.getsignal(signal.SIGTERM).__name__ == "<lambda>" else "lost")


def locked_in_a_thread(pipe: Connection, meeting: str) -> None:
    """Work in a thread that the main thread ends, as it must: Python delivers it no signal."""
    over = threading.Event()

    def work() -> None:
        with DingTalkConferenceHook().locked(meeting):
            pipe.send("inside")
            over.wait()

    def end(signum: int, frame: Any) -> None:
        over.set()

    signal.signal(signal.SIGTERM, end)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def nested(pipe: Connection, outer: str, inner: str) -> None:
    with DingTalkConferenceHook().locked(outer):
        locked(pipe, inner)


def timed_out(pipe: Connection, meeting: str) -> None:
    """Work under Airflow's execution timeout."""
    DingTalkConferenceHook().test_connection()  # so that all that is slow at first is done
    with timeout(2), DingTalkConferenceHook().locked(meeting):
        pipe.send("inside")
        time.sleep(FOREVER)


def timed_out_in_the_call(pipe: Connection, meeting: str) -> None:
    DingTalkConferenceHook().test_connection()
    with timeout(2):
        DingTalkConferenceHook().lock_conference(meeting)


def locking(pipe: Connection, meeting: str) -> None:
    """Lock without a block, as an operator does."""
    DingTalkConferenceHook().lock_conference(meeting)


def awaited(pipe: Connection, meeting: str) -> None:
    async def work() -> None:
        async with DingTalkConferenceHook().alocked(meeting):
            pipe.send("inside")
            await asyncio.sleep(FOREVER)

    asyncio.run(work())


def awaited_with_a_handler(pipe: Connection, *meetings: str) -> None:
    """Blocks that do not end in the order in which they began."""

    def handle(signum: int, frame: Any) -> None:
        pipe.send("handled")

    inside: list[str] = []

    async def block(meeting: str, leave: asyncio.Event) -> None:
        async with DingTalkConferenceHook().alocked(meeting):
            inside.append(meeting)
            await leave.wait()

    async def work() -> None:
        leave = [asyncio.Event() for _ in meetings]
        first, *others = map(asyncio.ensure_future, map(block, meetings, leave))
        while len(inside) < len(meetings):
            await asyncio.sleep(0.01)
        leave[0].set()
        await first
        pipe.send("inside")
        await asyncio.gather(*others, return_exceptions=True)

    signal.signal(signal.SIGTERM, handle)
    asyncio.run(work())
    pipe.send("handler is back" if signal.getsignal(signal.SIGTERM) is handle else "no handler")


def awaited_with_a_child(pipe: Connection, meeting: str) -> None:
    async def work() -> None:
        async with DingTalkConferenceHook().alocked(meeting):
            forking = multiprocessing.get_context("fork")
            here, there = forking.Pipe()

            def live() -> None:
                there.send("up")  # a signal that comes while Python forks is lost
                time.sleep(FOREVER)

            child = forking.Process(target=live)
            child.start()
            here.recv()
            child.terminate()
            child.join()
            pipe.send(child.exitcode)

    asyncio.run(work())


def timed_out_in_the_unlock(pipe: Connection, meeting: str) -> None:
    DingTalkConferenceHook().test_connection()
    with timeout(3), DingTalkConferenceHook().locked(meeting):
        pass


def cancelled(pipe: Connection, meeting: str) -> None:
    async def work(inside: asyncio.Event) -> None:
        async with DingTalkConferenceHook().alocked(meeting):
            inside.set()
            await asyncio.sleep(FOREVER)

    async def main() -> None:
        inside = asyncio.Event()
        task = asyncio.ensure_future(work(inside))
        await inside.wait()
        task.cancel()
        await task

    asyncio.run(main())


def killer_of(task: Any) -> Any:
    """Return what handles SIGTERM for a task."""

    def handle(signum: int, frame: Any) -> None:
        task.on_kill()
        if not AIRFLOW_V_3_0_PLUS:
            from airflow.exceptions import AirflowTaskTerminated

            raise AirflowTaskTerminated("Task received SIGTERM signal")

    return handle


def operator(pipe: Connection, meeting: str) -> None:
    """Run an operator as Airflow does: SIGTERM calls ``on_kill``, and Airflow 2 raises an exception then."""
    task = LockConferenceOperator(task_id="lock", conference_id=meeting)

    class Instance:
        def xcom_push(self, key: str, value: Any) -> None:
            pass

    signal.signal(signal.SIGTERM, killer_of(task))
    task.execute({"ti": Instance()})
    pipe.send("done")
    time.sleep(FOREVER)


def lock_when_told(pipe: Connection, meeting: str) -> None:
    """Lock each time the test says so, by a clock that goes fast by so many seconds; say what came of it."""
    hook, tell = DingTalkConferenceHook(max_attempts=1), time.time
    pipe.send("ready")
    while True:
        fast = pipe.recv()
        time.time = lambda fast=fast: tell() + fast
        try:
            hook.lock_conference(meeting)
            pipe.send(("locked", None))
        except DingTalkError as error:
            pipe.send((type(error).__name__, error.retry_after))


SCENARIOS: dict[str, Callable[..., None]] = {
    scenario.__name__: scenario
    for scenario in (
        locked,
        locked_that_fails,
        locked_that_interrupts,
        locked_with_a_handler,
        locked_in_a_thread,
        nested,
        timed_out,
        timed_out_in_the_call,
        locking,
        awaited,
        awaited_with_a_handler,
        awaited_with_a_child,
        timed_out_in_the_unlock,
        cancelled,
        operator,
        lock_when_told,
    )
}
