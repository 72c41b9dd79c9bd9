"""SIGTERM, by which Airflow ends a task: a meeting that is locked for a block is unlocked all the same."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Return the signals that reach whoever handled them before."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def terminate(*_: object) -> None:
    """Ask this process to end."""
    os.kill(os.getpid(), signal.SIGTERM)


def block(inside: Any) -> Any:
    """Do something while a meeting is locked."""
    hook = DingTalkConferenceHook()
    try:
        with hook.locked("sandbox-open"):
            return inside()
    finally:
        hook.close()


def test_sigterm_inside_the_block_unlocks_the_meeting(heard: list[int], sandbox: Sandbox, conn: Any) -> None:
    def inside() -> None:
        assert sandbox.conference("sandbox-open").locked
        terminate()
        pytest.fail("the block goes on")

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        block(inside)
    assert caught.value.code == 128 + signal.SIGTERM
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not sandbox.conference("sandbox-open").locked


@pytest.mark.parametrize("call", ["lock", "unlock"])
def test_sigterm_during_a_call_leaves_no_meeting_locked(heard: list[int], conn: Any, call: str) -> None:
    with Sandbox(on_call=lambda made: terminate() if made.name == call else None) as sandbox:
        conn(host=sandbox.url)
        with pytest.raises(SystemExit):
            block(lambda: None)
        assert sandbox.conference("sandbox-open").locked is False
        assert heard == [signal.SIGTERM], "whoever handled the signal before gets it, in the end"


def test_a_handler_that_raises_is_heard_first(sandbox: Sandbox, conn: Any) -> None:
    class EndedError(Exception):
        """What Airflow 2 raises."""

    def handler(number: int, frame: Any) -> None:
        raise EndedError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(EndedError):
            block(terminate)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not sandbox.conference("sandbox-open").locked


def test_a_process_that_ignores_sigterm_goes_on(sandbox: Sandbox, conn: Any) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        block(terminate)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [call.name for call in sandbox.calls] == ["token", "lock", "unlock"]


def test_a_thread_locks_for_a_block_and_leaves_the_signals_alone(sandbox: Sandbox, conn: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        handlers = pool.submit(block, lambda: signal.getsignal(signal.SIGTERM)).result()
    assert handlers is before
    assert not sandbox.conference("sandbox-open").locked
