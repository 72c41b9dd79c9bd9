"""Waiting in the triggerer: the tasks of one connection share their polls."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from conftest import PATIENCE
from waiting import QUICK, QuickTrigger, event_of

from airflow_provider_dingconf import connection_hook
from airflow_provider_dingconf.client.polling import Poll, PollSettings, log
from airflow_provider_dingconf.dingtalk.conferences import ConferenceStatus, check_reference
from airflow_provider_dingconf.dingtalk.limits import CONCURRENCY
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from airflow_provider_dingconf.sensors import ConferenceSensor
from airflow_provider_dingconf.triggers import ConferenceTrigger, connect

pytestmark = pytest.mark.usefixtures("conn")

INTERVAL = 0.02
MEETINGS = "/videoConferences/"


def trigger(
    meeting: str, status: str = "started", settings: PollSettings = QUICK, **options: Any
) -> ConferenceTrigger:
    made = QuickTrigger(status, {"conference_id": meeting}, poke_interval=INTERVAL, **options)
    made.poll_settings = settings
    return made


def create(sandbox: Sandbox, number: int, name: str = "m", status: Any = "started") -> list[str]:
    """Create meetings, and return their ids, such as ``m-070``."""
    return [sandbox.create_conference(conference_id=f"{name}-{n:03}", status=status) for n in range(number)]


async def until_made(sandbox: Sandbox, number: int, call: str = "query") -> None:
    """Wait until so many calls are made: of batch queries, each is a round of up to a hundred meetings."""
    while len(sandbox.calls_of(call)) < number:
        await asyncio.sleep(0.02)


class Rounds:
    """The rounds of one poll: each begins when the test says so, and the test knows when it is over."""

    def __init__(self) -> None:
        self._begun = self._over = 0
        self._let: float = 0
        self.settings = PollSettings(pause=self._pause)

    async def _pause(self, _seconds: float) -> None:
        self._over = self._begun
        while self._begun >= self._let:
            await asyncio.sleep(0.005)
        self._begun += 1

    async def go_by(self, number: int = 1) -> None:
        """Let so many rounds begin, and return when they are over."""
        self._let += number
        while self._over < self._let:
            await asyncio.sleep(0.005)

    def go_on(self) -> None:
        """Let all rounds begin from now on."""
        self._let = math.inf


@pytest.fixture
def by_rounds() -> Rounds:
    return Rounds()


@asynccontextmanager
async def waiting(triggers: list[ConferenceTrigger]) -> AsyncIterator[list[dict[str, Any]]]:
    """Let all wait, do something meanwhile, and give their events afterwards."""
    tasks = [asyncio.ensure_future(event_of(one)) for one in triggers]
    events: list[dict[str, Any]] = []
    try:
        yield events
        events += await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def events_of(triggers: list[ConferenceTrigger]) -> list[dict[str, Any]]:
    async with waiting(triggers) as events:
        pass
    return events


@asynccontextmanager
async def all_wait(
    sandbox: Sandbox,
    made: list[str],
    by_rounds: Rounds | None = None,
    status: str = "ended",
    seen: str | None = "started",
    **options: Any,
) -> AsyncIterator[None]:
    """Let a trigger wait for each of the meetings; afterwards start or end them, and expect each wait to end well.

    :param by_rounds: what the test lets the rounds begin with; None to let them begin soon.
    :param seen: the status when the wait began; None if it is not known.
    """
    settings = by_rounds.settings if by_rounds else QUICK
    async with waiting([trigger(one, status, settings, seen=seen, **options) for one in made]) as events:
        yield
        for meeting in made:
            sandbox.end(meeting) if status == "ended" else sandbox.start(meeting)
        if by_rounds:
            by_rounds.go_on()
    found = [(event["conference"]["conference_id"], event["conference"]["status"]) for event in events]
    assert found == [(meeting, status) for meeting in made]


def batches(sandbox: Sandbox) -> list[int]:
    """Return how many meetings were in each batch query."""
    return [len(call.json()["conferenceIdList"]) for call in sandbox.calls_of("query")]


# What a wait costs


async def test_a_hundred_waiting_tasks_cost_one_call_a_round(sandbox: Sandbox) -> None:
    async with all_wait(sandbox, create(sandbox, 250), seen=None):
        await until_made(sandbox, 3)
        assert batches(sandbox)[:3] == [100, 100, 50]
        assert sandbox.calls_of("info") == []
    assert len(sandbox.calls_of("info")) == 250  # once each, when it was not listed any more
    assert len(sandbox.calls_of("token")) == 1


@pytest.mark.parametrize(("seen", "alone"), [("not_started", 0), (None, 1)])
async def test_a_meeting_that_has_not_started_is_queried_alone_only_if_nothing_is_known_of_it(
    sandbox: Sandbox, seen: str | None, alone: int
) -> None:
    made = create(sandbox, 5, status="not_started")
    async with all_wait(sandbox, made, status="started", seen=seen):
        await until_made(sandbox, 4)
        assert len(sandbox.calls_of("info")) == 5 * alone
    assert len(sandbox.calls_of("info")) == 5 * alone + 5  # once it was listed: for the rest of the facts


async def test_a_meeting_shorter_than_the_interval_is_noticed(sandbox: Sandbox) -> None:
    (meeting,) = create(sandbox, 1, status="not_started")
    settings = replace(QUICK, first_query=2)
    async with waiting([trigger(meeting, "ended", settings, seen="not_started")]) as events:
        sandbox.start(meeting)
        sandbox.end(meeting)
    assert events[0]["conference"]["status"] == "ended"
    assert len(sandbox.calls_of("info")) == 1


async def test_a_wait_for_the_start_of_a_meeting_that_has_ended_ends_in_an_error(sandbox: Sandbox) -> None:
    (meeting,) = create(sandbox, 1, status="not_started")
    # One ran when the wait for its start began anew, after a restart, and ended before the next round.
    async with waiting([trigger("sandbox-ended"), trigger(meeting, seen="started")]) as events:
        await until_made(sandbox, 1)
        sandbox.end(meeting)
    assert [event["error"]["code"] for event in events] == ["confClosed", "confClosed"]


async def test_tasks_that_wait_for_one_meeting_share_its_calls(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(room_code="1234567890", status="not_started")
    named = [QuickTrigger("started", {"room_code": "123 456 7890"}, poke_interval=INTERVAL)] * 5
    async with waiting(named) as events:
        await until_made(sandbox, 2, "roomCode")
        assert len(sandbox.calls_of("roomCode")) == 2
        sandbox.start(meeting)
    assert {event["conference"]["conference_id"] for event in events} == {meeting}
    assert len(sandbox.calls_of("roomCode")) == 3


async def test_polls_keep_to_calls_per_second_and_end_with_their_round(
    sandbox: Sandbox, conn: Any, by_rounds: Rounds
) -> None:
    conn(extra={"calls_per_second": 40})
    sandbox.fail(Fault(call="info", delay=0.0, times=2))
    sandbox.fail(Fault(call="info", code="systemBusy", times=1))
    made = create(sandbox, 15, status="not_started")
    async with all_wait(sandbox, made, by_rounds, "started", seen=None):
        await by_rounds.go_by()
        assert [call.name for call in sandbox.calls_of("query", "info")] == ["query", "info", "info", "info"]
        await by_rounds.go_by()
        times = [call.time for call in sandbox.calls_of("query", "info")][4:]
        assert len(times) == 1 + 13
        assert times[-1] - times[0] > 0.9 * 13 / 40


# Errors


async def test_a_wait_goes_on_after_a_ban(sandbox: Sandbox) -> None:
    body = {"status": 1111, "wait": 0.005, "punish": "deny"}
    sandbox.fail(Fault(call="query", code="addressBanned", body=body, times=1))
    async with all_wait(sandbox, create(sandbox, 1)):
        await until_made(sandbox, 2)


@pytest.mark.parametrize(
    "code",
    [
        "orgAccessForbidden",
        "Forbidden.AccessDenied.AccessTokenPermissionDenied",
        "Forbidden.AccessDenied.ApiCountLimitForOrg",
    ],
)
async def test_an_error_that_concerns_all_ends_all_waits_for_one_call(sandbox: Sandbox, code: str) -> None:
    sandbox.fail(Fault(code=code, path=MEETINGS))
    events = await events_of([trigger(f"m-{one}", ("started", "ended")[one % 2]) for one in range(250)])
    assert {event["error"]["code"] for event in events} == {code}
    assert all(event["error"]["request_id"] for event in events)
    assert len(sandbox.calls_of("query", "info")) == 1


async def test_waits_that_go_on_after_an_error_that_concerns_all_cost_one_call_a_round(
    sandbox: Sandbox, by_rounds: Rounds
) -> None:
    made = create(sandbox, 250, status="not_started")
    sandbox.fail(Fault(code="orgAccessForbidden", path=MEETINGS))
    on_error = {"orgAccessForbidden": "retry"}
    async with all_wait(sandbox, made, by_rounds, "started", seen=None, on_error=on_error):
        for number in range(1, 5):
            await by_rounds.go_by()
            assert len(sandbox.calls_of("query", "info")) == number
        sandbox.heal()


@pytest.mark.parametrize("code", ["paramsError", "resourceClose", "noPermission", "unknownUserError"])
@pytest.mark.parametrize("known", [True, False])
async def test_an_error_that_one_meeting_causes_concerns_its_tasks_alone(
    sandbox: Sandbox, by_rounds: Rounds, code: str, known: bool
) -> None:
    made = create(sandbox, 100)
    culprit = made.pop(70)
    sandbox.fail(Fault(call="query", sent=f'"{culprit}"', code=code))
    if not known:
        sandbox.fail(Fault(call="info", path=f"/{culprit}$", code="noPermission"))
    async with all_wait(sandbox, made, by_rounds):
        wait = asyncio.ensure_future(event_of(trigger(culprit, "ended", by_rounds.settings, seen="started")))
        await by_rounds.go_by()
        assert len(sandbox.calls_of("query")) <= 2 * 7 + 1
        assert {call.conference_id for call in sandbox.calls_of("info")} == {culprit}
        sandbox.clear()
        await by_rounds.go_by()
        assert batches(sandbox) == [99]
        assert {call.conference_id for call in sandbox.calls_of("info")} == ({culprit} if known else set())
        sandbox.end(culprit)
    event = await wait
    assert event["conference"]["status"] == "ended" if known else event["error"]["code"] == "noPermission"


async def test_a_batch_that_is_too_long_is_made_shorter(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="query", sent="(m-[^m]*){41}", code="paramsError"))
    async with all_wait(sandbox, create(sandbox, 150)):
        while sum(size <= 40 for size in batches(sandbox)) < 6:
            await asyncio.sleep(0.02)
        assert sandbox.calls_of("info") == []


async def test_a_refusal_that_does_not_recur_changes_nothing(sandbox: Sandbox, by_rounds: Rounds) -> None:
    sandbox.fail(Fault(call="query", sent=r"^[^,]*\[[^,]*,[^,]*\]", code="resourceClose", times=1))
    async with all_wait(sandbox, create(sandbox, 202), by_rounds):
        await by_rounds.go_by()
        sandbox.clear()
        await by_rounds.go_by()
        assert sorted(batches(sandbox)) == [2, 100, 100]


async def test_meetings_that_break_batches_leave_others_together(sandbox: Sandbox, by_rounds: Rounds) -> None:
    bad, good = create(sandbox, 2, "bad"), create(sandbox, 20)
    sandbox.fail(Fault(call="query", sent="bad-", code="unknownUserError"))
    async with all_wait(sandbox, bad, by_rounds):
        while len(sandbox.calls_of("info")) < 4:
            await by_rounds.go_by()
        async with all_wait(sandbox, good, by_rounds):
            await asyncio.sleep(0)  # they wait by now
            sandbox.clear()
            await by_rounds.go_by()
            assert batches(sandbox) == [20]
            assert {call.conference_id for call in sandbox.calls_of("info")} <= set(bad)


@pytest.mark.parametrize("number", [0, 3, 9])
@pytest.mark.parametrize(
    "wrong",
    [Fault(call="query", code="systemError"), Fault(call="query", body={"infos": [{"conferenceId": "m"}]})],
    ids=["systemError", "unreadable"],
)
async def test_a_meeting_that_makes_each_batch_query_fail_delays_no_other(
    sandbox: Sandbox, wrong: Fault, number: int
) -> None:
    made = create(sandbox, 10)
    sandbox.fail(replace(wrong, sent=f'"{made[number]}"'))
    async with waiting([trigger(one, "ended", seen="started") for one in made]) as events:
        for meeting in made:
            sandbox.end(meeting)
    assert {event["conference"]["status"] for event in events} == {"ended"}
    assert len(sandbox.calls_of("query")) <= 8 + 2 * 2 * 4


async def test_an_outage_costs_one_call_a_round_and_few_after_it(sandbox: Sandbox, by_rounds: Rounds) -> None:
    sandbox.fail(Fault(call="query", code="systemError"))
    async with all_wait(sandbox, create(sandbox, 100), by_rounds):
        await by_rounds.go_by(12)
        assert len(sandbox.calls_of("query")) == 12
        sandbox.heal()
        sandbox.clear()
        await by_rounds.go_by(2)
        assert batches(sandbox)[-1] == 100
        assert len(sandbox.calls_of("query", "info")) <= 12


async def test_if_no_batch_query_works_the_meetings_are_queried_alone(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="query", code="noPermission"))
    async with all_wait(sandbox, create(sandbox, 100)):
        await until_made(sandbox, 100, "info")
        assert len(sandbox.calls_of("query")) <= 199  # once
        sandbox.clear()
        await until_made(sandbox, 100, "info")
        assert sandbox.calls_of("query") == []


REFUSE_ALL = {
    "systemError": Fault(code="systemError"),
    "systemBusy": Fault(code="systemBusy"),
    "throttled": Fault(code="Forbidden.AccessDenied.QpsLimitForApi", headers={"Retry-After": "0"}),
    "bad gateway": Fault(status=502, body="<html>"),
    "not JSON": Fault(code="unreadableAnswer"),
    "hung up": Fault(drop=True),
}


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        *(("query", fault) for fault in REFUSE_ALL.values()),
        ("info", REFUSE_ALL["systemError"]),
        ("info", REFUSE_ALL["systemBusy"]),
    ],
    ids=[*REFUSE_ALL, "alone: systemError", "alone: systemBusy"],
)
async def test_a_round_ends_at_the_first_sign_that_dingtalk_takes_no_calls(
    sandbox: Sandbox, by_rounds: Rounds, call: str, fault: Fault
) -> None:
    made = create(sandbox, 250, status="not_started")
    sandbox.fail(replace(fault, call=call))
    seen = "not_started" if call == "query" else None
    async with all_wait(sandbox, made, by_rounds, "started", seen):
        await by_rounds.go_by()
        first = len(sandbox.calls_of(call))
        assert first == 1 if call == "query" else 1 <= first <= CONCURRENCY  # those that were on their way
        for number in (first + 1, first + 2):
            await by_rounds.go_by()
            assert len(sandbox.calls_of(call)) == number
        if call == "query":  # each round has begun with those that were not queried
            queried = [set(one.json()["conferenceIdList"]) for one in sandbox.calls_of(call)]
            assert set.union(*queried) == set(made)
        else:
            assert len({one.conference_id for one in sandbox.calls_of(call)}) == first + 2
        sandbox.heal()


async def test_a_round_continues_where_dingtalk_ended_the_one_before(sandbox: Sandbox) -> None:
    """Of three batches and the calls that follow them, each round makes one call with success."""
    made = create(sandbox, 250)
    for _ in range(130):  # the calls of the rounds are good, bad, good, bad, and so on
        sandbox.fail(Fault(call="query", delay=0.001, times=1))
        sandbox.fail(Fault(call="query", code="systemBusy", times=1))
    for meeting in made[:120]:
        sandbox.end(meeting)
    events = await events_of([trigger(one, "ended", seen="started") for one in made[:120]])
    assert {event["conference"]["status"] for event in events} == {"ended"}


@pytest.mark.parametrize(
    ("interval", "retry_after", "pause"), [(0, 0, 1.0), (5, 2, 5), (5, 7, 7), (5, 7200, 3_600)]
)
async def test_a_round_begins_after_the_interval_or_when_dingtalk_said(
    sandbox: Sandbox, interval: float, retry_after: float, pause: float
) -> None:
    pauses: list[float] = []

    async def record(seconds: float) -> None:
        pauses.append(seconds)

    sandbox.fail(Fault(call="query", code="systemBusy", headers={"Retry-After": str(retry_after)}, times=1))
    (meeting,) = create(sandbox, 1, status="not_started")
    poll = Poll.of("x", interval, partial(connect, "dingtalk_default"), PollSettings(pause=record))
    named = check_reference(meeting), ConferenceStatus.STARTED, ConferenceStatus.NOT_STARTED
    wait = asyncio.create_task(poll.wait(*named))
    await until_made(sandbox, 3)
    wait.cancel()
    assert pauses[:3] == [max(interval, 1.0), pause, max(interval, 1.0)]


# on_error


@pytest.mark.parametrize("code", ["roomNotFound", "confClosed"])
async def test_a_wait_that_outlasts_an_error_costs_no_call_each_round(sandbox: Sandbox, code: str) -> None:
    if code == "roomNotFound":
        made = create(sandbox, 5, status="not_started")
        sandbox.fail(Fault(call="info", code=code))
    else:
        made = create(sandbox, 5, status="ended")
    tasks = [asyncio.ensure_future(event_of(trigger(one, on_error={code: "retry"}))) for one in made]
    assert (await event_of(trigger(made[0])))["error"]["code"] == code
    await until_made(sandbox, 5)
    assert len(sandbox.calls_of("info")) == 5
    if code == "roomNotFound":
        sandbox.heal()
        for meeting in made:
            sandbox.start(meeting)
        assert {event["conference"]["status"] for event in await asyncio.gather(*tasks)} == {"started"}


@pytest.mark.parametrize("call", ["query", "info"])
@pytest.mark.parametrize("code", ["systemError", "systemBusy"])
async def test_a_transient_error_ends_a_wait_as_on_error_says(sandbox: Sandbox, call: str, code: str) -> None:
    (meeting,) = create(sandbox, 1, status="not_started")
    seen = "not_started" if call == "query" else None
    sandbox.fail(Fault(path=MEETINGS, code=code))
    (event,) = await events_of([trigger(meeting, seen=seen, on_error={code: "fail"})])
    assert event["error"]["code"] == code


async def test_an_error_that_concerns_all_is_in_no_task_log_and_one_of_a_task_is_in_its_own(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="the triggerer")
    said: list[tuple[str, str]] = []
    note = [lambda record: said.append((whose.get(), record.getMessage())) is None]
    monkeypatch.setattr(log, "filters", note)
    made = create(sandbox, 2, status="not_started")
    sandbox.fail(Fault(call="query", code="systemError", times=1))
    sandbox.fail(Fault(call="info", path=made[1], code="roomNotFound", times=1))

    async def wait(meeting: str, name: str, seen: str | None) -> None:
        whose.set(name)
        await event_of(trigger(meeting, seen=seen, on_error={"roomNotFound": "retry"}))

    waits = asyncio.gather(wait(made[0], "first", "not_started"), wait(made[1], "second", None))
    await until_made(sandbox, 3)
    for meeting in made:
        sandbox.start(meeting)
    await waits
    assert {who for who, what in said if "systemError" in what} == {"the triggerer"}
    assert {who for who, what in said if "roomNotFound" in what} == {"second"}


# The facts of a meeting


async def test_the_meeting_is_the_same_whether_a_poke_or_a_poll_has_found_it(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(status="not_started", schedule_conference_id="s-1")
    async with waiting([trigger(meeting, seen="not_started")]) as events:
        await until_made(sandbox, 1)
        sandbox.start(meeting)
    found = events[0]["conference"]
    assert found == ConferenceSensor(task_id="x", conference_id=meeting).poke({}).xcom_value
    assert all(found[each] for each in ("join_url", "creator_id", "creator_nick", "room_code", "biz_type"))
    assert len(sandbox.calls_of("info")) == 2


@pytest.mark.parametrize("code", ["systemError", "noPermission", "roomNotFound"])
async def test_the_wait_is_over_even_if_the_rest_of_the_facts_is_refused(sandbox: Sandbox, code: str) -> None:
    made = create(sandbox, 30, status="not_started")
    sandbox.fail(Fault(call="info", code=code))
    async with waiting([trigger(meeting, seen="not_started") for meeting in made]) as events:
        await until_made(sandbox, 1)
        for meeting in made:
            sandbox.start(meeting)
    assert [event["conference"]["conference_id"] for event in events] == made
    assert {event["conference"]["join_url"] for event in events} == {None}
    assert len(sandbox.calls_of("query")) <= 3  # in the round that found them


# Faults before a call, or in a round


async def test_a_wrong_connection_ends_the_wait(sandbox: Sandbox, conn: Any) -> None:
    conn(login="")
    (event,) = await events_of([trigger("a")])
    assert "login (Client ID)" in event["error"]["message"]


async def test_a_connection_that_is_not_defined_ends_the_wait(airflow_db: None, sandbox: Sandbox) -> None:
    missing = QuickTrigger("started", {"conference_id": "a"}, "nowhere", poke_interval=INTERVAL)
    with pytest.raises(AirflowNotFoundException, match="nowhere"):
        await event_of(missing)


@pytest.mark.parametrize("patient", [True, False])
async def test_a_connection_that_cannot_be_looked_up_is_looked_up_again_unless_on_error_says_otherwise(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, patient: bool
) -> None:
    failures = [RuntimeError("the API server said 500, for s3cret")] * 3
    usual = connection_hook.get_async_connection

    async def flaky(conn_id: str, hook: Any = None) -> Any:
        if failures:
            raise failures.pop()
        return await usual(conn_id, hook=hook)

    monkeypatch.setattr(connection_hook, "get_async_connection", flaky)
    on_error = None if patient else {"TransientError": "fail"}
    event = await event_of(trigger("sandbox-open", on_error=on_error))
    said = "dingtalk_default could not be looked up (RuntimeError)"
    assert ("conference" in event) if patient else (said in event["error"]["message"])
    assert said in caplog.text
    assert "s3cret" not in caplog.text + str(event)


@pytest.mark.parametrize("method", ["running_of", "get_conference"])
async def test_an_unexpected_error_ends_the_waits_it_concerns_only(sandbox: Sandbox, method: str) -> None:
    (meeting,) = create(sandbox, 1, status="not_started")
    other = sandbox.create_conference(room_code="1234567890", status="not_started")

    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    async def connect_to_broken() -> Any:
        client = await connect("dingtalk_default")
        setattr(client, method, broken)
        return client

    poll = Poll.of("x", INTERVAL, connect_to_broken, QUICK)
    named = check_reference(meeting), check_reference(room_code="1234567890")
    first, second = (asyncio.create_task(poll.wait(one, ConferenceStatus.STARTED)) for one in named)
    with pytest.raises(ZeroDivisionError):
        await first
    sandbox.start(other)
    assert (await second).conference_id == other


# The end of a wait


async def test_a_wait_ends_if_its_rounds_are_cancelled_from_outside(sandbox: Sandbox) -> None:
    (meeting,) = create(sandbox, 1)
    before = asyncio.all_tasks()
    first = asyncio.ensure_future(event_of(trigger(meeting, "ended")))
    await until_made(sandbox, 1)
    for task in asyncio.all_tasks() - before - {first}:
        task.cancel()
    await asyncio.wait([first], timeout=PATIENCE / 2)
    assert first.cancelled()
    async with all_wait(sandbox, [meeting]):  # a later one begins its own
        pass


@pytest.mark.parametrize("others", [1, 0], ids=["waits with it", "begins just after it"])
async def test_a_cancelled_wait_does_not_end_another_that(sandbox: Sandbox, others: int) -> None:
    (meeting,) = create(sandbox, 1)
    waits = [asyncio.ensure_future(event_of(trigger(meeting, "ended"))) for _ in range(1 + others)]
    await until_made(sandbox, 1)
    waits[0].cancel()
    if not others:
        waits.append(asyncio.ensure_future(event_of(trigger(meeting, "ended"))))
    sandbox.end(meeting)
    assert (await waits[1])["conference"]["status"] == "ended"


@pytest.mark.parametrize("cancelled", [True, False])
async def test_if_nobody_waits_nothing_is_kept_and_no_call_is_made(
    sandbox: Sandbox, by_rounds: Rounds, cancelled: bool
) -> None:
    (meeting,) = create(sandbox, 1)
    sandbox.fail(Fault(call="query", code="resourceClose"))
    before = asyncio.all_tasks()
    wait = asyncio.ensure_future(event_of(trigger(meeting, "ended", by_rounds.settings)))
    await by_rounds.go_by(2)
    if cancelled:
        wait.cancel()
    else:
        sandbox.end(meeting)
        by_rounds.go_on()
    with suppress(asyncio.CancelledError):
        await wait
    del wait
    await asyncio.sleep(0)  # the rounds end, too
    calls = len(sandbox.calls)
    await asyncio.sleep(3 * INTERVAL)
    gc.collect()
    assert asyncio.all_tasks() == before
    assert len(sandbox.calls) == calls
    assert not [loop for loop, *_ in Poll.shared if loop is asyncio.get_running_loop()]


def test_two_event_loops_share_nothing(sandbox: Sandbox) -> None:
    (meeting,) = create(sandbox, 1)
    events: list[dict[str, Any]] = []

    def wait() -> None:
        events.append(asyncio.run(event_of(trigger(meeting, "ended"))))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    asyncio.run(until_made(sandbox, 4))
    sandbox.end(meeting)
    for thread in threads:
        thread.join(PATIENCE)
    assert [event["conference"]["status"] for event in events] == ["ended", "ended"]


# The delay after a start


@pytest.mark.parametrize(("ago", "left"), [(600.0, 0.0), (299.6, 0.4), (None, 0.2)])
async def test_a_delay_counts_from_the_start_and_costs_no_call_even_if_the_triggerer_restarts(
    sandbox: Sandbox, ago: float | None, left: float
) -> None:
    facts = {"conferenceId": "m", "status": 2, "title": "Weekly"}
    if ago is not None:  # else nobody knows when the meeting started
        facts["startTime"] = int((time.time() - ago) * 1000)
    sandbox.fail(Fault(call="info", body={"confInfo": facts}))
    began = time.monotonic()
    waits = trigger("m", delay=300.0 if ago else left)
    event = await event_of(waits)
    assert event["conference"]["conference_id"] == "m"
    assert time.monotonic() - began > left - 0.1
    calls = len(sandbox.calls_of("info", "query"))
    assert calls <= 2
    waits.found = event["conference"]
    path, arguments = waits.serialize()
    assert path == "airflow_provider_dingconf.triggers.ConferenceTrigger"
    assert Sandbox.client_secret not in repr(arguments)
    again = ConferenceTrigger(**arguments)
    assert again.serialize() == (path, arguments)
    assert await event_of(again) == event
    assert len(sandbox.calls_of("info", "query")) == calls
