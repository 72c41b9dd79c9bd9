"""No interruption leaves a meeting locked: processes that are ended in every way. And an address ban for all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.dingtalk.errors import TransientError
from airflow_provider_dingconf.sandbox import Fault, Sandbox

from . import scenarios
from .rows import PATIENCE, wait_until

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

SLOW_RESPONSE = Fault(call="lock", delay=60.0, after=True)
"""The lock takes effect at once, and its response comes much later."""


class Process:
    """A process that runs a scenario."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe
        self.send = pipe.send

    def receive(self) -> Any:
        """Wait for what the process sends."""
        assert self._pipe.poll(PATIENCE), "the process sends nothing"
        return self._pipe.recv()

    def signal(self, signum: int) -> None:
        assert self._process.pid
        os.kill(self._process.pid, signum)

    def end(self) -> int | None:
        """Wait for the end, and return the exit status."""
        self._process.join(PATIENCE)
        return self._process.exitcode

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()


@pytest.fixture(scope="module")
def server() -> Any:
    """Return what starts processes: forked from one that has imported Airflow, and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([scenarios.__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # not every Python passes it on
        forkserver.ensure_running()
    return context


@pytest.fixture
def start(server: Any, sandbox: Sandbox) -> Iterator[Callable[..., Process]]:
    """Return what starts a scenario in a process whose connection leads to the sandbox."""
    with ExitStack() as processes:

        def start(name: str, *args: Any) -> Process:
            here, there = server.Pipe()
            environment = {
                name: value for name, value in os.environ.items() if name.startswith(("AIRFLOW", "TMPDIR"))
            }
            environment["AIRFLOW_CONN_DINGTALK_DEFAULT"] = sandbox.connection_json(extra={"timeout": 120})
            process = server.Process(target=scenarios.run, args=(name, there, environment, *args))
            process.start()
            there.close()
            started = Process(process, here)
            processes.callback(started.close)
            return started

        yield start


@pytest.fixture
def meeting(sandbox: Sandbox) -> str:
    return sandbox.create_conference()


def check_unlocked(sandbox: Sandbox, unlocks: int = 1) -> None:
    """Check that each meeting was locked once, and is unlocked."""
    made = [call.name for call in sandbox.calls_of("lock", "unlock")]
    locks = len({call.conference_id for call in sandbox.calls_of("lock")})
    assert made == ["lock"] * locks + ["unlock"] * (locks - 1 + unlocks)
    assert not any(conference.locked for conference in sandbox.conferences.values())


# A locked block


def check_unlocks_on_signal(start: Any, sandbox: Sandbox, scenario: str, signum: int, count: int = 1) -> None:
    meetings = [sandbox.create_conference() for _ in range(count)]
    process = start(scenario, *meetings)
    assert process.receive() == "inside"
    assert all(sandbox.conference(meeting).locked for meeting in meetings)
    process.signal(signum)
    assert process.end() not in {0, None}
    check_unlocked(sandbox)


@pytest.mark.parametrize(
    ("scenario", "signum", "count"),
    [
        ("locked", signal.SIGTERM, 1),
        ("locked", signal.SIGINT, 1),
        ("locked", signal.SIGTERM, 2),
        ("locked_in_a_thread", signal.SIGTERM, 1),
    ],
    ids=["SIGTERM", "SIGINT", "SIGTERM in nested blocks", "SIGTERM while a thread is in the block"],
)
def test_a_block_that_is_ended_by_a_signal_unlocks(
    start: Any, sandbox: Sandbox, scenario: str, signum: int, count: int
) -> None:
    check_unlocks_on_signal(start, sandbox, scenario, signum, count)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_awaited_block_that_is_interrupted_unlocks(start: Any, sandbox: Sandbox, signum: int) -> None:
    check_unlocks_on_signal(start, sandbox, "awaited", signum)


def test_awaited_blocks_that_overlap_unlock_and_pass_the_signal_on(start: Any, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="unlock", delay=0.5))
    process = start("awaited_with_a_handler", *(sandbox.create_conference() for _ in range(3)))
    assert process.receive() == "inside"
    process.signal(signal.SIGTERM)
    wait_until(lambda: len(sandbox.calls_of("unlock")) > 1)
    process.signal(signal.SIGTERM)
    assert process.receive() == "handled"
    assert process.receive() == "handler is back"
    assert process.end() == 0
    check_unlocked(sandbox)


@pytest.mark.parametrize("scenario", ["locked_with_a_child", "awaited_with_a_child"])
def test_a_process_that_was_forked_in_a_block_can_be_ended(
    start: Any, sandbox: Sandbox, meeting: str, scenario: str
) -> None:
    process = start(scenario, meeting)
    assert process.receive() == -signal.SIGTERM
    assert process.end() == 0
    check_unlocked(sandbox)


def test_more_signals_do_not_stop_the_unlocking(start: Any, sandbox: Sandbox, meeting: str) -> None:
    sandbox.fail(Fault(call="unlock", delay=1.0))
    process = start("locked", meeting)
    assert process.receive() == "inside"
    process.signal(signal.SIGTERM)
    wait_until(lambda: sandbox.calls_of("unlock"))
    for _ in range(3):
        process.signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.end() not in {0, None}
    check_unlocked(sandbox)


def test_an_unlock_that_meets_a_fault_is_retried(start: Any, sandbox: Sandbox, meeting: str) -> None:
    sandbox.fail(Fault(call="unlock", drop=True, times=2))
    process = start("locked", meeting)
    assert process.receive() == "inside"
    process.signal(signal.SIGTERM)
    process.end()
    check_unlocked(sandbox, unlocks=3)


# Airflow's execution timeout


def test_a_block_that_outlasts_airflows_execution_timeout_unlocks(
    start: Any, sandbox: Sandbox, meeting: str
) -> None:
    process = start("timed_out", meeting, "block")
    assert process.receive() == "inside"
    assert process.end() == 1
    check_unlocked(sandbox)


def test_a_lock_that_outlasts_airflows_execution_timeout_is_undone(
    start: Any, sandbox: Sandbox, meeting: str
) -> None:
    sandbox.fail(SLOW_RESPONSE)
    assert start("timed_out", meeting, "call").end() == 1
    check_unlocked(sandbox)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(call="unlock", delay=60.0),
        Fault(call="unlock", code="systemBusy", headers={"Retry-After": "30"}),
    ],
    ids=["slow", "busy"],
)
def test_an_execution_timeout_that_comes_while_a_block_unlocks_does_not_stop_it(
    start: Any, sandbox: Sandbox, meeting: str, fault: Fault
) -> None:
    sandbox.fail(fault)
    process = start("timed_out", meeting, "unlock")
    wait_until(lambda: sandbox.calls_of("unlock"))
    sandbox.heal()
    assert process.end() == 1
    assert not sandbox.conference(meeting).locked


# A lock whose response is still to come


@pytest.mark.parametrize(
    ("scenario", "signum"),
    [
        ("locked", signal.SIGTERM),
        ("operator", signal.SIGTERM),
        *((scenario, signal.SIGINT) for scenario in ("locked", "operator", "locking", "awaited")),
    ],
)
def test_a_lock_that_is_interrupted_before_its_response_is_undone(
    start: Any, sandbox: Sandbox, meeting: str, scenario: str, signum: int
) -> None:
    sandbox.fail(SLOW_RESPONSE)
    process = start(scenario, meeting)
    wait_until(lambda: sandbox.conference(meeting).locked)
    began = time.monotonic()
    process.signal(signum)
    assert process.end() not in {0, None}
    assert time.monotonic() - began < 50
    check_unlocked(sandbox)


@pytest.mark.parametrize("scenario", ["locked", "operator"])
def test_more_signals_do_not_stop_the_undoing(
    start: Any, sandbox: Sandbox, meeting: str, scenario: str
) -> None:
    sandbox.fail(SLOW_RESPONSE)
    sandbox.fail(Fault(call="unlock", delay=0.7))
    process = start(scenario, meeting)
    wait_until(lambda: sandbox.conference(meeting).locked)
    process.signal(signal.SIGTERM)
    wait_until(lambda: sandbox.calls_of("unlock"))
    process.signal(signal.SIGTERM)
    assert process.end() not in {0, None}
    check_unlocked(sandbox)


def test_a_kill_after_the_lock_leaves_the_lock_to_the_dag(start: Any, sandbox: Sandbox, meeting: str) -> None:
    """The task has done its work: unlocking is the teardown's part."""
    process = start("operator", meeting)
    assert process.receive() == "done"
    process.signal(signal.SIGTERM)
    assert sandbox.conference(meeting).locked
    assert [call.name for call in sandbox.calls] == ["token", "lock"]


@pytest.mark.parametrize("face", ["sync", "async"], indirect=True)
@pytest.mark.parametrize("code", ["gateway", "unreadableAnswer", "notConfirmed"])
def test_a_block_is_not_entered_and_a_lock_that_may_have_been_made_is_undone(
    sandbox: Sandbox, conn: Any, face: Any, meeting: str, code: str
) -> None:
    sandbox.fail(Fault(call="lock", code=code, after=True))
    with pytest.raises(TransientError):
        face.inside(lambda: pytest.fail("entered"), meeting, hook=face.hook(max_attempts=1))
    check_unlocked(sandbox)


# The address ban


def test_no_process_calls_during_a_ban_that_another_one_learnt_of(
    start: Any, sandbox: Sandbox, meeting: str
) -> None:
    seconds = 3600  # DingTalk's is of 5 minutes, which a busy machine could spend on this test
    processes = [start("lock_on_request", meeting) for _ in range(3)]
    assert {process.receive() for process in processes} == {"ready"}
    for process in processes:
        process.send(0)
        assert process.receive() == ("locked", None)
    sandbox.fail(Fault(body={"status": 1111, "wait": seconds // 60, "punish": "deny"}, times=1))
    sandbox.clear()
    processes[0].send(0)
    assert processes[0].receive() == ("AddressBannedError", seconds)
    processes.append(start("lock_on_request", meeting))
    assert processes[-1].receive() == "ready"
    for later in (0, seconds - 3 * PATIENCE):
        for process in processes:
            process.send(later)
        results = [process.receive() for process in processes]
        assert {name for name, _ in results} == {"AddressBannedError"}
        assert all(0 < wait <= seconds - later for _, wait in results)
    assert len(sandbox.calls) == 1, "a call was made during the ban"
    for process in processes[1::2]:
        process.send(seconds)
        assert process.receive() == ("locked", None)
