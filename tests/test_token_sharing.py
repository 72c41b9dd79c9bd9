"""Processes that share an access token: they start at once, die, stop, and have their token refused.

They are forked, since fifty starts of Airflow would take minutes; one at the end is a fresh interpreter.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from client.files import Warnings, fetched
from waiting import wait_until

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.bulk import limiter_of
from airflow_provider_dingconf.client.shared_files import default_directory
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Work = Callable[[], object]

FORK = multiprocessing.get_context("fork")
PATIENCE = 300.0
"""Seconds for anything at all on a busy machine."""


class Process:
    """A process that does some work, once a gate is open.

    :param work: returns the result, or raises.
    """

    def __init__(self, work: Work, gate: Any = None) -> None:
        self._ours, theirs = FORK.Pipe()

        def run() -> None:
            if gate is not None:
                gate.wait(PATIENCE)
            try:
                theirs.send(work())
            except Exception as error:
                theirs.send(error)

        self._process = FORK.Process(target=run, daemon=True)
        self._process.start()

    def signal(self, number: int) -> None:
        os.kill(self._process.pid or 0, number)

    def result(self) -> Any:
        """Return what the work returned, or the exception it raised."""
        assert self._ours.poll(PATIENCE), "the process did not come to an end"
        found = self._ours.recv()
        self._process.join(60)
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.join(60)


@pytest.fixture
def start(conn: Any) -> Iterator[Callable[..., Process]]:
    """Return what starts a process, which ends with the test."""
    # Airflow imports what it needs for a connection once, and not in each process.
    assert DingTalkConferenceHook().settings.app
    with ExitStack() as processes:

        def start(work: Work, gate: Any = None) -> Process:
            process = Process(work, gate)
            processes.callback(process.end)
            return process

        yield start


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
    """Lock a meeting by a new hook."""
    with closing(DingTalkConferenceHook(**options)) as hook:
        return hook.lock_conference("sandbox-open")["success"]


def lock_at_another_time(skew: float, *, on_another_host: bool = False) -> object:
    """Lock a meeting in a process that ends then, and whose clock is ahead by ``skew`` seconds.

    :param on_another_host: whether its monotonic clock is ahead, too.
    """
    clock, monotonic = time.time, time.monotonic
    time.time = lambda: clock() + skew
    if on_another_host:
        time.monotonic = lambda: monotonic() + skew
    return lock()


def code_of(result: Any) -> str | None:
    return getattr(result, "code", None)


def tokens_used(sandbox: Sandbox) -> set[str | None]:
    return {call.header("x-acs-dingtalk-access-token") for call in sandbox.calls_of("lock")}


# One token


def test_fifty_processes_that_start_without_a_token_fetch_one(
    at_once: Any, conn: Any, sandbox: Sandbox
) -> None:
    conn("third_party")  # each token call of it gives another token
    assert at_once(50, lock) == [True] * 50
    assert fetched(sandbox) == 1
    assert len(sandbox.calls_of("lock")) == 50
    assert len(tokens_used(sandbox)) == 1


def test_processes_whose_token_is_about_to_expire_fetch_one_more(
    at_once: Any, conn: Any, sandbox: Sandbox
) -> None:
    conn("third_party")
    short = {"accessToken": sandbox.issue_token(), "expireIn": 0.2}
    sandbox.fail(Fault(call="token", times=1, body=short))
    lock()
    time.sleep(0.2)
    sandbox.clear()
    assert at_once(20, lock) == [True] * 20
    assert fetched(sandbox) == 1
    assert len(sandbox.calls_of("lock")) == 20, "none of them tried the old one"


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
    assert len(tokens_used(sandbox)) == 2, "the refused one, and its successor"


def test_processes_whose_tokens_are_all_refused_fetch_one_more(at_once: Any, sandbox: Sandbox) -> None:
    lock()
    sandbox.fail(Fault(call="lock", code="InvalidAuthentication"))
    sandbox.clear()
    assert {code_of(result) for result in at_once(10, lock)} == {"InvalidAuthentication"}
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


def test_a_fresh_interpreter_shares_the_token_too(conn: Any, sandbox: Sandbox) -> None:
    program = (
        "from airflow_provider_dingconf.hooks import DingTalkConferenceHook\n"
        "assert DingTalkConferenceHook().lock_conference('sandbox-open')['success']"
    )
    subprocess.run([sys.executable, "-c", program], timeout=PATIENCE, check=True)
    assert lock() is True
    assert fetched(sandbox) == 1


# Clocks


@pytest.mark.parametrize("new", [True, False], ids=["new", "with the token in memory"])
@pytest.mark.parametrize("jump", [-86_400, 3_600, 7_100, 10**7], ids="{:+}".format)
def test_processes_on_a_host_whose_clock_has_jumped_fetch_one_more_at_most(
    at_once: Any, conn: Any, sandbox: Sandbox, jump: float, new: bool
) -> None:
    conn("third_party")
    lock()
    if new:
        token_cache.forget()
    (file,) = default_directory().glob("*.token")
    written = file.stat().st_mtime - jump  # the clock of the file system jumps, too
    os.utime(file, (written, written))
    assert at_once(10, lambda: lock_at_another_time(jump)) == [True] * 10
    assert fetched(sandbox) == (2 if new and jump != 3_600 else 1)
    assert len(sandbox.calls_of("lock")) == 11


@pytest.mark.parametrize("skew", [-86_400, 10_800], ids="{:+}".format)
def test_processes_whose_clocks_differ_use_one_token(
    start: Any, conn: Any, sandbox: Sandbox, skew: float
) -> None:
    conn("third_party")
    for number in range(8):
        own = partial(lock_at_another_time, skew * (number % 2), on_another_host=True)
        assert start(own).result() is True
    assert fetched(sandbox) == 1


def test_the_processes_share_an_address_ban(at_once: Any, start: Any, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="token", code="addressBanned"))
    assert code_of(start(lock).result()) == "addressBanned"
    assert {code_of(result) for result in at_once(5, lock)} == {"addressBanned"}
    for skew in (3_600, -3_600):
        result = start(partial(lock_at_another_time, skew, on_another_host=True)).result()
        assert code_of(result) == "addressBanned", "also those whose clocks differ"
    assert len(sandbox.calls) == 1


# Processes that die or stop


def fetching(start: Any, sandbox: Sandbox, delay: float) -> Process:
    """Return a process that is fetching a token, and holds the right to."""
    sandbox.fail(Fault(call="token", delay=delay, times=1))
    process: Process = start(lock)
    wait_until(lambda: fetched(sandbox) == 1, PATIENCE)
    return process


def test_a_process_killed_while_it_fetches_a_token_does_not_stop_the_others(
    at_once: Any, start: Any, sandbox: Sandbox
) -> None:
    victim = fetching(start, sandbox, delay=30)
    waiting = [start(lock) for _ in range(3)]
    time.sleep(0.5)
    assert fetched(sandbox) == 1, "they wait"
    victim.signal(signal.SIGKILL)
    assert at_once(5, lock) == [True] * 5
    assert [process.result() for process in waiting] == [True] * 3
    assert fetched(sandbox) == 2, "the victim's, and one for all others"


def test_a_process_stopped_while_it_fetches_a_token_holds_the_others_up_for_a_while_only(
    start: Any, sandbox: Sandbox
) -> None:
    stopped = fetching(start, sandbox, delay=0.5)
    stopped.signal(signal.SIGSTOP)
    assert start(lambda: lock(max_seconds=4)).result() is True
    assert start(lock).result() is True
    assert fetched(sandbox) == 2, "who came later found a token, and waited for nobody"
    stopped.signal(signal.SIGCONT)
    assert stopped.result() is True


# Forks


def test_a_process_forked_while_a_thread_fetches_a_token_is_not_held_up_for_ever(
    start: Any, sandbox: Sandbox
) -> None:
    sandbox.fail(Fault(call="token", delay=1, times=1))
    thread = threading.Thread(target=lock)
    thread.start()
    wait_until(lambda: fetched(sandbox) == 1, PATIENCE)
    assert start(lambda: lock(max_seconds=4)).result() is True
    thread.join()


def test_a_forked_process_opens_its_own_connections(
    start: Any, raw_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = raw_server(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"success":true}')
    static = {"conn_type": "dingtalk", "host": server.url, "extra": {"access_token": "a-static-token"}}
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(static))
    with closing(DingTalkConferenceHook()) as hook:

        def lock_again() -> list[bool]:
            one, many = hook.lock_conference("meeting"), hook.lock_conferences(["meeting"])
            return [one["success"], *(result.success for result in many)]

        assert lock_again() == [True, True]
        assert start(lock_again).result() == [True, True]
        assert lock_again() == [True, True]
        assert server.connections == 2


def test_a_process_forked_while_a_thread_makes_many_calls_can_make_many(start: Any, sandbox: Sandbox) -> None:
    limiter = limiter_of(DingTalkConferenceHook().settings)
    with limiter._lock:  # as a thread that counts a call
        process = start(lambda: DingTalkConferenceHook().lock_conferences(["sandbox-open"]))
    assert process.result()[0].success


# A full disk


def lock_on_a_full_disk(limit: int = 10) -> tuple[object, object, int]:
    """Lock twice in a process that can write nothing more into files, and whose output goes nowhere."""
    warnings = Warnings()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in {1, 2, sys.stdout.fileno(), sys.stderr.fileno()}:
        os.dup2(nowhere, descriptor)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return lock(), lock(), warnings.count


def test_a_full_disk_costs_the_sharing_and_one_warning(start: Any, conn: Any, sandbox: Sandbox) -> None:
    conn("third_party")
    for count in (1, 2):
        assert start(lock_on_a_full_disk).result() == (True, True, 1)
        assert fetched(sandbox) == count
    left = {file.suffix for file in default_directory().iterdir()}
    assert left == {".lock"}, "no half-written file is left"
    assert start(lock).result() is True
    (file,) = default_directory().glob("*.token")
    content = file.read_bytes()
    sandbox.revoke_tokens()
    assert start(lock_on_a_full_disk).result() == (True, True, 1)
    assert file.read_bytes() == content, "the old file is whole"


def lock_without_a_temporary_directory() -> tuple[object, object, int]:
    """Lock twice in a process that finds no directory for temporary files."""
    tempfile.tempdir = None
    results = lock_on_a_full_disk(0)
    with pytest.raises(FileNotFoundError):
        tempfile.gettempdir()
    return results


def test_without_a_temporary_directory_each_process_fetches_its_own_token(
    start: Any, sandbox: Sandbox
) -> None:
    for count in (1, 2):
        assert start(lock_without_a_temporary_directory).result() == (True, True, 1)
        assert fetched(sandbox) == count
