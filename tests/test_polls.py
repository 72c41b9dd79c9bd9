"""Waiting in the triggerer: the tasks of one connection share their polls."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_dingconf import polls
from airflow_provider_dingconf.dingtalk.conferences import ConferenceStatus, check_reference
from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError
from airflow_provider_dingconf.polls import Poll
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from airflow_provider_dingconf.sensors import ConferenceSensor
from airflow_provider_dingconf.triggers import ConferenceTrigger

pytestmark = pytest.mark.usefixtures("conn")

INTERVAL = 0.3


async def event_of(trigger: ConferenceTrigger) -> dict[str, Any]:
    return (await trigger.run().__anext__()).payload


def trigger(meeting: str, status: str = "started", **options: Any) -> ConferenceTrigger:
    return ConferenceTrigger(status, {"conference_id": meeting}, poke_interval=INTERVAL, **options)


async def rounds(sandbox: Sandbox, number: int) -> None:
    """Wait until so many rounds of batch queries are over."""
    while len(sandbox.calls_of("query")) < number:
        await asyncio.sleep(0.02)


async def waited(triggers: list[ConferenceTrigger], then: Any) -> list[dict[str, Any]]:
    """Let all wait, do something meanwhile, and return what they say."""
    tasks = [asyncio.ensure_future(event_of(one)) for one in triggers]
    try:
        await then()
        return await asyncio.wait_for(asyncio.gather(*tasks), 60)
    finally:
        for task in tasks:
            task.cancel()


def test_a_hundred_waiting_tasks_cost_one_call_a_round(sandbox: Sandbox) -> None:
    made = [sandbox.create_conference() for _ in range(250)]

    async def then() -> None:
        await rounds(sandbox, 3)
        assert [len(call.json()["conferenceIdList"]) for call in sandbox.calls_of("query")] == [100, 100, 50]
        assert sandbox.calls_of("info") == []
        for meeting in made:
            sandbox.end(meeting)

    events = asyncio.run(waited([trigger(meeting, "ended") for meeting in made], then))
    assert [event["conference"]["conference_id"] for event in events] == made
    assert {event["conference"]["status"] for event in events} == {"ended"}
    assert len(sandbox.calls_of("info")) == 250  # once each, when it was not listed any more
    assert len(sandbox.calls_of("token")) == 1


def test_a_meeting_that_has_not_started_is_not_asked_for_singly_in_each_round(sandbox: Sandbox) -> None:
    made = [sandbox.create_conference(status="not_started") for _ in range(5)]

    async def then() -> None:
        await rounds(sandbox, 4)
        assert sandbox.calls_of("info") == []
        for meeting in made:
            sandbox.start(meeting)

    events = asyncio.run(waited([trigger(meeting, seen="not_started") for meeting in made], then))
    assert [event["conference"]["status"] for event in events] == ["started"] * 5
    assert sandbox.calls_of("info") == []


def test_a_meeting_shorter_than_the_interval_is_noticed_all_the_same(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polls, "FIRST_ASK", 2)
    monkeypatch.setattr(polls._Waiter, "ask_after", 2)
    meeting = sandbox.create_conference(status="not_started")

    async def then() -> None:
        sandbox.start(meeting)
        sandbox.end(meeting)

    (event,) = asyncio.run(waited([trigger(meeting, "ended", seen="not_started")], then))
    assert event["conference"]["status"] == "ended"
    assert len(sandbox.calls_of("info")) == 1


def test_a_meeting_of_which_nothing_is_known_is_asked_for_once(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(status="not_started")

    async def then() -> None:
        await rounds(sandbox, 3)
        sandbox.start(meeting)

    (event,) = asyncio.run(waited([trigger(meeting)], then))
    assert event["conference"]["conference_id"] == meeting
    assert len(sandbox.calls_of("info")) == 1


def test_a_start_waited_for_in_vain_ends_the_wait(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(status="not_started")

    async def then() -> None:
        await rounds(sandbox, 1)
        sandbox.end(meeting)

    async def nothing() -> None: ...

    (event,) = asyncio.run(waited([trigger("sandbox-ended")], nothing))
    assert event["error"]["code"] == "confClosed"
    # Running when the wait for its start began anew, after a restart, and ended before the next round.
    sandbox.clear()
    (event,) = asyncio.run(waited([trigger(meeting, seen="started")], then))
    assert event["error"]["code"] == "confClosed"


def test_those_who_wait_for_one_meeting_share_its_calls(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(room_code="1234567890", status="not_started")
    named = [ConferenceTrigger("started", {"room_code": "123 456 7890"}, poke_interval=INTERVAL)] * 5

    async def then() -> None:
        while len(sandbox.calls_of("roomCode")) < 2:
            await asyncio.sleep(0.02)
        assert len(sandbox.calls_of("roomCode")) == 2
        sandbox.start(meeting)

    events = asyncio.run(waited(named, then))
    assert {event["conference"]["conference_id"] for event in events} == {meeting}
    assert len(sandbox.calls_of("roomCode")) == 3


def test_one_id_that_dingtalk_refuses_does_not_end_the_wait_of_the_others(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="query", code="paramsError", times=1))

    async def then() -> None:
        await rounds(sandbox, 2)
        sandbox.end(meeting)

    events = asyncio.run(waited([trigger(meeting, "ended"), trigger("nobody", "ended")], then))
    assert events[0]["conference"]["status"] == "ended"
    assert events[1]["error"]["code"] == "roomNotFound"


def test_a_fault_that_passes_ends_no_wait(sandbox: Sandbox, conn: Any) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(
        Fault(
            call="query",
            code="addressBanned",
            body={"status": 1111, "wait": 0.005, "punish": "deny"},
            times=1,
        )
    )

    async def then() -> None:
        await rounds(sandbox, 2)
        sandbox.end(meeting)

    (event,) = asyncio.run(waited([trigger(meeting, "ended")], then))
    assert event["conference"]["status"] == "ended"


@pytest.mark.parametrize("code", ["orgAccessForbidden", "Forbidden.AccessDenied.AccessTokenPermissionDenied"])
def test_what_dingtalk_refuses_is_told_to_all(sandbox: Sandbox, code: str) -> None:
    sandbox.fail(Fault(call="query", code=code))

    async def nothing() -> None: ...

    events = asyncio.run(waited([trigger("a"), trigger("b", "ended")], nothing))
    assert [event["error"]["code"] for event in events] == [code, code]
    assert events[0]["error"]["request_id"]


def test_a_connection_that_is_wrong_is_told_to_all(sandbox: Sandbox, conn: Any) -> None:
    conn(login="")

    async def nothing() -> None: ...

    (event,) = asyncio.run(waited([trigger("a")], nothing))
    assert "login (Client ID)" in event["error"]["message"]


def test_a_trigger_that_is_cancelled_polls_no_more(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()

    async def cancel() -> int:
        task = asyncio.ensure_future(event_of(trigger(meeting, "ended")))
        await rounds(sandbox, 1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        made = len(sandbox.calls)
        await asyncio.sleep(3 * INTERVAL)
        assert len(asyncio.all_tasks()) == 1
        return len(sandbox.calls) - made

    assert asyncio.run(cancel()) == 0


def test_a_wait_that_begins_after_the_last_one_was_given_up_polls_again(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()

    async def again() -> dict[str, Any]:
        first = asyncio.ensure_future(event_of(trigger(meeting, "ended")))
        await rounds(sandbox, 1)
        first.cancel()
        second = asyncio.ensure_future(event_of(trigger(meeting, "ended")))
        sandbox.end(meeting)
        return await asyncio.wait_for(second, 30)

    assert asyncio.run(again())["conference"]["status"] == "ended"


def test_the_poll_serves_code_of_ones_own(sandbox: Sandbox) -> None:
    async def wait() -> None:
        await Poll.of("dingtalk_default", INTERVAL).wait(
            check_reference("sandbox-ended"), ConferenceStatus.STARTED
        )

    with pytest.raises(ConferenceClosedError):
        asyncio.run(wait())


def test_a_trigger_survives_its_way_through_the_database(conn: Any) -> None:
    made = ConferenceTrigger("ended", {"room_code": "1"}, "other", 5.0, "started")
    path, arguments = made.serialize()
    assert path == "airflow_provider_dingconf.triggers.ConferenceTrigger"
    assert ConferenceTrigger(**arguments).serialize() == (path, arguments)
    assert Sandbox.client_secret not in repr(arguments)


# The sensor


def deferred(sensor: ConferenceSensor) -> Any:
    with pytest.raises(TaskDeferred) as raised:
        sensor.execute({})
    return raised.value


def test_a_deferrable_sensor_waits_in_the_triggerer(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(status="not_started")
    sensor = ConferenceSensor(
        task_id="x", conference_id=meeting, deferrable=True, poke_interval=INTERVAL, timeout=60
    )
    wish = deferred(sensor)
    assert wish.trigger.seen == "not_started"
    assert wish.timeout.total_seconds() == 60
    timer = threading.Timer(0.5, sandbox.start, [meeting])
    timer.start()
    event = asyncio.run(asyncio.wait_for(event_of(wish.trigger), 30))
    assert getattr(sensor, wish.method_name)({}, event)["conference_id"] == meeting


def test_a_deferrable_sensor_whose_meeting_is_so_far_never_touches_the_triggerer(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    sensor = ConferenceSensor(task_id="x", conference_id=meeting, deferrable=True)
    assert sensor.execute({})["conference_id"] == meeting
    assert len(sandbox.calls_of("info", "query")) == 1


def test_what_the_trigger_was_refused_becomes_the_tasks_state(sandbox: Sandbox) -> None:
    from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

    event = {"error": ConferenceClosedError("said", code="confClosed", request_id="R-1").as_dict()}
    with pytest.raises(AirflowSkipException, match="request id R-1"):
        ConferenceSensor(task_id="x", conference_id="a").resume({}, event)
    with pytest.raises(AirflowFailException):
        ConferenceSensor(task_id="x", conference_id="a", on_error={"confClosed": "fail"}).resume({}, event)
    fine = ConferenceSensor(task_id="x", conference_id="a", on_error={"confClosed": "succeed"})
    assert fine.resume({}, event) is None
