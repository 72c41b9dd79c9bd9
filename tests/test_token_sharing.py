"""Processes that share an access token: real ones, which start at once, die, stop, and meet refusals.

They are forked, since fifty times the start of Airflow would take minutes; one at the end is wholly fresh.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from client.files import Warnings, fetched

from airflow_provider_dingconf.client.shared_files import default_directory
from airflow_provider_dingconf.dingtalk.errors import AccessTokenError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Work = Callable[[], object]

FORK = multiprocessing.get_context("fork")
PATIENCE = 300.0
"""Seconds for anything at all on a busy machine."""

TOKEN_HEADER = "x-acs-dingtalk-access-token"


class Process:
    """A process that does some work when it is told to, and says what came of it."""

    def __init__(self, work: Work, start: Any = None) -> None:
        self._ours, theirs = FORK.Pipe()
        self._process = FORK.Process(target=self._run, args=(work, start, theirs), daemon=True)
        self._process.start()
        self.pid: int = self._process.pid or 0

    def _run(self, work: Work, start: Any, pipe: Any) -> None:
        if start is not None:
            start.wait(PATIENCE)
        try:
            pipe.send(work())
        except Exception as error:
            pipe.send(error)

    def result(self, seconds: float = PATIENCE) -> Any:
        """Return what the work returned, or the exception it raised."""
        assert self._ours.poll(seconds), "the process did not come to an end"
        found = self._ours.recv()
        self._process.join(60)
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.join(60)


@pytest.fixture
def start(conn: Any) -> Iterator[Callable[..., Process]]:
    """Return what starts a process, which ends with the test."""
    started: list[Process] = []
    # So that Airflow imports what it needs for a connection once, and not in each process.
    assert DingTalkConferenceHook().settings.app

    def start(work: Work, gate: Any = None) -> Process:
        started.append(Process(work, gate))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def at_once(start: Any) -> Callable[..., list[Any]]:
    """Return what lets processes do some work at the same time, and returns their results."""

    def at_once(count: int, work: Work) -> list[Any]:
        gate = FORK.Event()
        processes = [start(work, gate) for _ in range(count)]
        gate.set()
        return [process.result() for process in processes]

    return at_once


def lock(**options: Any) -> object:
    """Lock a meeting in a hook of its own."""
    hook = DingTalkConferenceHook(**options)
    try:
        return hook.lock_conference("sandbox-open")["success"]
    finally:
        hook.close()


def lock_at_another_time(skew: float) -> object:
    """Lock a meeting in a process that ends then, and whose clock alone is ahead by ``skew`` seconds."""
    tell = time.time
    time.time = lambda: tell() + skew
    return lock()


def tokens_used(sandbox: Sandbox) -> set[str | None]:
    return {call.header(TOKEN_HEADER) for call in sandbox.calls_of("lock")}


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)


def test_fifty_processes_that_start_without_a_token_fetch_one(
    at_once: Any, conn: Any, sandbox: Sandbox
) -> None:
    conn("third_party")  # it gets another token for each call
    assert at_once(50, lock) == [True] * 50
    assert fetched(sandbox) == 1
    assert len(sandbox.calls_of("lock")) == 50
    assert len(tokens_used(sandbox)) == 1


def test_processes_whose_token_is_about_to_expire_fetch_one_more(
    at_once: Any, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox(token_lifetime=40) as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", sandbox.connection_json("third_party"))
        sandbox.fail(Fault(call="token", times=1, body={"accessToken": sandbox.issue_token(), "expireIn": 1}))
        lock()
        time.sleep(1)
        sandbox.clear()
        assert at_once(20, lock) == [True] * 20
        assert fetched(sandbox) == 1
        assert len(sandbox.calls_of("lock")) == 20, "none of them tried the old one"


@pytest.mark.parametrize("jump", [-86_400, 3_600, 7_100, 10**7], ids="{:+}".format)
def test_processes_on_a_host_whose_clock_has_jumped_fetch_one_more_at_most(
    at_once: Any, conn: Any, sandbox: Sandbox, jump: float
) -> None:
    conn("third_party")
    lock()
    (file,) = default_directory().glob("*.token")
    written = file.stat().st_mtime - jump  # the jump is one of the file system's clock, too
    os.utime(file, (written, written))
    assert at_once(10, lambda: lock_at_another_time(jump)) == [True] * 10
    assert fetched(sandbox) == (1 if jump == 3_600 else 2)
    assert len(sandbox.calls_of("lock")) == 11


@pytest.mark.parametrize("skew", [-86_400, 10_800], ids="{:+}".format)
def test_processes_whose_clocks_differ_use_one_token(
    start: Any, conn: Any, sandbox: Sandbox, skew: float
) -> None:
    conn("third_party")
    for number in range(8):
        assert start(lambda own=skew * (number % 2): lock_at_another_time(own)).result() is True
    assert fetched(sandbox) == 1


def test_processes_whose_clocks_differ_share_an_address_ban(start: Any, conn: Any, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="token", code="addressBanned"))
    for skew in (0, 3_600, -3_600):
        error = start(lambda own=skew: lock_at_another_time(own)).result()
        assert getattr(error, "code", None) == "addressBanned"
    assert len(sandbox.calls) == 1


@pytest.mark.parametrize("kind", ["internal", "third_party"])
def test_processes_whose_token_is_refused_fetch_one_more(
    at_once: Any, conn: Any, sandbox: Sandbox, kind: str
) -> None:
    conn(kind)
    lock()  # the processes are born with this token in memory
    sandbox.revoke_tokens()
    sandbox.clear()
    assert at_once(20, lock) == [True] * 20
    assert fetched(sandbox) == 1
    assert len(tokens_used(sandbox)) == 2, "the refused one, and the one that took its place"


def test_processes_that_are_refused_whatever_their_token_fetch_one_more(
    at_once: Any, conn: Any, sandbox: Sandbox
) -> None:
    lock()
    sandbox.fail(Fault(call="lock", code="InvalidAuthentication"))
    sandbox.clear()
    assert {type(result) for result in at_once(10, lock)} == {AccessTokenError}
    assert fetched(sandbox) == 1, "DingTalk gives the same token again while it is valid"
    assert len(sandbox.calls_of("lock")) == 20


def test_a_process_uses_the_token_that_is_newer_than_its_refused_one(
    start: Any, conn: Any, sandbox: Sandbox
) -> None:
    conn("third_party")
    lock()
    gate = FORK.Event()
    late = start(lock, gate)
    sandbox.revoke_tokens()
    assert start(lock).result() is True
    assert fetched(sandbox) == 2
    gate.set()
    assert late.result() is True
    assert fetched(sandbox) == 2


def test_the_processes_share_an_address_ban(at_once: Any, conn: Any, sandbox: Sandbox, start: Any) -> None:
    sandbox.fail(Fault(call="token", code="addressBanned"))
    assert getattr(start(lock).result(), "code", None) == "addressBanned"
    assert {getattr(result, "code", None) for result in at_once(5, lock)} == {"addressBanned"}
    assert len(sandbox.calls) == 1


# Processes that come to grief


def fetching(start: Any, sandbox: Sandbox, delay: float) -> Process:
    """Return a process that is fetching a token, and holds the right to."""
    sandbox.fail(Fault(call="token", delay=delay, times=1))
    process: Process = start(lock)
    wait_until(lambda: fetched(sandbox) == 1)
    return process


def test_a_process_killed_while_it_fetches_a_token_does_not_stop_the_others(
    at_once: Any, start: Any, conn: Any, sandbox: Sandbox
) -> None:
    victim = fetching(start, sandbox, delay=30)
    os.kill(victim.pid, signal.SIGKILL)
    assert at_once(5, lock) == [True] * 5
    assert fetched(sandbox) == 2, "its own, and one for all others"


def test_a_process_killed_while_others_wait_for_its_token_lets_them_go_on(
    start: Any, conn: Any, sandbox: Sandbox
) -> None:
    victim = fetching(start, sandbox, delay=30)
    waiting = [start(lock) for _ in range(3)]
    time.sleep(0.5)
    assert fetched(sandbox) == 1, "they wait"
    os.kill(victim.pid, signal.SIGKILL)
    assert [process.result() for process in waiting] == [True] * 3
    assert fetched(sandbox) == 2


def test_a_process_stopped_while_it_fetches_a_token_holds_the_others_up_for_a_while_only(
    start: Any, conn: Any, sandbox: Sandbox
) -> None:
    stopped = fetching(start, sandbox, delay=0.5)
    os.kill(stopped.pid, signal.SIGSTOP)
    assert start(lambda: lock(max_seconds=6)).result() is True
    assert start(lock).result() is True
    assert fetched(sandbox) == 2, "who came later found a token, and waited for nobody"
    os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.result() is True


def test_a_process_forked_while_a_thread_fetches_a_token_is_not_held_up_for_ever(
    start: Any, conn: Any, sandbox: Sandbox
) -> None:
    from threading import Thread

    sandbox.fail(Fault(call="token", delay=1, times=1))
    thread = Thread(target=lock)
    thread.start()
    wait_until(lambda: fetched(sandbox) == 1)
    assert start(lambda: lock(max_seconds=6)).result() is True
    thread.join()


def test_a_forked_process_opens_its_own_connections(
    start: Any, raw_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = raw_server(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"success":true}')
    static = {
        "conn_type": "dingtalk",
        "host": server.url,
        "extra": {"access_token": "a-static-token"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(static))
    hook = DingTalkConferenceHook()

    def lock_again() -> bool:
        return hook.lock_conference("meeting")["success"]

    assert lock_again()
    assert start(lock_again).result() is True
    assert server.connections == 2
    assert lock_again()
    assert server.connections == 2
    hook.close()


def test_a_forked_process_locks_many_as_its_parent_did(start: Any, conn: Any, sandbox: Sandbox) -> None:
    hook = DingTalkConferenceHook()

    def lock_many() -> list[bool]:
        return [one.success for one in hook.lock_conferences(["sandbox-open"])]

    assert lock_many() == [True]
    assert start(lock_many).result(60) == [True]


def lock_on_a_full_disk() -> tuple[object, object, int]:
    """Lock twice in a process that can write nothing more into files; its output goes nowhere."""
    warnings = Warnings()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in {1, 2, sys.stdout.fileno(), sys.stderr.fileno()}:
        os.dup2(nowhere, descriptor)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return lock(), lock(), warnings.count


def test_a_full_disk_costs_the_sharing_and_one_warning(start: Any, conn: Any, sandbox: Sandbox) -> None:
    conn("third_party")
    for count in (1, 2):
        assert start(lock_on_a_full_disk).result() == (True, True, 1)
        assert fetched(sandbox) == count
    assert {file.suffix for file in default_directory().iterdir()} == {".lock"}, (
        "nothing half-written is left"
    )
    assert start(lock).result() is True
    (file,) = default_directory().glob("*.token")
    content = file.read_bytes()
    sandbox.revoke_tokens()
    assert start(lock_on_a_full_disk).result() == (True, True, 1)
    assert file.read_bytes() == content, "the old file is whole"


# Processes that start from nothing

FRESH = """
import json
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
print(json.dumps(DingTalkConferenceHook().lock_conference("sandbox-open")))
"""


def test_a_fresh_interpreter_shares_the_token_too(conn: Any, sandbox: Sandbox) -> None:
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert json.loads(fresh.stdout.splitlines()[-1])["success"]
    assert lock() is True
    assert fetched(sandbox) == 1
