"""Waiting in the triggerer: the tasks of one connection share their polls."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
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
from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError, ConnectionLostError, Outcome
from airflow_provider_dingconf.dingtalk.limits import CONCURRENCY
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from airflow_provider_dingconf.sensors import ConferenceSensor
from airflow_provider_dingconf.triggers import ConferenceTrigger, connect

pytestmark = pytest.mark.usefixtures("conn")

INTERVAL = 0.02


def trigger(
    meeting: str, status: str = "started", settings: PollSettings = QUICK, **options: Any
) -> ConferenceTrigger:
    made = QuickTrigger(status, {"conference_id": meeting}, poke_interval=INTERVAL, **options)
    made.poll_settings = settings
    return made


def ends(made: list[str], settings: PollSettings = QUICK) -> list[ConferenceTrigger]:
    """Return triggers that wait for the end of meetings that run."""
    return [trigger(one, "ended", settings, seen="started") for one in made]


async def rounds(sandbox: Sandbox, number: int) -> None:
    """Wait until so many rounds of batch queries are over."""
    while len(sandbox.calls_of("query")) < number:
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
    """Let all wait, do something meanwhile, and give what they say afterwards."""
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


async def test_a_hundred_waiting_tasks_cost_one_call_a_round(sandbox: Sandbox) -> None:
    made = [sandbox.create_conference() for _ in range(250)]
    async with waiting([trigger(meeting, "ended") for meeting in made]) as events:
        await rounds(sandbox, 3)
        assert [len(call.json()["conferenceIdList"]) for call in sandbox.calls_of("query")] == [100, 100, 50]
        assert sandbox.calls_of("info") == []
        for meeting in made:
            sandbox.end(meeting)
    assert [event["conference"]["conference_id"] for event in events] == made
    assert {event["conference"]["status"] for event in events} == {"ended"}
    assert len(sandbox.calls_of("info")) == 250  # once each, when it was not listed any more
    assert len(sandbox.calls_of("token")) == 1


async def test_a_meeting_that_has_not_started_is_not_asked_for_singly_in_each_round(sandbox: Sandbox) -> None:
    made = [sandbox.create_conference(status="not_started") for _ in range(5)]
    async with waiting([trigger(meeting, seen="not_started") for meeting in made]) as events:
        await rounds(sandbox, 4)
        assert sandbox.calls_of("info") == []
        for meeting in made:
            sandbox.start(meeting)
    assert [event["conference"]["status"] for event in events] == ["started"] * 5
    assert len(sandbox.calls_of("info")) == 5  # once each, when it was listed: for the rest of what is known


async def test_a_meeting_shorter_than_the_interval_is_noticed(sandbox: Sandbox) -> None:
    settings = replace(QUICK, first_query=2)
    meeting = sandbox.create_conference(status="not_started")
    async with waiting([trigger(meeting, "ended", settings, seen="not_started")]) as events:
        sandbox.start(meeting)
        sandbox.end(meeting)
    assert events[0]["conference"]["status"] == "ended"
    assert len(sandbox.calls_of("info")) == 1


async def test_a_meeting_of_which_nothing_is_known_is_asked_for_once(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(status="not_started")
    async with waiting([trigger(meeting)]) as events:
        await rounds(sandbox, 3)
        sandbox.start(meeting)
    assert events[0]["conference"]["conference_id"] == meeting
    assert len(sandbox.calls_of("info")) == 2  # and once when it was listed


async def test_a_start_waited_for_in_vain_ends_the_wait(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(status="not_started")

    (event,) = await events_of([trigger("sandbox-ended")])
    assert event["error"]["code"] == "confClosed"
    # Running when the wait for its start began anew, after a restart, and ended before the next round.
    sandbox.clear()
    async with waiting([trigger(meeting, seen="started")]) as events:
        await rounds(sandbox, 1)
        sandbox.end(meeting)
    assert events[0]["error"]["code"] == "confClosed"


async def test_those_who_wait_for_one_meeting_share_its_calls(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(room_code="1234567890", status="not_started")
    named = [QuickTrigger("started", {"room_code": "123 456 7890"}, poke_interval=INTERVAL)] * 5
    async with waiting(named) as events:
        while len(sandbox.calls_of("roomCode")) < 2:
            await asyncio.sleep(0.02)
        assert len(sandbox.calls_of("roomCode")) == 2
        sandbox.start(meeting)
    assert {event["conference"]["conference_id"] for event in events} == {meeting}
    assert len(sandbox.calls_of("roomCode")) == 3


async def test_one_id_that_dingtalk_refuses_does_not_end_the_wait_of_the_others(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="query", code="paramsError", times=1))
    async with waiting([trigger(meeting, "ended"), trigger("nobody", "ended")]) as events:
        await rounds(sandbox, 2)
        sandbox.end(meeting)
    assert events[0]["conference"]["status"] == "ended"
    assert events[1]["error"]["code"] == "roomNotFound"


async def test_a_fault_that_passes_ends_no_wait(sandbox: Sandbox, conn: Any) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(
        Fault(
            call="query",
            code="addressBanned",
            body={"status": 1111, "wait": 0.005, "punish": "deny"},
            times=1,
        )
    )
    async with waiting([trigger(meeting, "ended")]) as events:
        await rounds(sandbox, 2)
        sandbox.end(meeting)
    assert events[0]["conference"]["status"] == "ended"


@pytest.mark.parametrize("code", ["orgAccessForbidden", "Forbidden.AccessDenied.AccessTokenPermissionDenied"])
async def test_what_dingtalk_refuses_is_told_to_all(sandbox: Sandbox, code: str) -> None:
    sandbox.fail(Fault(call="query", code=code))

    events = await events_of([trigger("a"), trigger("b", "ended")])
    assert [event["error"]["code"] for event in events] == [code, code]
    assert events[0]["error"]["request_id"]


async def test_a_connection_that_is_wrong_is_told_to_all(sandbox: Sandbox, conn: Any) -> None:
    conn(login="")

    (event,) = await events_of([trigger("a")])
    assert "login (Client ID)" in event["error"]["message"]


# A batch query that fails


def batches(sandbox: Sandbox) -> list[int]:
    """Return how many meetings were in each batch query."""
    return [len(call.json()["conferenceIdList"]) for call in sandbox.calls_of("query")]


@pytest.mark.parametrize("code", ["paramsError", "resourceClose", "noPermission", "unknownUserError"])
@pytest.mark.parametrize("known", [True, False])
async def test_an_error_that_one_meeting_causes_is_told_to_its_tasks_alone(
    sandbox: Sandbox, by_rounds: Rounds, code: str, known: bool
) -> None:
    made = [sandbox.create_conference(conference_id=f"m-{number:03}") for number in range(100)]
    culprit = made[70]
    sandbox.fail(Fault(call="query", sent=f'"{culprit}"', code=code))
    if not known:
        sandbox.fail(Fault(call="info", path=f"/{culprit}$", code="noPermission"))
    async with waiting(ends(made, by_rounds.settings)) as events:
        await by_rounds.go_by()
        assert len(sandbox.calls_of("query")) <= 2 * 7 + 1
        assert {call.conference_id for call in sandbox.calls_of("info")} == {culprit}
        sandbox.clear()
        await by_rounds.go_by()
        assert batches(sandbox) == [99]
        assert {call.conference_id for call in sandbox.calls_of("info")} == ({culprit} if known else set())
        for meeting in made:
            sandbox.end(meeting)
        by_rounds.go_on()
    ended = [event["conference"]["conference_id"] for event in events if "conference" in event]
    assert ended == [one for one in made if known or one != culprit]
    assert [event["error"]["code"] for event in events if "error" in event] == ["noPermission"] * (not known)


async def test_a_batch_that_is_too_long_is_made_shorter(sandbox: Sandbox) -> None:
    made = [sandbox.create_conference(conference_id=f"m-{number:03}") for number in range(150)]
    sandbox.fail(Fault(call="query", sent="(m-[^m]*){41}", code="paramsError"))
    async with waiting(ends(made)) as events:
        while sum(size <= 40 for size in batches(sandbox)) < 6:
            await asyncio.sleep(0.02)
        assert sandbox.calls_of("info") == []
        for meeting in made:
            sandbox.end(meeting)
    assert {event["conference"]["status"] for event in events} == {"ended"}


async def test_a_refusal_that_does_not_come_again_changes_nothing(
    sandbox: Sandbox, by_rounds: Rounds
) -> None:
    made = [sandbox.create_conference(conference_id=f"m-{number:03}") for number in range(202)]
    sandbox.fail(Fault(call="query", sent=r"^[^,]*\[[^,]*,[^,]*\]", code="resourceClose", times=1))
    async with waiting(ends(made, by_rounds.settings)) as events:
        await by_rounds.go_by()
        sandbox.clear()
        await by_rounds.go_by()
        assert sorted(batches(sandbox)) == [2, 100, 100]
        for meeting in made:
            sandbox.end(meeting)
        by_rounds.go_on()
    assert {event["conference"]["status"] for event in events} == {"ended"}


async def test_those_that_break_each_batch_leave_the_others_together(
    sandbox: Sandbox, by_rounds: Rounds
) -> None:
    bad = [sandbox.create_conference(conference_id=f"bad-{number}") for number in range(2)]
    made = [sandbox.create_conference(conference_id=f"m-{number:03}") for number in range(20)]
    sandbox.fail(Fault(call="query", sent="bad-", code="unknownUserError"))
    async with waiting(ends(bad, by_rounds.settings)) as early:
        while len(sandbox.calls_of("info")) < 4:
            await by_rounds.go_by()
        async with waiting(ends(made, by_rounds.settings)) as late:
            await asyncio.sleep(0)  # they wait by now
            sandbox.clear()
            await by_rounds.go_by()
            assert batches(sandbox) == [20]
            assert {call.conference_id for call in sandbox.calls_of("info")} <= set(bad)
            for meeting in [*bad, *made]:
                sandbox.end(meeting)
            by_rounds.go_on()
    assert {event["conference"]["status"] for event in [*early, *late]} == {"ended"}


async def test_an_outage_costs_one_call_a_round_and_few_calls_after_it(
    sandbox: Sandbox, by_rounds: Rounds
) -> None:
    made = [sandbox.create_conference() for _ in range(100)]
    sandbox.fail(Fault(call="query", code="systemError"))
    async with waiting(ends(made, by_rounds.settings)) as events:
        await by_rounds.go_by(12)
        assert len(sandbox.calls_of("query")) == 12
        sandbox.heal()
        sandbox.clear()
        await by_rounds.go_by(2)
        assert batches(sandbox)[-1] == 100
        assert len(sandbox.calls_of("query", "info")) <= 12
        for meeting in made:
            sandbox.end(meeting)
        by_rounds.go_on()
    assert {event["conference"]["status"] for event in events} == {"ended"}


@pytest.mark.parametrize("code", ["roomNotFound", "confClosed"])
async def test_a_wait_that_an_error_does_not_end_costs_no_single_call_in_each_round(
    sandbox: Sandbox, code: str
) -> None:
    status = "not_started" if code == "roomNotFound" else "ended"
    made = [sandbox.create_conference(status=status) for _ in range(5)]
    if code == "roomNotFound":
        sandbox.fail(Fault(call="info", code=code))
    with suppress(asyncio.CancelledError):
        async with waiting([trigger(one, on_error={code: "retry"}) for one in made]):
            await rounds(sandbox, 5)
            assert len(sandbox.calls_of("info")) == 5
            raise asyncio.CancelledError


async def test_what_concerns_all_is_in_no_task_log_and_what_concerns_one_is_in_its_own(
    sandbox: Sandbox,
) -> None:
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="the triggerer")
    said: list[tuple[str, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((whose.get(), record.getMessage()))

    first, second = (sandbox.create_conference(status="not_started") for _ in range(2))
    sandbox.fail(Fault(call="query", code="systemError", times=1))
    sandbox.fail(Fault(call="info", path=second, code="roomNotFound", times=1))

    async def wait(meeting: str, name: str, seen: str | None) -> dict[str, Any]:
        whose.set(name)
        return await event_of(trigger(meeting, seen=seen, on_error={"roomNotFound": "retry"}))

    handler = Handler()
    log.addHandler(handler)
    try:
        waits = asyncio.gather(wait(first, "first", "not_started"), wait(second, "second", None))
        await rounds(sandbox, 3)
        for meeting in (first, second):
            sandbox.start(meeting)
        await waits
    finally:
        log.removeHandler(handler)
    assert {who for who, what in said if "systemError" in what} == {"the triggerer"}
    assert {who for who, what in said if "roomNotFound" in what} == {"second"}


@pytest.mark.parametrize(
    ("interval", "asked", "pause"), [(0, 0, 1.0), (5, 2, 5), (5, 7, 7), (5, 7200, 3_600)]
)
async def test_a_round_begins_after_the_interval_or_when_dingtalk_said(
    sandbox: Sandbox, interval: float, asked: float, pause: float
) -> None:
    pauses: list[float] = []

    async def record(seconds: float) -> None:
        pauses.append(seconds)

    sandbox.fail(Fault(call="query", code="systemBusy", headers={"Retry-After": str(asked)}, times=1))
    meeting = sandbox.create_conference(status="not_started")
    poll = Poll.of("x", interval, partial(connect, "dingtalk_default"), PollSettings(pause=record))
    named = check_reference(meeting), ConferenceStatus.STARTED, ConferenceStatus.NOT_STARTED
    waiting = asyncio.create_task(poll.wait(*named))
    await rounds(sandbox, 3)
    waiting.cancel()
    assert pauses[:3] == [max(interval, 1.0), pause, max(interval, 1.0)]


@pytest.mark.parametrize("patient", [True, False])
async def test_a_client_that_cannot_be_made_for_now_is_waited_for_unless_on_error_says_otherwise(
    sandbox: Sandbox, patient: bool
) -> None:
    meeting = sandbox.create_conference()
    failures = [ConnectionLostError("no such file", code="connectionLost")] * 2

    async def flaky() -> Any:
        if failures:
            raise failures.pop()
        return await connect("dingtalk_default")

    outcomes = {} if patient else {"connectionLost": Outcome.FAIL}
    wait = Poll.of("x", INTERVAL, flaky, QUICK).wait(
        check_reference(meeting), ConferenceStatus.STARTED, on_error=outcomes
    )
    if patient:
        assert (await wait).conference_id == meeting
    else:
        with pytest.raises(ConnectionLostError):
            await wait


async def test_where_no_batch_query_works_the_meetings_are_asked_for_singly(sandbox: Sandbox) -> None:
    made = [sandbox.create_conference(conference_id=f"m-{number:03}") for number in range(100)]
    sandbox.fail(Fault(call="query", code="noPermission"))
    async with waiting(ends(made)) as events:
        while len(sandbox.calls_of("info")) < 100:
            await asyncio.sleep(0.02)
        assert len(sandbox.calls_of("query")) <= 199  # once
        sandbox.clear()
        while len(sandbox.calls_of("info")) < 100:
            await asyncio.sleep(0.02)
        assert sandbox.calls_of("query") == []
        for meeting in made:
            sandbox.end(meeting)
    assert {event["conference"]["status"] for event in events} == {"ended"}


@pytest.mark.parametrize("number", [0, 3, 9])
@pytest.mark.parametrize(
    "wrong",
    [
        Fault(call="query", code="systemError"),
        Fault(call="query", body={"infos": [{"conferenceId": "m"}]}),
    ],
    ids=["systemError", "unreadable"],
)
async def test_a_meeting_that_keeps_a_batch_from_being_answered_holds_up_no_other(
    sandbox: Sandbox, wrong: Fault, number: int
) -> None:
    made = [sandbox.create_conference(conference_id=f"m-{number:02}") for number in range(10)]
    culprit = made[number]
    sandbox.fail(replace(wrong, sent=f'"{culprit}"'))
    async with waiting(ends(made)) as events:
        for meeting in made:
            sandbox.end(meeting)
    assert {event["conference"]["status"] for event in events} == {"ended"}
    assert len(sandbox.calls_of("query")) <= 8 + 2 * 2 * 4


REFUSE_ALL = {
    "systemError": Fault(code="systemError"),
    "systemBusy": Fault(code="systemBusy"),
    "throttled": Fault(code="Forbidden.AccessDenied.QpsLimitForApi", headers={"Retry-After": "0"}),
    "bad gateway": Fault(status=502, body="<html>"),
    "not JSON": Fault(code="unreadableAnswer"),
}


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        *(("query", fault) for fault in REFUSE_ALL.values()),
        ("query", Fault(drop=True)),
        ("info", REFUSE_ALL["systemError"]),
        ("info", REFUSE_ALL["systemBusy"]),
    ],
    ids=[*REFUSE_ALL, "hung up", "singly: systemError", "singly: systemBusy"],
)
async def test_a_round_ends_at_the_first_sign_that_dingtalk_takes_no_calls(
    sandbox: Sandbox, by_rounds: Rounds, call: str, fault: Fault
) -> None:
    made = [sandbox.create_conference(status="not_started") for _ in range(250)]
    seen = "not_started" if call == "query" else None
    sandbox.fail(replace(fault, call=call))
    async with waiting([trigger(one, seen=seen, settings=by_rounds.settings) for one in made]) as events:
        await by_rounds.go_by()
        first = len(sandbox.calls_of(call))
        assert first == 1 if call == "query" else 1 <= first <= CONCURRENCY  # those that were on their way
        for number in (first + 1, first + 2):
            await by_rounds.go_by()
            assert len(sandbox.calls_of(call)) == number
        if call == "query":  # each round has begun with those that were not asked for
            asked = [set(one.json()["conferenceIdList"]) for one in sandbox.calls_of(call)]
            assert set.union(*asked) == set(made)
        else:
            assert len({one.conference_id for one in sandbox.calls_of(call)}) == first + 2
        sandbox.heal()
        for meeting in made:
            sandbox.start(meeting)
        by_rounds.go_on()
    assert {event["conference"]["status"] for event in events} == {"started"}


async def test_a_round_that_dingtalk_ends_goes_on_where_it_ended(sandbox: Sandbox) -> None:
    """Of three batches and what follows them each round gets through one call."""
    made = [sandbox.create_conference() for _ in range(250)]
    for meeting in made[:120]:
        sandbox.end(meeting)
    for _ in range(130):  # the calls of the rounds are good, bad, good, bad, and so on
        sandbox.fail(Fault(call="query", delay=0.001, times=1))
        sandbox.fail(Fault(call="query", code="systemBusy", times=1))

    events = await events_of(ends(made[:120]))
    assert {event["conference"]["status"] for event in events} == {"ended"}


async def test_polls_keep_to_the_connections_calls_per_second(sandbox: Sandbox, conn: Any) -> None:
    conn(extra={"calls_per_second": 40})
    made = [sandbox.create_conference(conference_id=f"m-{number}") for number in range(20)]

    await events_of([trigger(meeting) for meeting in made])
    times = [call.time for call in sandbox.calls_of("info", "query")]
    assert len(times) == 1 + 20
    assert times[-1] - times[0] > 0.9 * 20 / 40


class Limited:
    """A client whose rate limiter the test sees through."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.limiter = self
        self.turns = 0

    async def wait(self) -> None:
        self.turns += 1
        await asyncio.sleep(self.turns / 20)

    async def __aenter__(self) -> Any:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.__aexit__(*exc_info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


async def test_each_call_waits_for_its_turn_and_is_not_made_once_the_round_has_ended(
    sandbox: Sandbox, by_rounds: Rounds
) -> None:
    made = [sandbox.create_conference(status="not_started") for _ in range(15)]
    sandbox.fail(Fault(call="query", body={"infos": []}))
    sandbox.fail(Fault(call="info", delay=0.0, times=2))
    sandbox.fail(Fault(call="info", code="systemBusy", times=1))
    clients: list[Limited] = []

    async def limited() -> Any:
        clients.append(Limited(await connect("dingtalk_default")))
        return clients[-1]

    poll = Poll.of("x", INTERVAL, limited, by_rounds.settings)
    waits = asyncio.gather(*(poll.wait(check_reference(one), ConferenceStatus.STARTED) for one in made))
    await by_rounds.go_by()
    waits.cancel()
    assert len(sandbox.calls_of("query")) == 1
    assert len(sandbox.calls_of("info")) == 3
    assert clients[0].turns == 1 + 15


async def test_a_token_that_is_refused_is_renewed_within_the_call(
    sandbox: Sandbox, by_rounds: Rounds
) -> None:
    meeting = sandbox.create_conference()
    async with waiting(ends([meeting], by_rounds.settings)) as events:
        await by_rounds.go_by()
        sandbox.revoke_tokens()
        await by_rounds.go_by()
        assert [call.status for call in sandbox.calls_of("query")] == [200, 400, 200]
        sandbox.end(meeting)
        by_rounds.go_on()
    assert events[0]["conference"]["status"] == "ended"


async def test_a_wait_goes_on_after_an_error_that_on_error_retries(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(conference_id="later", status="not_started")
    sandbox.fail(Fault(call="info", code="roomNotFound"))
    patient = trigger(meeting, on_error={"roomNotFound": "retry"})
    hasty = trigger(meeting)
    async with waiting([patient, hasty]) as events:
        while len(sandbox.calls_of("info")) < 2:
            await asyncio.sleep(0.02)
        sandbox.heal()
        sandbox.start(meeting)
    assert events[0]["conference"]["status"] == "started"
    assert events[1]["error"]["code"] == "roomNotFound"


@pytest.mark.parametrize("call", ["query", "info"])
@pytest.mark.parametrize("code", ["systemError", "systemBusy"])
async def test_an_error_that_passes_ends_the_wait_where_on_error_says_so(
    sandbox: Sandbox, call: str, code: str
) -> None:
    meeting = sandbox.create_conference(status="not_started")
    seen = "not_started" if call == "query" else None
    sandbox.fail(Fault(call="any", path="/videoConferences/", code=code))

    (event,) = await events_of([trigger(meeting, seen=seen, on_error={code: "fail"})])
    assert event["error"]["code"] == code


@pytest.mark.parametrize("code", ["orgAccessForbidden", "Forbidden.AccessDenied.ApiCountLimitForOrg"])
async def test_an_error_that_concerns_every_meeting_costs_one_call(sandbox: Sandbox, code: str) -> None:
    body = {"code": code, "message": code, "requestid": "R-1"}
    sandbox.fail(Fault(status=403, body=body, path="/videoConferences/"))

    events = await events_of([trigger(f"m-{one}") for one in range(250)])
    assert {event["error"]["code"] for event in events} == {code}
    assert len(sandbox.calls_of("query", "info")) == 1


async def test_waits_that_go_on_after_an_error_that_concerns_all_cost_one_call_a_round(
    sandbox: Sandbox, by_rounds: Rounds
) -> None:
    made = [sandbox.create_conference(status="not_started") for _ in range(250)]
    sandbox.fail(Fault(code="orgAccessForbidden", path="/videoConferences/"))
    outcomes = {"orgAccessForbidden": "retry"}

    triggers = [trigger(one, settings=by_rounds.settings, on_error=outcomes) for one in made]
    async with waiting(triggers) as events:
        for number in range(1, 5):
            await by_rounds.go_by()
            assert len(sandbox.calls_of("query", "info")) == number
        sandbox.heal()
        for meeting in made:
            sandbox.start(meeting)
        by_rounds.go_on()
    assert {event["conference"]["status"] for event in events} == {"started"}


# The meeting that is told of


NAMES = {"join_url", "creator_id", "creator_nick", "room_code", "biz_type"}


async def test_the_meeting_is_the_same_whoever_has_found_it(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(status="not_started", schedule_conference_id="s-1")
    async with waiting([trigger(meeting, seen="not_started")]) as events:
        await rounds(sandbox, 1)
        sandbox.start(meeting)
    (event,) = events
    poked = ConferenceSensor(task_id="x", conference_id=meeting).poke({})
    assert event["conference"] == poked.xcom_value
    assert all(event["conference"][name] for name in NAMES)
    assert len(sandbox.calls_of("info")) == 2


@pytest.mark.parametrize("code", ["systemError", "noPermission", "roomNotFound"])
async def test_where_the_rest_is_not_told_the_wait_is_over_all_the_same(sandbox: Sandbox, code: str) -> None:
    made = [sandbox.create_conference(status="not_started") for _ in range(30)]
    sandbox.fail(Fault(call="info", code=code))
    async with waiting([trigger(meeting, seen="not_started") for meeting in made]) as events:
        await rounds(sandbox, 1)
        for meeting in made:
            sandbox.start(meeting)
    assert [event["conference"]["conference_id"] for event in events] == made
    assert {event["conference"]["join_url"] for event in events} == {None}
    assert len(sandbox.calls_of("query")) <= 3  # in the round that found them


# What goes wrong before a call, or in a round


async def test_a_connection_that_cannot_be_looked_up_is_looked_up_again(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    meeting = sandbox.create_conference()
    lookups: list[str] = []
    usual = connection_hook.get_async_connection

    async def flaky(conn_id: str, hook: Any = None) -> Any:
        lookups.append(conn_id)
        if len(lookups) < 3:
            raise RuntimeError("the API server said 500, for s3cret")
        return await usual(conn_id, hook=hook)

    monkeypatch.setattr(connection_hook, "get_async_connection", flaky)
    async with waiting(ends([meeting])) as events:
        await rounds(sandbox, 1)
        sandbox.end(meeting)
    assert events[0]["conference"]["status"] == "ended"
    assert "dingtalk_default could not be looked up (RuntimeError)" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_connection_that_is_not_defined_ends_the_wait(airflow_db: None, sandbox: Sandbox) -> None:
    missing = QuickTrigger("started", {"conference_id": "a"}, "nowhere", poke_interval=INTERVAL)
    with pytest.raises(AirflowNotFoundException, match="nowhere"):
        await event_of(missing)


@pytest.mark.parametrize("method", ["running_of", "get_conference"])
async def test_an_unexpected_error_fails_those_whom_it_meets(sandbox: Sandbox, method: str) -> None:
    made = sandbox.create_conference(status="not_started"), sandbox.create_conference(room_code="1234567890")

    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    async def connect_to_broken() -> Any:
        client = await connect("dingtalk_default")
        setattr(client, method, broken)
        return client

    poll = Poll.of("x", INTERVAL, connect_to_broken, QUICK)
    named = check_reference(made[0]), check_reference(room_code="1234567890")
    waits = [poll.wait(one, ConferenceStatus.STARTED) for one in named]
    first, second = await asyncio.gather(*waits, return_exceptions=True)
    assert isinstance(first, ZeroDivisionError)
    assert second.conference_id == made[1]


async def test_nobody_waits_for_rounds_that_were_ended_from_outside(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    before = asyncio.all_tasks()
    first = asyncio.ensure_future(event_of(trigger(meeting, "ended")))
    await rounds(sandbox, 1)
    for task in asyncio.all_tasks() - before - {first}:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    sandbox.end(meeting)
    assert (await event_of(trigger(meeting, "ended")))["conference"]["status"] == "ended"


async def test_one_of_two_that_wait_for_a_meeting_is_cancelled_and_the_other_waits_on(
    sandbox: Sandbox,
) -> None:
    meeting = sandbox.create_conference()
    first, second = (asyncio.ensure_future(event_of(trigger(meeting, "ended"))) for _ in range(2))
    await rounds(sandbox, 1)
    first.cancel()
    sandbox.end(meeting)
    assert (await second)["conference"]["status"] == "ended"


async def test_nothing_is_kept_when_nobody_waits_any_more(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="query", code="resourceClose"))
    async with waiting([trigger(meeting, "ended")]):
        while len(sandbox.calls_of("info")) < 2:
            await asyncio.sleep(0.02)
        sandbox.end(meeting)
    await asyncio.sleep(INTERVAL)
    gc.collect()
    assert not [loop for loop, *_ in Poll.shared if loop is asyncio.get_running_loop()]


def test_two_event_loops_share_nothing(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    events: list[dict[str, Any]] = []

    def wait() -> None:
        events.append(asyncio.run(event_of(trigger(meeting, "ended"))))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    asyncio.run(rounds(sandbox, 4))
    sandbox.end(meeting)
    for thread in threads:
        thread.join(PATIENCE)
    assert [event["conference"]["status"] for event in events] == ["ended", "ended"]


async def test_a_trigger_that_is_cancelled_polls_no_more(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(event_of(trigger(meeting, "ended")))
    await rounds(sandbox, 1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    made = len(sandbox.calls)
    await asyncio.sleep(3 * INTERVAL)
    assert asyncio.all_tasks() == before
    assert len(sandbox.calls) == made


async def test_a_wait_that_begins_after_the_last_one_was_given_up_polls_again(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    first = asyncio.ensure_future(event_of(trigger(meeting, "ended")))
    await rounds(sandbox, 1)
    first.cancel()
    second = asyncio.ensure_future(event_of(trigger(meeting, "ended")))
    sandbox.end(meeting)
    assert (await second)["conference"]["status"] == "ended"


async def test_the_poll_serves_code_of_ones_own(sandbox: Sandbox) -> None:
    poll = Poll.of("x", INTERVAL, partial(connect, "dingtalk_default"), QUICK)
    with pytest.raises(ConferenceClosedError):
        await poll.wait(check_reference("sandbox-ended"), ConferenceStatus.STARTED)


# The delay after a start


def started(seconds_ago: float | None) -> Fault:
    """Let the meeting have started so many seconds ago, or nobody knows when."""
    facts = {"conferenceId": "m", "status": 2, "title": "Weekly"}
    if seconds_ago is not None:
        facts["startTime"] = int((time.time() - seconds_ago) * 1000)
    return Fault(call="info", body={"confInfo": facts})


@pytest.mark.parametrize(("ago", "left"), [(600.0, 0.0), (299.6, 0.4), (None, 0.2)])
async def test_a_wait_with_a_delay_ends_so_long_after_the_start_without_further_calls(
    sandbox: Sandbox, ago: float | None, left: float
) -> None:
    sandbox.fail(started(ago))
    began = time.monotonic()
    event = await event_of(trigger("m", delay=300.0 if ago else left))
    assert event["conference"]["conference_id"] == "m"
    assert time.monotonic() - began > left - 0.1
    assert len(sandbox.calls_of("info", "query")) <= 2


async def test_a_meeting_that_has_started_when_the_wait_begins_costs_no_call_in_the_triggerer(
    sandbox: Sandbox,
) -> None:
    sandbox.fail(started(299.9))
    found = await event_of(trigger("m"))
    made = len(sandbox.calls)
    again = QuickTrigger("started", {"conference_id": "m"}, delay=300.0, found=found["conference"])
    assert await event_of(QuickTrigger(**again.serialize()[1])) == found
    assert len(sandbox.calls) == made


def test_a_trigger_survives_its_way_through_the_database(conn: Any) -> None:
    made = ConferenceTrigger("ended", {"room_code": "1"}, "other", 5.0, "started")
    path, arguments = made.serialize()
    assert path == "airflow_provider_dingconf.triggers.ConferenceTrigger"
    assert ConferenceTrigger(**arguments).serialize() == (path, arguments)
    assert Sandbox.client_secret not in repr(arguments)
