"""What only coroutines can do with a hook: run at once, be cancelled. All else is in ``test_hooks``."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.client.sync import is_background
from airflow_provider_dingconf.dingtalk import errors
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable


async def _until(came: Callable[[], object]) -> None:
    """Wait until something has come about."""
    for _ in range(6000):
        if came():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come about")


def test_fifty_coroutines_fetch_one_token(sandbox: Sandbox, conn: Any) -> None:
    sandbox.fail(Fault(call="token", delay=0.2))

    async def lock() -> bool:
        return (await DingTalkConferenceHook().alock_conference("sandbox-open"))["success"]

    async def all_at_once() -> list[bool]:
        return await asyncio.gather(*(lock() for _ in range(50)))

    assert all(asyncio.run(all_at_once()))
    assert (len(sandbox.calls_of("token")), len(sandbox.calls_of("lock"))) == (1, 50)


def test_coroutines_share_the_connections_of_one_hook(sandbox: Sandbox, conn: Any) -> None:
    async def all_at_once() -> list[Any]:
        async with DingTalkConferenceHook() as hook:
            return await asyncio.gather(*(hook.alock_conference("sandbox-open") for _ in range(50)))

    assert all(result["success"] for result in asyncio.run(all_at_once()))
    assert len(sandbox.calls_of("token")) == 1


def test_one_hook_locks_many_and_one_at_the_same_time_and_whoever_ends_first_ends_no_other(
    sandbox: Sandbox, conn: Any, recwarn: pytest.WarningsRecorder
) -> None:
    first, last = sandbox.create_conference(), sandbox.create_conference()
    many = [sandbox.create_conference() for _ in range(10)]
    sandbox.fail(Fault(call="lock", path=f"/({last}|{many[-1]})/", delay=0.5))
    hook = DingTalkConferenceHook()

    async def all_at_once() -> list[Any]:
        slow = asyncio.ensure_future(hook.alock_conferences([*many]))
        await _until(lambda: sandbox.calls_of("lock"))
        return [
            *await asyncio.gather(hook.alock_conferences([first]), hook.alock_conference(last)),
            await slow,
            await asyncio.to_thread(hook.lock_conferences, [first]),
        ]

    quick, one, others, in_a_thread = asyncio.run(all_at_once())
    assert one["success"]
    assert all(result.success for result in (*quick, *others, *in_a_thread))
    assert all(map(is_background, hook._connect().sessions))
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


def test_threads_lock_many_with_one_hook(sandbox: Sandbox, conn: Any) -> None:
    hook, results = DingTalkConferenceHook(), []
    start = threading.Barrier(4)

    def lock() -> None:
        start.wait()
        results.extend(hook.lock_conferences([sandbox.create_conference() for _ in range(20)]))

    threads = [threading.Thread(target=lock) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in results if one.success]) == 80


def test_a_block_in_a_block_keeps_the_connections_of_the_outer_one(
    raw_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"success":true}'
    server = raw_server(good)
    static = {
        "conn_type": "dingtalk",
        "host": server.url,
        "extra": {"access_token": "a-token-bought-elsewhere"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(static))

    async def nested() -> None:
        async with DingTalkConferenceHook() as hook:
            async with hook:
                await hook.alock_conference("a")
            await hook.alock_conference("b")

    asyncio.run(nested())
    assert server.connections == 1


def test_a_call_goes_on_when_its_block_ends_before_it(sandbox: Sandbox, conn: Any) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="lock", path=meeting, delay=0.5))

    async def left() -> bool:
        async with DingTalkConferenceHook() as hook:
            call = asyncio.ensure_future(hook.alock_conference(meeting))
            await _until(lambda: sandbox.calls_of("lock"))
        done: bool = (await call)["success"]
        return done and not hook._connect().sessions

    assert asyncio.run(left())
    assert len(sandbox.calls_of("lock")) == 1


def test_threads_and_coroutines_fetch_one_token(sandbox: Sandbox, conn: Any) -> None:
    sandbox.fail(Fault(call="token", delay=1.0))
    results: list[Any] = []

    def lock_in_a_thread() -> None:
        hook = DingTalkConferenceHook()
        results.append(hook.lock_conference("sandbox-open"))
        hook.close()

    async def lock_in_coroutines() -> None:
        hooks = [DingTalkConferenceHook() for _ in range(10)]
        results.extend(await asyncio.gather(*(hook.alock_conference("sandbox-open") for hook in hooks)))

    threads = [threading.Thread(target=lock_in_a_thread) for _ in range(10)]
    for thread in threads:
        thread.start()
    asyncio.run(lock_in_coroutines())
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert len(sandbox.calls_of("token")) == 1


def test_the_loop_goes_on_while_a_call_waits(sandbox: Sandbox, conn: Any) -> None:
    """Neither the call, nor the wait for a token that someone else buys, nor a repetition holds the loop up."""
    sandbox.fail(Fault(call="token", delay=1.0))
    sandbox.fail(Fault(call="lock", code="systemError", times=1))

    async def beside() -> tuple[int, Any]:
        calls = asyncio.gather(*(DingTalkConferenceHook().alock_conference("sandbox-open") for _ in range(2)))
        beats = 0
        while not calls.done():
            await asyncio.sleep(0.01)
            beats += 1
        return beats, await calls

    beats, results = asyncio.run(beside())
    assert sorted(result["attempts"] for result in results) == [1, 2]
    # 1 s and 0.5 s at least are waited; a loop that is held up would not come to a tenth of this.
    assert beats > 20


def test_a_cancelled_lock_is_undone(sandbox: Sandbox, conn: Any) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="lock", after=True, delay=5))

    async def cancelled() -> None:
        task = asyncio.create_task(DingTalkConferenceHook().alock_conference(meeting))
        await _until(lambda: sandbox.conference(meeting).locked)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert not sandbox.conference(meeting).locked


def test_cancelling_again_does_not_stop_the_unlocking(sandbox: Sandbox, conn: Any) -> None:
    meetings = [sandbox.create_conference() for _ in range(2)]
    sandbox.fail(Fault(call="lock", path=meetings[1], after=True, delay=5))
    sandbox.fail(Fault(call="unlock", delay=0.5))

    async def inside(hook: DingTalkConferenceHook) -> None:
        async with hook.alocked(meetings[0]):
            await hook.alock_conference(meetings[1])

    async def cancelled() -> None:
        task = asyncio.create_task(inside(DingTalkConferenceHook()))
        await _until(lambda: sandbox.conference(meetings[1]).locked)
        task.cancel()
        for unlocks in (1, 2):
            await _until(lambda unlocks=unlocks: len(sandbox.calls_of("unlock")) == unlocks)
            task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert not any(sandbox.conference(meeting).locked for meeting in meetings)


def test_a_block_that_is_cancelled_while_it_unlocks_an_ended_meeting_is_cancelled(
    sandbox: Sandbox, conn: Any
) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="unlock", code="confClosed", delay=0.5))

    async def block() -> None:
        async with DingTalkConferenceHook().alocked(meeting):
            pass
        pytest.fail("it goes on")

    async def cancelled() -> None:
        task = asyncio.create_task(block())
        await _until(lambda: sandbox.calls_of("unlock"))
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_a_cancelled_unlock_is_left_as_it_is(sandbox: Sandbox, conn: Any) -> None:
    sandbox.fail(Fault(call="unlock", delay=5))

    async def cancelled() -> None:
        task = asyncio.create_task(DingTalkConferenceHook().aunlock_conference("sandbox-open"))
        await _until(lambda: sandbox.calls_of("unlock"))
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert [call.name for call in sandbox.calls] == ["token", "unlock"]


def test_a_block_that_is_cancelled_unlocks_the_meeting(sandbox: Sandbox, conn: Any) -> None:
    meeting = sandbox.create_conference()

    async def block() -> None:
        async with DingTalkConferenceHook().alocked(meeting):
            await asyncio.sleep(60)

    async def cancelled() -> None:
        task = asyncio.create_task(block())
        await _until(lambda: sandbox.conference(meeting).locked)
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert not sandbox.conference(meeting).locked


def test_after_a_cancelled_fetch_the_next_call_fetches_the_token(sandbox: Sandbox, conn: Any) -> None:
    sandbox.fail(Fault(call="token", delay=5, times=1))

    async def cancelled_then_another() -> Any:
        first = asyncio.create_task(DingTalkConferenceHook().aunlock_conference("sandbox-open"))
        await _until(lambda: sandbox.calls_of("token"))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return await DingTalkConferenceHook(max_seconds=5).alock_conference("sandbox-open")

    assert asyncio.run(cancelled_then_another())["attempts"] == 1
    assert len(sandbox.calls_of("token")) == 2


def test_a_hook_can_be_entered_again_in_another_loop(sandbox: Sandbox, conn: Any) -> None:
    hook = DingTalkConferenceHook()

    async def lock() -> bool:
        async with hook:
            return (await hook.alock_conference("sandbox-open"))["success"]

    assert asyncio.run(lock())
    assert asyncio.run(lock())


def test_a_wrong_connection_is_found_when_the_hook_is_entered(conn: Any) -> None:
    conn(login="")

    async def enter() -> None:
        async with DingTalkConferenceHook():
            pytest.fail("entered")

    with pytest.raises(errors.InvalidConnectionError):
        asyncio.run(enter())
