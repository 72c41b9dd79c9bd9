"""What the processes of ``test_interruptions`` do: each scenario is a function of the pipe to the test.

They are in a module that imports no pytest, since the processes import it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import timeout
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.dingtalk.errors import DingTalkError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.operators import LockConferenceOperator

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

FOREVER = 120


def stay(seconds: float = FOREVER) -> None:
    """Sleep in short steps: a signal between Python's last look for one and the sleep does not end the sleep."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)


def run(name: str, pipe: Connection, environment: dict[str, str], *args: Any) -> None:
    """Run one scenario, the target of a process."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    globals()[name](pipe, *args)


def locked(pipe: Connection, *meetings: str) -> None:
    """Work inside a block for each meeting, one in the other."""
    with ExitStack() as blocks:
        for meeting in meetings:
            blocks.enter_context(DingTalkConferenceHook().locked(meeting))
        pipe.send("inside")
        stay()


def locked_in_a_thread(pipe: Connection, meeting: str) -> None:
    """Work in a thread that the main thread has to end: Python handles no signal in a thread."""
    over = threading.Event()

    def work() -> None:
        with DingTalkConferenceHook().locked(meeting):
            pipe.send("inside")
            over.wait()

    signal.signal(signal.SIGTERM, lambda signum, frame: over.set())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    raise SystemExit(128 + signal.SIGTERM)


def locking(pipe: Connection, meeting: str) -> None:
    """Lock without a block."""
    DingTalkConferenceHook().lock_conference(meeting)


def timed_out(pipe: Connection, meeting: str, where: str) -> None:
    """Reach Airflow's execution timeout in the call that locks, inside the block, or while it unlocks."""
    DingTalkConferenceHook().test_connection()  # what takes long the first time only
    with timeout(2):
        if where == "call":
            DingTalkConferenceHook().lock_conference(meeting)
        with DingTalkConferenceHook().locked(meeting):
            pipe.send("inside")
            stay(FOREVER if where == "block" else 0)


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


def end_of_a_child() -> int | None:
    """Fork a process, end it, and return its exit code."""
    forking = multiprocessing.get_context("fork")
    here, there = forking.Pipe()

    def live() -> None:
        there.send("up")  # a signal that comes while Python forks is lost
        stay()

    child = forking.Process(target=live)
    child.start()
    here.recv()
    child.terminate()
    child.join(10)
    return child.exitcode or child.kill()


def locked_with_a_child(pipe: Connection, meeting: str) -> None:
    with DingTalkConferenceHook().locked(meeting):
        pipe.send(end_of_a_child())


def awaited_with_a_child(pipe: Connection, meeting: str) -> None:
    async def work() -> None:
        async with DingTalkConferenceHook().alocked(meeting):
            pipe.send(end_of_a_child())

    asyncio.run(work())


def killer_of(task: Any) -> Any:
    """Return what handles SIGTERM for a task: it calls ``on_kill``, and Airflow 2 raises an exception then."""

    def handle(signum: int, frame: Any) -> None:
        task.on_kill()
        if not AIRFLOW_V_3_0_PLUS:
            from airflow.exceptions import AirflowTaskTerminated

            raise AirflowTaskTerminated("Task received SIGTERM signal")

    return handle


def operator(pipe: Connection, meeting: str) -> None:
    """Run an operator as Airflow does."""
    task = LockConferenceOperator(task_id="lock", conference_id=meeting)

    class Instance:
        def xcom_push(self, key: str, value: Any) -> None:
            pass

    signal.signal(signal.SIGTERM, killer_of(task))
    task.execute({"ti": Instance()})
    pipe.send("done")
    stay()


def lock_on_request(pipe: Connection, meeting: str) -> None:
    """Lock each time that the test sends how many seconds have passed; send the result."""
    hook, clock = DingTalkConferenceHook(max_attempts=1), time.monotonic
    pipe.send("ready")
    while True:
        passed = pipe.recv()
        time.monotonic = lambda passed=passed: clock() + passed
        try:
            hook.lock_conference(meeting)
            pipe.send(("locked", None))
        except DingTalkError as error:
            pipe.send((type(error).__name__, error.retry_after))
