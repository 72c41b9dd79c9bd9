"""Unlocking is sacred: real processes that are ended in every way, and processes that know of an address ban."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.dingtalk.errors import DingTalkError, TransientError
from airflow_provider_dingconf.sandbox import Fault, Sandbox

from . import scenarios

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

PATIENCE = 300.0
"""Seconds for anything at all on a busy machine."""


class Process:
    """A process that runs a scenario."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe

    def hear(self) -> Any:
        """Wait for what the process says."""
        assert self._pipe.poll(PATIENCE), "the process says nothing"
        return self._pipe.recv()

    def tell(self, word: object) -> None:
        self._pipe.send(word)

    def signal(self, signum: int) -> None:
        assert self._process.pid
        os.kill(self._process.pid, signum)

    def end(self) -> int | None:
        """Wait for the end, and return the exit status."""
        self._process.join(PATIENCE)
        return self._process.exitcode

    def close(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()


@pytest.fixture(scope="module")
def server() -> Any:
    """Return what starts processes: forked from one that has Airflow imported, and nothing else done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([scenarios.__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # not every Python passes it on
        forkserver.ensure_running()
    return context


@pytest.fixture
def start(server: Any, sandbox: Sandbox) -> Iterator[Callable[..., Process]]:
    """Return what starts a scenario in a process whose connection leads to the sandbox."""
    started = []

    def make(name: str, *args: Any, **extra: Any) -> Process:
        here, there = server.Pipe()
        environment = {
            name: value for name, value in os.environ.items() if name.startswith(("AIRFLOW", "TMPDIR"))
        }
        environment["AIRFLOW_CONN_DINGTALK_DEFAULT"] = sandbox.connection_json(extra=extra)
        process = server.Process(target=scenarios.run, args=(name, there, environment, *args))
        process.start()
        there.close()
        started.append(Process(process, here))
        return started[-1]

    yield make
    for process in started:
        process.close()


def wait_for(happened: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.01)


def calls(sandbox: Sandbox) -> list[str]:
    return [call.name for call in sandbox.calls_of("lock", "unlock")]


# A locked block


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_block_that_is_ended_by_a_signal_unlocks(start: Any, sandbox: Sandbox, signum: int) -> None:
    meeting = sandbox.create_conference()
    process = start("locked", meeting)
    assert process.hear() == "inside"
    assert sandbox.conference(meeting).locked
    process.signal(signum)
    assert process.end() not in {0, None}
    assert not sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock", "unlock"]


@pytest.mark.parametrize("scenario", ["locked_that_fails", "locked_that_interrupts", "cancelled"])
def test_a_block_that_ends_in_an_exception_unlocks(start: Any, sandbox: Sandbox, scenario: str) -> None:
    meeting = sandbox.create_conference()
    assert start(scenario, meeting).end() == 1
    assert not sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock", "unlock"]


def test_a_block_that_outlasts_airflows_execution_timeout_unlocks(start: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    process = start("timed_out", meeting)
    assert process.hear() == "inside"
    assert process.end() == 1
    assert not sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock", "unlock"]


def test_nested_blocks_unlock_both_meetings(start: Any, sandbox: Sandbox) -> None:
    outer, inner = sandbox.create_conference(), sandbox.create_conference()
    process = start("nested", outer, inner)
    assert process.hear() == "inside"
    process.signal(signal.SIGTERM)
    process.end()
    assert not sandbox.conference(outer).locked
    assert not sandbox.conference(inner).locked
    assert calls(sandbox) == ["lock", "lock", "unlock", "unlock"]


def test_a_handler_that_was_there_before_is_asked_and_put_back(start: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    process = start("locked_with_a_handler", meeting)
    assert process.hear() == "inside"
    process.signal(signal.SIGTERM)
    assert process.hear() == "handled"
    assert process.hear() == "handler is back"
    assert process.end() == 128 + signal.SIGTERM
    assert not sandbox.conference(meeting).locked


def test_a_block_works_in_a_thread(start: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    process = start("locked_in_a_thread", meeting)
    assert process.hear() == "inside"
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    assert not sandbox.conference(meeting).locked


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_awaited_block_that_is_interrupted_unlocks(start: Any, sandbox: Sandbox, signum: int) -> None:
    meeting = sandbox.create_conference()
    process = start("awaited", meeting)
    assert process.hear() == "inside"
    process.signal(signum)
    assert process.end() not in {0, None}
    assert not sandbox.conference(meeting).locked


def test_awaited_blocks_that_overlap_unlock_and_pass_the_signal_on(start: Any, sandbox: Sandbox) -> None:
    meetings = [sandbox.create_conference() for _ in range(3)]
    sandbox.fail(Fault(call="unlock", delay=0.5))
    process = start("awaited_with_a_handler", *meetings)
    assert process.hear() == "inside"
    process.signal(signal.SIGTERM)
    wait_for(lambda: len(sandbox.calls_of("unlock")) > 1)
    process.signal(signal.SIGTERM)
    assert process.hear() == "handled"
    assert process.hear() == "handler is back"
    assert process.end() == 0
    assert not any(sandbox.conference(meeting).locked for meeting in meetings)
    assert len(sandbox.calls_of("unlock")) == 3


def test_a_process_that_was_forked_in_an_awaited_block_can_be_ended(start: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    process = start("awaited_with_a_child", meeting)
    assert process.hear() == -signal.SIGTERM
    assert process.end() == 0
    assert calls(sandbox) == ["lock", "unlock"]


@pytest.mark.parametrize(
    "fault",
    [Fault(delay=60.0), Fault(code="systemBusy", headers={"Retry-After": "30"})],
    ids=["slow", "busy"],
)
def test_an_execution_timeout_that_comes_while_a_block_unlocks_does_not_stop_it(
    start: Any, sandbox: Sandbox, fault: Fault
) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(replace(fault, call="unlock"))
    process = start("timed_out_in_the_unlock", meeting)
    wait_for(lambda: sandbox.calls_of("unlock"))
    sandbox.heal()
    assert process.end() == 1
    assert not sandbox.conference(meeting).locked


@pytest.mark.parametrize("times", [1, 3])
def test_more_signals_do_not_stop_the_unlocking(start: Any, sandbox: Sandbox, times: int) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="unlock", delay=1.0))
    process = start("locked", meeting)
    assert process.hear() == "inside"
    process.signal(signal.SIGTERM)
    wait_for(lambda: sandbox.calls_of("unlock"))
    for _ in range(times):
        process.signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.end() not in {0, None}
    assert not sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock", "unlock"]


def test_an_unlock_that_meets_a_fault_is_retried(start: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="unlock", drop=True, times=2))
    process = start("locked", meeting)
    assert process.hear() == "inside"
    process.signal(signal.SIGTERM)
    process.end()
    assert not sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock", "unlock", "unlock", "unlock"]


# A lock whose answer is still to come


def slow_answer(sandbox: Sandbox) -> None:
    """Let locks take effect at once, and be answered much later."""
    sandbox.fail(Fault(call="lock", delay=60.0, after=True))


@pytest.mark.parametrize(
    ("scenario", "signum"),
    [
        ("locked", signal.SIGTERM),
        ("operator", signal.SIGTERM),
        *((scenario, signal.SIGINT) for scenario in ("locked", "operator", "locking", "awaited")),
    ],
)
def test_a_lock_that_is_interrupted_before_its_response_is_undone(
    start: Any, sandbox: Sandbox, scenario: str, signum: int
) -> None:
    meeting = sandbox.create_conference()
    slow_answer(sandbox)
    process = start(scenario, meeting, timeout=120)
    wait_for(lambda: sandbox.conference(meeting).locked)
    began = time.monotonic()
    process.signal(signum)
    assert process.end() not in {0, None}
    assert time.monotonic() - began < 50
    assert not sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock", "unlock"]


@pytest.mark.parametrize("scenario", ["locked", "operator"])
def test_more_signals_do_not_stop_the_undoing(start: Any, sandbox: Sandbox, scenario: str) -> None:
    meeting = sandbox.create_conference()
    slow_answer(sandbox)
    sandbox.fail(Fault(call="unlock", delay=0.7))
    process = start(scenario, meeting, timeout=120)
    wait_for(lambda: sandbox.conference(meeting).locked)
    process.signal(signal.SIGTERM)
    wait_for(lambda: sandbox.calls_of("unlock"))
    process.signal(signal.SIGTERM)
    assert process.end() not in {0, None}
    assert not sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock", "unlock"]


def test_a_lock_that_outlasts_airflows_execution_timeout_is_undone(start: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    slow_answer(sandbox)
    assert start("timed_out_in_the_call", meeting, timeout=120).end() == 1
    assert not sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock", "unlock"]


def test_a_kill_after_the_lock_leaves_the_lock_to_the_dag(start: Any, sandbox: Sandbox) -> None:
    """The task has done what it was for: unlocking is the teardown's part."""
    meeting = sandbox.create_conference()
    process = start("operator", meeting)
    assert process.hear() == "done"
    process.signal(signal.SIGTERM)
    assert sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock"]


@pytest.mark.parametrize("face", ["sync", "async"], indirect=True)
@pytest.mark.parametrize("code", ["gateway", "unreadableAnswer", "notConfirmed"])
def test_a_block_is_not_entered_and_a_lock_that_may_have_been_made_is_undone(
    sandbox: Sandbox, conn: Any, face: Any, code: str
) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="lock", code=code, after=True))
    with pytest.raises(TransientError):
        face.inside(lambda: pytest.fail("entered"), meeting, hook=face.hook(max_attempts=1))
    assert not sandbox.conference(meeting).locked
    assert calls(sandbox) == ["lock", "unlock"]


@pytest.mark.parametrize("code", ["noPermission", "paramsError", "systemBusy"])
def test_a_lock_that_was_refused_costs_no_unlock(sandbox: Sandbox, conn: Any, face: Any, code: str) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="lock", code=code))
    with pytest.raises(DingTalkError):
        face.inside(lambda: pytest.fail("entered"), meeting, hook=face.hook(max_attempts=1))
    assert calls(sandbox) == ["lock"]


# The address ban


def test_no_process_calls_during_a_ban_that_another_one_learnt_of(start: Any, sandbox: Sandbox) -> None:
    minutes = 60  # DingTalk's is of 5, which a busy machine could spend on this test
    meeting = sandbox.create_conference()
    processes = [start("lock_when_told", meeting) for _ in range(3)]
    assert {process.hear() for process in processes} == {"ready"}
    for process in processes:
        process.tell(0)
        assert process.hear() == ("locked", None)
    sandbox.fail(Fault(body={"status": 1111, "wait": minutes, "punish": "deny"}, times=1))
    sandbox.clear()
    processes[0].tell(0)
    assert processes[0].hear() == ("AddressBannedError", minutes * 60)
    late = start("lock_when_told", meeting)
    assert late.hear() == "ready"
    for later in (0, minutes * 60 - 2 * PATIENCE):
        for process in (*processes, late):
            process.tell(later)
        answers = [process.hear() for process in (*processes, late)]
        assert {name for name, _ in answers} == {"AddressBannedError"}
        assert all(0 < wait <= minutes * 60 - later for _, wait in answers)
    assert calls(sandbox) == ["lock"], "a call was made during the ban"
    for process in (processes[1], late):
        process.tell(minutes * 60)
        assert process.hear() == ("locked", None)
    assert calls(sandbox) == ["lock"] * 3
