"""The hook's meetings: by room code or schedule, what DingTalk says of them, and many at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from datetime import datetime, timezone
from itertools import pairwise
from statistics import median
from typing import Any

import pytest

from airflow_provider_dingconf.dingtalk.conferences import Conference, ConferenceStatus
from airflow_provider_dingconf.dingtalk.errors import (
    AddressBannedError,
    ConferenceClosedError,
    ConferenceNotFoundError,
    ConferenceNotRunningError,
    InvalidConferenceIdError,
    InvalidInputError,
    ParameterError,
    PermissionDeniedError,
    ResponseError,
)
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

pytestmark = pytest.mark.usefixtures("conn")
SYNC_TOO = pytest.mark.parametrize("face", ["sync", "async"], indirect=True)
"""Both run the same coroutine, so one test or two of each method show that waiting for it works."""

ROOM = "1234567890"


def create(sandbox: Sandbox, number: int) -> list[str]:
    return [sandbox.create_conference() for _ in range(number)]


# By room code, by schedule


@pytest.mark.parametrize("code", [ROOM, "123 456 7890", " 123-4567\u2013890\u00a0", int(ROOM)])
def test_a_meeting_is_locked_by_its_room_code_as_dingtalk_shows_it_and_unlocked_by_its_schedule(
    face: Any, sandbox: Sandbox, code: Any
) -> None:
    sandbox.create_conference("before", room_code=ROOM, status="ended")
    meeting = sandbox.create_conference("now", room_code=ROOM, schedule_conference_id="schedule-1")
    sandbox.create_conference("next", room_code=ROOM, status="not_started")
    assert face.do("lock_conference", room_code=code)["conference_id"] == meeting
    assert sandbox.conference(meeting).locked
    assert [call.name for call in sandbox.calls] == ["token", "roomCode", "lock"]
    assert face.do("unlock_conference", schedule_conference_id="schedule-1")["conference_id"] == meeting
    assert not sandbox.conference(meeting).locked


@SYNC_TOO
def test_the_meeting_that_a_block_has_locked_is_unlocked_whatever_its_room_code_stands_for_by_then(
    face: Any, sandbox: Sandbox
) -> None:
    meeting = sandbox.create_conference(room_code=ROOM)

    def inside() -> None:
        assert sandbox.conference(meeting).locked
        sandbox.create_conference(room_code=ROOM)

    face.inside(inside, room_code=ROOM)
    assert not sandbox.conference(meeting).locked
    assert len(sandbox.calls_of("roomCode")) == 1


@pytest.mark.parametrize("statuses", [[], ["ended", "not_started"]], ids=["none", "two"])
def test_a_room_code_without_a_running_meeting_is_an_error_that_lists_its_meetings(
    face: Any, sandbox: Sandbox, statuses: list[Any]
) -> None:
    made = [sandbox.create_conference(f"The {one}", room_code=ROOM, status=one) for one in statuses]
    with pytest.raises(ConferenceNotRunningError, match="no meeting is running") as raised:
        face.do("lock_conference", room_code=ROOM)
    assert raised.value.code == "confNotRunning"
    for meeting, status in zip(made, statuses, strict=True):
        assert f"{meeting} ('The {status}', {status})" in str(raised.value)
    assert sandbox.calls_of("lock") == []


def test_more_than_one_running_meeting_is_an_error_that_lists_them(face: Any, sandbox: Sandbox) -> None:
    made = [sandbox.create_conference(room_code=ROOM) for _ in range(25)]
    with pytest.raises(ConferenceNotRunningError, match=r"25 meetings are running.* and 20 more") as raised:
        face.do("get_conference", room_code=ROOM)
    assert made[0] in str(raised.value)
    assert len(sandbox.calls_of("roomCode")) == 2  # both pages were read


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({}, "conference_id: it is missing, or a template or XCom rendered to None"),
        ({"room_code": " - "}, "room_code: it is empty"),
        ({"room_code": "12/34"}, "cannot stand in a room code"),
        ({"schedule_conference_id": "a?b"}, "cannot stand in a schedule conference id"),
        ({"conference_id": "a", "room_code": "1"}, "conference_id and room_code are given; give one of"),
        ({"conference_id": {"id": "c", "title": "t"}}, "keys: 'id', 'title'"),
        ({"conference_id": {"conference_id": None, "success": False}}, "keys: 'conference_id', 'success'"),
    ],
)
@SYNC_TOO
def test_an_invalid_name_is_one_clear_error_before_any_call(
    face: Any, sandbox: Sandbox, named: dict[str, Any], said: str
) -> None:
    for method in ("lock_conference", "get_conference"):
        with pytest.raises(InvalidConferenceIdError) as raised:
            face.do(method, **named)
        assert said in str(raised.value)
    assert sandbox.calls == []


@SYNC_TOO
def test_dingtalk_refuses_a_room_code_of_letters(face: Any) -> None:
    with pytest.raises(ParameterError):
        face.do("find_conferences", room_code="not-digits")
    with pytest.raises(InvalidConferenceIdError, match="room_code: it is missing"):
        face.do("find_conferences")


# What DingTalk says of meetings


@SYNC_TOO
def test_a_meeting_is_a_typed_value_with_aware_times(face: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(
        "Release 7", room_code=ROOM, creator_id="chris", schedule_conference_id="schedule-1"
    )
    sandbox.end(meeting)
    found = face.do("get_conference", meeting)
    assert (found.conference_id, found.title, found.status) == (meeting, "Release 7", ConferenceStatus.ENDED)
    assert (found.room_code, found.creator_id, found.biz_type) == (ROOM, "chris", "3")
    assert found.schedule_conference_id == "schedule-1"
    assert found.join_url.endswith(f"/{ROOM}")
    now = datetime.now(timezone.utc)
    assert found.start_time.tzinfo is found.end_time.tzinfo is timezone.utc
    assert abs((now - found.start_time).total_seconds()) < 3600
    assert found.start_time <= found.end_time
    plain = found.as_dict()
    assert plain["status"] == "ended"
    assert datetime.fromisoformat(plain["start_time"]) == found.start_time


def test_an_unknown_meeting_is_a_not_found_error(face: Any) -> None:
    with pytest.raises(ConferenceNotFoundError) as raised:
        face.do("get_conference", "nobody")
    assert (raised.value.code, raised.value.http_status) == ("roomNotFound", 404)


@pytest.mark.parametrize(
    ("method", "call", "body"),
    [
        ("get_conference", "info", {}),
        ("get_conference", "info", {"confInfo": []}),
        ("get_conference", "info", {"confInfo": {"title": "no id", "status": 2}}),
        ("get_conference", "info", {"confInfo": {"conferenceId": [7], "status": 2}}),
        ("get_conference", "info", {"confInfo": {"conferenceId": "a", "status": 9}}),
        ("get_conference", "info", {"confInfo": {"conferenceId": "a", "status": [2]}}),
        ("find_conferences", "roomCode", {"conferenceList": "none"}),
        ("lock_conference", "token", {"expireIn": 7200}),
    ],
)
def test_a_response_of_another_shape_is_an_error_with_its_request_id(
    face: Any, sandbox: Sandbox, method: str, call: str, body: dict[str, Any]
) -> None:
    arguments = {"room_code": ROOM} if call == "roomCode" else {"conference_id": "m"}
    sandbox.fail(Fault(call=call, body={**body, "requestid": "R-1"}))
    with pytest.raises(ResponseError) as caught:
        face.do(method, hook=face.hook(max_attempts=1), **arguments)
    assert (caught.value.request_id, caught.value.http_status) == ("R-1", 200)


def test_a_call_is_retried_after_a_response_of_another_shape(face: Any, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="info", body={}, times=1))
    assert face.do("get_conference", "sandbox-open")
    assert len(sandbox.calls_of("info")) == 2


@pytest.mark.parametrize("invalid", [None, "soon"])
def test_an_invalid_time_is_none(face: Any, sandbox: Sandbox, invalid: Any) -> None:
    info = {"conferenceId": "a", "status": 2, "startTime": invalid}
    sandbox.fail(Fault(body={"confInfo": info}, call="info"))
    assert face.do("get_conference", "a") == Conference("a", "", ConferenceStatus.STARTED)


def running(face: Any, hook: Any, **options: Any) -> list[Conference]:
    async def awaited() -> list[Conference]:
        return [one async for one in hook.arunning_conferences(**options)]

    return asyncio.run(awaited()) if face.awaited else list(hook.running_conferences(**options))


@SYNC_TOO
def test_the_running_meetings_can_be_chosen_by_title_and_creator(face: Any, sandbox: Sandbox) -> None:
    wanted = sandbox.create_conference("Exam [1]", creator_id="chris")
    sandbox.create_conference("exam 2", creator_id="chris")
    sandbox.create_conference("Exam 3", creator_id="kim")
    found = running(face, face.hook(), title_pattern="^Exam", creator_id="chris")
    assert [one.conference_id for one in found] == [wanted]
    for wrong, said in {"": "it is empty", "(": r"'\(' is not a regular expression"}.items():
        with pytest.raises(InvalidInputError, match=f"title_pattern: {said}"):
            running(face, face.hook(), title_pattern=wrong)


def test_the_running_meetings_are_those_of_all_pages_and_each_page_is_requested_when_it_is_needed(
    sandbox: Sandbox,
) -> None:
    made = create(sandbox, 45)
    sandbox.create_conference("over", status="ended")
    with closing(DingTalkConferenceHook()) as hook:
        found = hook.running_conferences()
        assert sandbox.calls == []
        assert next(found).conference_id == made[0]
        assert len(sandbox.calls_of("list")) == 1
        assert [one.conference_id for one in found] == made[1:]
        assert len(sandbox.calls_of("list")) == 3


def test_a_list_that_goes_round_in_a_circle_is_an_error(face: Any, sandbox: Sandbox) -> None:
    body = {"onGoingConfList": [{"conferenceId": "a", "status": 2}], "hasMore": True, "nextToken": "same"}
    sandbox.fail(Fault(call="list", body=body))
    with pytest.raises(ResponseError, match="a page that follows itself"):
        running(face, face.hook(max_attempts=1))


def test_the_batch_query_returns_the_meetings_that_run(sandbox: Sandbox) -> None:
    made = create(sandbox, 150)
    sandbox.end(made[3])

    async def found() -> Any:
        return await (await DingTalkConferenceHook()._aconnect()).running_of(made)

    assert set(asyncio.run(found())) == {*made} - {made[3]}
    assert len(sandbox.calls_of("query")) == 2


# Many at once


def test_the_meetings_to_lock_may_come_from_another_method_of_the_hook(sandbox: Sandbox) -> None:
    made = sandbox.create_conference("Release")
    with closing(DingTalkConferenceHook()) as hook:
        found = hook.running_conferences(title_pattern="^Release$")
        (result,) = hook.lock_conferences(meeting.conference_id for meeting in found)
        found = hook.running_conferences(title_pattern="^Release$")
        (named,) = hook.unlock_conferences(conference_ids=(meeting.conference_id for meeting in found))
    assert (result.conference_id, result.success) == (named.conference_id, named.success) == (made, True)


@SYNC_TOO
def test_many_meetings_are_locked_for_one_call_each_and_one_for_the_token(
    face: Any, sandbox: Sandbox
) -> None:
    made = create(sandbox, 60)
    results = face.do("lock_conferences", [*made, made[0]], calls_per_second=2000)
    assert [one.conference_id for one in results] == made
    assert all(one.success and one.attempts == 1 for one in results)
    assert all(sandbox.conference(meeting).locked for meeting in made)
    assert (len(sandbox.calls_of("lock")), len(sandbox.calls_of("token"))) == (60, 1)
    assert all(one.success for one in face.do("unlock_conferences", made, calls_per_second=2000))
    assert not any(sandbox.conference(meeting).locked for meeting in made)


def test_every_meeting_is_locked_or_has_its_error_and_on_result_gets_each(
    face: Any, sandbox: Sandbox
) -> None:
    made = create(sandbox, 4)
    sandbox.fail(Fault(call="lock", path=made[2], code="systemError", times=1))
    ids = ["sandbox-ended", made[0], "sandbox-noPermission", *made[1:]]
    noted: list[str] = []
    results = face.do("lock_conferences", ids, on_result=lambda one: noted.append(one.conference_id))
    assert [one.conference_id for one in results] == ids
    assert sorted(noted) == sorted(ids)
    errors = {one.conference_id: type(one.error) for one in results if not one.success}
    assert errors == {"sandbox-ended": ConferenceClosedError, "sandbox-noPermission": PermissionDeniedError}
    assert [one.attempts for one in results] == [1, 1, 1, 1, 2, 1]
    assert results[0].request_id in {call.request_id for call in sandbox.calls}


def test_no_more_calls_are_under_way_than_concurrency_says(face: Any, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="lock", delay=0.3))
    face.do("lock_conferences", create(sandbox, 6), concurrency=3, calls_per_second=2000)
    began = sorted(call.time for call in sandbox.calls_of("lock"))
    under_way = [sum(other <= each < other + 0.3 for other in began) for each in began]
    assert max(under_way) == 3


def test_calls_are_spread_out(face: Any, sandbox: Sandbox) -> None:
    began = time.monotonic()
    face.do("lock_conferences", create(sandbox, 11), calls_per_second=20)
    assert time.monotonic() - began >= 0.49
    times = [call.time for call in sandbox.calls_of("lock")]
    assert median(later - earlier for earlier, later in pairwise(times)) > 0.02


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("addressBanned", AddressBannedError),
        ("Forbidden.AccessDenied.AccessTokenPermissionDenied", PermissionDeniedError),
    ],
)
def test_an_error_that_concerns_all_meetings_costs_no_call_for_each(
    face: Any, sandbox: Sandbox, code: str, kind: type
) -> None:
    sandbox.fail(Fault(call="lock", code=code))
    results = face.do("lock_conferences", [f"m-{number}" for number in range(100)], concurrency=5)
    assert [type(one.error) for one in results] == [kind] * 100
    assert len(sandbox.calls_of("lock")) <= 5


@pytest.mark.parametrize("max_attempts", [1, 5])
def test_a_wait_that_does_not_fit_into_the_hooks_time_is_not_begun_for_any(
    face: Any, sandbox: Sandbox, max_attempts: int
) -> None:
    sandbox.fail(Fault(call="lock", code="systemBusy", headers={"Retry-After": "300"}, times=1))
    hook = face.hook(max_attempts=max_attempts)
    results = face.do("lock_conferences", create(sandbox, 5), hook=hook, concurrency=1)
    assert [(one.attempts, one.error.retry_after) for one in results] == [(1, 300.0), *[(0, 300.0)] * 4]


@pytest.mark.parametrize(
    ("ids", "options", "said"),
    [
        (["ok", "a/b"], {}, "number 1 of the list, conference_id: 'a/b' has '/'"),
        (["ok", None], {}, "number 1 of the list, conference_id: it is missing"),
        ("abc", {}, "conference_ids: expected a list of conferenceIds, got a str"),
        (7, {}, "conference_ids: expected a list of conferenceIds, got a int"),
        (str, {}, "conference_ids: expected a list of conferenceIds, got a type"),
        ({"conference_id": "ok"}, {}, "conference_ids: expected a list of conferenceIds, got a dict"),
        (["ok"], {"concurrency": 0}, "concurrency: 0 is not"),
        (["ok"], {"calls_per_second": 0}, "calls_per_second: 0 is not"),
        (["ok"], {"calls_per_second": True}, "calls_per_second: True is not"),
        (["ok"], {"on_result": []}, "on_result: [] is not a function, or is an async one"),
        (["ok"], {"on_result": asyncio.sleep}, "is an async one"),
    ],
)
def test_an_invalid_list_or_limit_is_one_clear_error_before_any_call(
    face: Any, sandbox: Sandbox, ids: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError) as raised:
        face.do("lock_conferences", ids, **options)
    assert said in str(raised.value)
    assert sandbox.calls == []


def test_no_meetings_have_no_results_and_cost_no_call(face: Any, sandbox: Sandbox) -> None:
    assert face.do("lock_conferences", []) == []
    assert sandbox.calls == []
