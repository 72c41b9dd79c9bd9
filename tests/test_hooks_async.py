"""What only coroutines do with a hook: run side by side, and be cancelled. All else is in ``test_hooks``."""

from __future__ import annotations

import asyncio
import gc
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from waiting import until, wait_until

from airflow_provider_dingconf.client.sync import is_background
from airflow_provider_dingconf.dingtalk.errors import InvalidConnectionError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

pytestmark = pytest.mark.usefixtures("conn")


async def cancel(work: Coroutine[Any, Any, Any], *when: Callable[[], object]) -> None:
    """Cancel some work each time that a condition holds, and see it end as cancelled."""
    task = asyncio.ensure_future(work)
    for condition in when:
        await until(condition)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Side by side


async def test_one_hook_locks_many_and_one_at_the_same_time_and_whoever_ends_first_ends_no_other(
    sandbox: Sandbox, recwarn: pytest.WarningsRecorder
) -> None:
    gc.collect()
    recwarn.clear()  # of what other tests left open
    first, last, *many = (sandbox.create_conference() for _ in range(12))
    sandbox.fail(Fault(call="lock", path=f"/({last}|{many[-1]})/", delay=0.5))
    hook = DingTalkConferenceHook()
    slow = asyncio.ensure_future(hook.alock_conferences(many))
    await until(lambda: sandbox.calls_of("lock"))
    quick, one = await asyncio.gather(hook.alock_conferences([first]), hook.alock_conference(last))
    in_a_thread = await asyncio.to_thread(hook.lock_conferences, [first])
    assert one["success"]
    assert all(result.success for result in (*quick, *await slow, *in_a_thread))
    assert all(map(is_background, hook._connect().sessions))
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


def test_threads_lock_many_with_one_hook(sandbox: Sandbox) -> None:
    hook = DingTalkConferenceHook()
    lists = [[sandbox.create_conference() for _ in range(20)] for _ in range(4)]
    with ThreadPoolExecutor(len(lists)) as threads:
        results = [one for each in threads.map(hook.lock_conferences, lists) for one in each]
    assert len([one for one in results if one.success]) == 80


def test_a_call_goes_on_when_another_thread_closes_the_hook(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="lock", delay=0.5))
    hook = DingTalkConferenceHook()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(hook.lock_conference, "sandbox-open")
        wait_until(lambda: sandbox.calls_of("lock"))
        hook.close()
        assert call.result()["attempts"] == 1
    wait_until(lambda: not hook._connect().sessions)


async def test_threads_and_coroutines_fetch_one_token(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="token", delay=0.5))
    hooks = [DingTalkConferenceHook() for _ in range(20)]
    awaited = [hook.alock_conference("sandbox-open") for hook in hooks[:10]]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(10) as threads:
        in_threads = [
            loop.run_in_executor(threads, hook.lock_conference, "sandbox-open") for hook in hooks[10:]
        ]
        assert len(await asyncio.gather(*awaited, *in_threads)) == 20
    for hook in hooks:
        hook.close()
    assert len(sandbox.calls_of("token")) == 1


async def test_the_event_loop_goes_on_while_a_call_waits(sandbox: Sandbox) -> None:
    """Neither the call, nor the wait for a token that another call fetches, nor a retry blocks the loop."""
    sandbox.fail(Fault(call="token", delay=0.5))
    sandbox.fail(Fault(call="lock", code="systemError", times=1))
    calls = asyncio.gather(*(DingTalkConferenceHook().alock_conference("sandbox-open") for _ in range(2)))
    beats = {"token": 0, "retry": 0}
    while not calls.done():
        await asyncio.sleep(0.01)
        beats["retry" if sandbox.calls_of("lock") else "token"] += 1
    assert sorted(result["attempts"] for result in await calls) == [1, 2]
    # Each takes half a second at least; a blocked loop would not come to a tenth of this.
    assert min(beats.values()) > 10


async def test_a_block_in_a_block_keeps_the_connections_of_the_outer_one(
    raw_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = raw_server(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"success":true}')
    static = {"conn_type": "dingtalk", "host": server.url, "extra": {"access_token": "a-static-token"}}
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(static))
    async with DingTalkConferenceHook() as hook:
        async with hook:
            await hook.alock_conference("a")
        await hook.alock_conference("b")
    assert server.connections == 1


async def test_a_call_goes_on_when_its_block_ends_before_it(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="lock", delay=0.5))
    async with DingTalkConferenceHook() as hook:
        call = asyncio.ensure_future(hook.alock_conference("sandbox-open"))
        await until(lambda: sandbox.calls_of("lock"))
    assert (await call)["attempts"] == 1
    assert not hook._connect().sessions


def test_a_hook_can_be_entered_again_in_another_loop(sandbox: Sandbox) -> None:
    hook = DingTalkConferenceHook()

    async def lock() -> Any:
        async with hook:
            return await hook.alock_conference("sandbox-open")

    assert asyncio.run(lock())["success"]
    assert asyncio.run(lock())["success"]


async def test_a_wrong_connection_is_found_when_the_hook_is_entered(conn: Any) -> None:
    conn(login="")
    with pytest.raises(InvalidConnectionError):
        async with DingTalkConferenceHook():
            pytest.fail("entered")


# Cancelled


async def test_a_cancelled_lock_is_undone(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="lock", after=True, delay=5))
    work = DingTalkConferenceHook().alock_conference(meeting)
    await cancel(work, lambda: sandbox.conference(meeting).locked)
    assert not sandbox.conference(meeting).locked


async def test_a_cancelled_unlock_makes_no_further_call(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="unlock", delay=5))
    work = DingTalkConferenceHook().aunlock_conference("sandbox-open")
    await cancel(work, lambda: sandbox.calls_of("unlock"))
    assert [call.name for call in sandbox.calls] == ["token", "unlock"]


async def test_after_a_cancelled_fetch_the_next_call_fetches_the_token(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="token", delay=5, times=1))
    work = DingTalkConferenceHook().aunlock_conference("sandbox-open")
    await cancel(work, lambda: sandbox.calls_of("token"))
    result = await DingTalkConferenceHook(max_seconds=5).alock_conference("sandbox-open")
    assert result["attempts"] == 1
    assert len(sandbox.calls_of("token")) == 2


async def test_a_block_that_is_cancelled_unlocks_the_meeting(sandbox: Sandbox) -> None:
    entered: list[bool] = []

    async def block() -> None:
        async with DingTalkConferenceHook().alocked("sandbox-open"):
            entered.append(sandbox.conference("sandbox-open").locked)
            await asyncio.sleep(60)

    await cancel(block(), lambda: entered)
    assert entered == [True]
    assert not sandbox.conference("sandbox-open").locked


async def test_cancelling_again_does_not_stop_the_unlocking(sandbox: Sandbox) -> None:
    outer, inner = sandbox.create_conference(), sandbox.create_conference()
    sandbox.fail(Fault(call="lock", path=inner, after=True, delay=5))
    sandbox.fail(Fault(call="unlock", delay=0.3))

    async def block() -> None:
        hook = DingTalkConferenceHook()
        async with hook.alocked(outer):
            await hook.alock_conference(inner)

    await cancel(
        block(),
        lambda: sandbox.conference(inner).locked,
        lambda: len(sandbox.calls_of("unlock")) == 1,
        lambda: len(sandbox.calls_of("unlock")) == 2,
    )
    assert not sandbox.conference(outer).locked
    assert not sandbox.conference(inner).locked


async def test_a_block_that_is_cancelled_while_it_unlocks_an_ended_meeting_is_cancelled(
    sandbox: Sandbox,
) -> None:
    sandbox.fail(Fault(call="unlock", code="confClosed", delay=0.3))

    async def block() -> None:
        async with DingTalkConferenceHook().alocked("sandbox-open"):
            pass
        pytest.fail("it goes on")

    await cancel(block(), lambda: sandbox.calls_of("unlock"))
