"""The end of a process: SIGTERM, by which Airflow ends a task, unlocks; and nothing open is an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox


@contextmanager
def handled_by(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def received() -> Iterator[list[int]]:
    """Return the signals that reach the handler from before the block."""
    signals: list[int] = []
    with handled_by(lambda number, frame: signals.append(number)):
        yield signals


def terminate(*_: object) -> None:
    """Ask this process to end."""
    os.kill(os.getpid(), signal.SIGTERM)


def block(inside: Callable[[], Any]) -> Any:
    """Do something while a meeting is locked."""
    with closing(DingTalkConferenceHook()) as hook, hook.locked("sandbox-open"):
        return inside()


def test_sigterm_inside_the_block_unlocks_the_meeting(
    received: list[int], sandbox: Sandbox, conn: Any
) -> None:
    def inside() -> None:
        assert sandbox.conference("sandbox-open").locked
        terminate()
        pytest.fail("the block goes on")

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        block(inside)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert caught.value.code == 128 + signal.SIGTERM
    assert received == [signal.SIGTERM]
    assert not sandbox.conference("sandbox-open").locked


@pytest.mark.parametrize("call", ["lock", "unlock"])
def test_sigterm_during_a_call_leaves_no_meeting_locked(received: list[int], conn: Any, call: str) -> None:
    with Sandbox(on_call=lambda made: terminate() if made.name == call else None) as sandbox:
        conn(host=sandbox.url)
        with pytest.raises(SystemExit):
            block(lambda: None)
        assert sandbox.conference("sandbox-open").locked is False
        assert received == [signal.SIGTERM]


def test_a_handler_that_raises_is_called_first(sandbox: Sandbox, conn: Any) -> None:
    class EndedError(Exception):
        """What Airflow 2 raises."""

    def handler(number: int, frame: Any) -> None:
        raise EndedError

    with handled_by(handler), pytest.raises(EndedError):
        block(terminate)
    assert not sandbox.conference("sandbox-open").locked


def test_a_process_that_ignores_sigterm_goes_on(sandbox: Sandbox, conn: Any) -> None:
    with handled_by(signal.SIG_IGN):
        block(terminate)
    assert [call.name for call in sandbox.calls] == ["token", "lock", "unlock"]


def test_a_thread_locks_for_a_block_and_leaves_the_signals_alone(sandbox: Sandbox, conn: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(block, lambda: signal.getsignal(signal.SIGTERM)).result()
    assert inside is before
    assert not sandbox.conference("sandbox-open").locked


def test_a_block_that_ends_in_another_thread_unlocks_without_an_error(
    received: list[int], sandbox: Sandbox, conn: Any
) -> None:
    meeting = sandbox.create_conference()
    with closing(DingTalkConferenceHook()) as hook, ThreadPoolExecutor(1) as other:
        block = hook.locked(meeting)
        assert block.__enter__()["success"]
        other.submit(block.__exit__, None, None, None).result()
    assert not sandbox.conference(meeting).locked
    terminate()
    assert received == [signal.SIGTERM], "the handler from before the block has it"


def test_a_process_that_ends_with_an_open_connection_logs_no_error(sandbox: Sandbox, conn: Any) -> None:
    program = f"""
from {DingTalkConferenceHook.__module__} import DingTalkConferenceHook
hook = DingTalkConferenceHook()
hook.lock_conference("sandbox-open")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert sandbox.conference("sandbox-open").locked
    assert "unclosed" not in (done.stdout + done.stderr).lower()


def test_a_block_in_a_thread_that_outlives_the_main_thread_unlocks(sandbox: Sandbox, conn: Any) -> None:
    conn(host=f"http://localhost:{sandbox.port}")  # a name: looking it up takes a thread
    program = f"""
import threading
from {DingTalkConferenceHook.__module__} import DingTalkConferenceHook

hook, locked = DingTalkConferenceHook(), threading.Event()

def work():
    with hook.locked("sandbox-open"):
        locked.set()
        hook.close()  # so the unlock opens a connection
        threading.main_thread().join()

threading.Thread(target=work).start()
locked.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [call.name for call in sandbox.calls if "ock" in call.name] == ["lock", "unlock"], done.stderr
    assert not sandbox.conference("sandbox-open").locked
