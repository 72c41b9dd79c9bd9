"""A meeting by the name people know, what DingTalk tells of meetings, and many of them at once: the hook."""

from __future__ import annotations

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
    CredentialsError,
    DingTalkError,
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


# By room code, by schedule


@pytest.mark.parametrize("shown", ["1234567890", "123 456 7890", " 123-4567\u2013890\u00a0"])
def test_a_meeting_is_locked_by_its_room_code_as_dingtalk_shows_it(
    face: Any, sandbox: Sandbox, shown: str
) -> None:
    sandbox.create_conference("before", room_code="1234567890", status="ended")
    meeting = sandbox.create_conference("now", room_code="1234567890")
    sandbox.create_conference("next", room_code="1234567890", status="not_started")
    result = face.do("lock_conference", room_code=shown)
    assert result["conference_id"] == meeting
    assert sandbox.conference(meeting).locked
    assert [call.name for call in sandbox.calls] == ["token", "roomCode", "lock"]


def test_a_meeting_is_unlocked_by_its_schedule(face: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(schedule_conference_id="schedule-1")
    sandbox.conference(meeting).locked = True
    assert face.do("unlock_conference", schedule_conference_id="schedule-1")["conference_id"] == meeting
    assert not sandbox.conference(meeting).locked


@SYNC_TOO
def test_the_meeting_that_a_block_has_locked_is_unlocked_whatever_its_room_code_stands_for_by_then(
    face: Any, sandbox: Sandbox
) -> None:
    meeting = sandbox.create_conference(room_code="1234567890")

    def inside() -> None:
        assert sandbox.conference(meeting).locked
        sandbox.create_conference(room_code="1234567890")

    face.inside(inside, room_code="1234567890")
    assert not sandbox.conference(meeting).locked
    assert len(sandbox.calls_of("roomCode")) == 1


@pytest.mark.parametrize("statuses", [[], ["ended", "not_started"]])
def test_none_running_is_an_error_that_lists_them(face: Any, sandbox: Sandbox, statuses: list[Any]) -> None:
    made = [
        sandbox.create_conference(f"The {status}", room_code="1234567890", status=status)
        for status in statuses
    ]
    with pytest.raises(ConferenceNotRunningError, match="no meeting is running") as raised:
        face.do("lock_conference", room_code="1234567890")
    assert raised.value.code == "confNotRunning"
    for meeting, status in zip(made, statuses, strict=True):
        assert f"{meeting} ('The {status}', {status})" in str(raised.value)
    assert sandbox.calls_of("lock") == []


def test_more_than_one_running_is_an_error_that_lists_them(face: Any, sandbox: Sandbox) -> None:
    made = [sandbox.create_conference(room_code="1234567890") for _ in range(25)]
    with pytest.raises(ConferenceNotRunningError, match="25 meetings are running") as raised:
        face.do("get_conference", room_code="1234567890")
    assert str(made[0]) in str(raised.value)
    assert "and 20 more" in str(raised.value)
    assert len(sandbox.calls_of("roomCode")) == 2  # both pages were read


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({}, "conference_id: it is missing, or a template or XCom rendered to None"),
        ({"room_code": ""}, "room_code: it is empty"),
        ({"room_code": " - "}, "room_code: it is empty"),
        ({"room_code": 1234567890.0}, "room_code: expected a string, got 1234567890.0 of type float"),
        ({"room_code": "12/34"}, "cannot stand in a room code"),
        ({"schedule_conference_id": "a?b"}, "cannot stand in a schedule conference id"),
        ({"conference_id": "a", "room_code": "1"}, "conference_id and room_code are given; give one of"),
    ],
)
@SYNC_TOO
def test_a_wrong_name_is_one_clear_error_before_any_call(
    face: Any, sandbox: Sandbox, named: dict[str, Any], said: str
) -> None:
    for method in ("lock_conference", "get_conference"):
        with pytest.raises(InvalidConferenceIdError) as raised:
            face.do(method, **named)
        assert said in str(raised.value)
    assert sandbox.calls == []


# What DingTalk tells


@SYNC_TOO
def test_a_meeting_is_a_typed_value_with_aware_times(face: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(
        "Release 7", room_code="1234567890", creator_id="chris", schedule_conference_id="schedule-1"
    )
    sandbox.end(meeting)
    told = face.do("get_conference", meeting)
    assert (told.conference_id, told.title, told.status) == (meeting, "Release 7", ConferenceStatus.ENDED)
    assert (told.room_code, told.creator_id, told.biz_type) == ("1234567890", "chris", "3")
    assert told.schedule_conference_id == "schedule-1"
    assert told.join_url.endswith("/1234567890")
    now = datetime.now(timezone.utc)
    assert told.start_time.tzinfo is told.end_time.tzinfo is timezone.utc
    assert abs((now - told.start_time).total_seconds()) < 3600
    assert told.start_time <= told.end_time
    plain = told.as_dict()
    assert plain["status"] == "ended"
    assert datetime.fromisoformat(plain["start_time"]) == told.start_time


def test_an_unknown_meeting_is_a_not_found_error(face: Any) -> None:
    with pytest.raises(ConferenceNotFoundError) as raised:
        face.do("get_conference", "nobody")
    assert (raised.value.code, raised.value.http_status) == ("roomNotFound", 404)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"confInfo": []},
        {"confInfo": {"conferenceId": 7, "status": 2}},
        {"confInfo": {"conferenceId": "a", "status": 9}},
        {"confInfo": {"conferenceId": "a", "status": [2]}},
    ],
)
def test_a_response_of_another_shape_is_an_error(face: Any, sandbox: Sandbox, body: Any) -> None:
    sandbox.fail(Fault(call="info", body=body))
    with pytest.raises(ResponseError):
        face.do("get_conference", "a", hook=face.hook(max_attempts=1))


@pytest.mark.parametrize("time_told", [None, 0, -1, "soon", True, 1e30])
def test_an_invalid_time_is_none(face: Any, sandbox: Sandbox, time_told: Any) -> None:
    sandbox.fail(
        Fault(body={"confInfo": {"conferenceId": "a", "status": 2, "startTime": time_told}}, call="info")
    )
    assert face.do("get_conference", "a") == Conference("a", "", ConferenceStatus.STARTED)


def running(face: Any, hook: Any, **options: Any) -> list[Conference]:
    import asyncio

    async def awaited() -> list[Conference]:
        return [one async for one in hook.arunning_conferences(**options)]

    return asyncio.run(awaited()) if face.awaited else list(hook.running_conferences(**options))


def test_the_running_meetings_are_those_of_all_pages(face: Any, sandbox: Sandbox) -> None:
    made = [sandbox.create_conference(f"Exam {number}") for number in range(45)]
    sandbox.create_conference("over", status="ended")
    assert [one.conference_id for one in running(face, face.hook())] == made
    assert len(sandbox.calls_of("list")) == 3


@SYNC_TOO
def test_the_running_meetings_can_be_chosen_by_title_and_creator(face: Any, sandbox: Sandbox) -> None:
    wanted = sandbox.create_conference("Exam [1]", creator_id="chris")
    sandbox.create_conference("exam 2", creator_id="chris")
    sandbox.create_conference("Exam 3", creator_id="kim")
    found = running(face, face.hook(), title_pattern="^Exam", creator_id="chris")
    assert [one.conference_id for one in found] == [wanted]
    with pytest.raises(InvalidInputError, match="title_pattern: it is empty"):
        running(face, face.hook(), title_pattern="")
    with pytest.raises(InvalidInputError, match=r"title_pattern: '\(' is not a regular expression"):
        running(face, face.hook(), title_pattern="(")


def test_a_page_is_asked_for_when_it_is_wanted(conn: Any, sandbox: Sandbox) -> None:
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    for _ in range(21):
        sandbox.create_conference()
    found = DingTalkConferenceHook().running_conferences()
    assert sandbox.calls == []
    next(found)
    assert len(sandbox.calls_of("list")) == 1
    assert len(list(found)) == 20
    assert len(sandbox.calls_of("list")) == 2


def test_a_list_that_goes_round_in_a_circle_is_an_error(face: Any, sandbox: Sandbox) -> None:
    body = {"onGoingConfList": [{"conferenceId": "a", "status": 2}], "hasMore": True, "nextToken": "same"}
    sandbox.fail(Fault(call="list", body=body))
    with pytest.raises(ResponseError, match="a page that follows itself"):
        running(face, face.hook(max_attempts=1))


# Many at once


def test_the_meetings_to_lock_may_come_from_another_method_of_the_hook(sandbox: Sandbox) -> None:
    made = sandbox.create_conference("Release")
    with closing(DingTalkConferenceHook()) as hook:
        found = hook.running_conferences(title_pattern="^Release$")
        (result,) = hook.lock_conferences(meeting.conference_id for meeting in found)
    assert (result.conference_id, result.success) == (made, True)


@SYNC_TOO
def test_many_meetings_are_locked_for_one_call_each_and_one_for_the_token(
    face: Any, sandbox: Sandbox
) -> None:
    made = [sandbox.create_conference() for _ in range(60)]
    results = face.do("lock_conferences", [*made, made[0]], calls_per_second=2000)
    assert [one.conference_id for one in results] == made
    assert all(one.success and one.attempts == 1 for one in results)
    assert all(sandbox.conference(meeting).locked for meeting in made)
    assert (len(sandbox.calls_of("lock")), len(sandbox.calls_of("token"))) == (60, 1)
    assert all(one.success for one in face.do("unlock_conferences", made, calls_per_second=2000))
    assert not any(sandbox.conference(meeting).locked for meeting in made)


def test_every_meeting_is_tried_whatever_happens_to_the_others(face: Any, sandbox: Sandbox) -> None:
    made = [sandbox.create_conference() for _ in range(5)]
    ids = ["sandbox-ended", made[0], "sandbox-noPermission", made[1], "sandbox-flaky", *made[2:]]
    heard: list[str] = []
    results = face.do("lock_conferences", ids, on_result=lambda one: heard.append(one.conference_id))
    assert [one.conference_id for one in results] == ids
    assert sorted(heard) == sorted(ids)
    errors = {one.conference_id: type(one.error) for one in results if not one.success}
    assert errors == {"sandbox-ended": ConferenceClosedError, "sandbox-noPermission": PermissionDeniedError}
    assert next(one.attempts for one in results if one.conference_id == "sandbox-flaky") == 3
    assert results[0].request_id
    assert results[0].request_id in {call.request_id for call in sandbox.calls}


def test_no_more_are_under_way_than_asked_for(face: Any, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="lock", delay=0.3))
    ids = [sandbox.create_conference() for _ in range(12)]
    face.do("lock_conferences", ids, concurrency=3, calls_per_second=2000)
    began = sorted(call.time for call in sandbox.calls_of("lock"))
    under_way = [sum(other <= each < other + 0.3 for other in began) for each in began]
    assert max(under_way) == 3


def test_calls_are_spread_out(face: Any, sandbox: Sandbox) -> None:
    ids = [sandbox.create_conference() for _ in range(11)]
    began = time.monotonic()
    face.do("lock_conferences", ids, calls_per_second=20)
    assert time.monotonic() - began >= 0.49
    times = [call.time for call in sandbox.calls_of("lock")]
    assert median(later - earlier for earlier, later in pairwise(times)) > 0.02


def test_without_a_token_no_meeting_is_tried(face: Any, sandbox: Sandbox, conn: Any) -> None:
    conn(password="wrong")
    with pytest.raises(CredentialsError):
        face.do("lock_conferences", [f"m-{number}" for number in range(50)])
    assert [call.name for call in sandbox.calls] == ["token"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(call="lock", code="addressBanned"), AddressBannedError),
        (
            Fault(call="lock", code="Forbidden.AccessDenied.AccessTokenPermissionDenied"),
            PermissionDeniedError,
        ),
    ],
)
def test_an_error_that_concerns_all_is_not_met_again_for_each(
    face: Any, sandbox: Sandbox, fault: Fault, kind: type
) -> None:
    sandbox.fail(fault)
    results = face.do("lock_conferences", [f"m-{number}" for number in range(100)], concurrency=5)
    assert len(results) == 100
    assert {type(one.error) for one in results} == {kind}
    assert len(sandbox.calls_of("lock")) <= 5


@pytest.mark.parametrize(
    ("ids", "options", "said"),
    [
        (["ok", "a/b"], {}, "number 1 of the list, conference_id: 'a/b' has '/'"),
        (["ok", None], {}, "number 1 of the list, conference_id: it is missing"),
        ("abc", {}, "conference_ids: expected a list of conferenceIds, got a str"),
        (7, {}, "conference_ids: expected a list of conferenceIds, got a int"),
        (["ok"], {"concurrency": 0}, "concurrency: 0 is not"),
        (["ok"], {"calls_per_second": 0}, "calls_per_second: 0 is not"),
        (["ok"], {"calls_per_second": True}, "calls_per_second: True is not"),
    ],
)
def test_a_wrong_list_or_limit_is_one_clear_error_before_any_call(
    face: Any, sandbox: Sandbox, ids: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError) as raised:
        face.do("lock_conferences", ids, **options)
    assert said in str(raised.value)
    assert sandbox.calls == []


def test_none_of_no_meetings_is_nothing(face: Any, sandbox: Sandbox) -> None:
    assert face.do("lock_conferences", []) == []
    assert sandbox.calls == []


def test_the_batch_query_tells_which_meetings_are_running(conn: Any, sandbox: Sandbox) -> None:
    import asyncio

    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    made = [sandbox.create_conference() for _ in range(150)]
    sandbox.end(made[3])

    async def running() -> Any:
        return await (await DingTalkConferenceHook()._aconnect()).running_of(made)

    found = asyncio.run(running())
    assert set(found) == {*made} - {made[3]}
    assert len(sandbox.calls_of("query")) == 2


def test_a_wait_that_does_not_fit_into_the_hooks_time_is_not_begun_for_any(
    face: Any, sandbox: Sandbox
) -> None:
    sandbox.fail(Fault(call="lock", code="systemBusy", headers={"Retry-After": "30"}))
    made = [sandbox.create_conference() for _ in range(5)]
    results = face.do("lock_conferences", made, hook=face.hook(max_seconds=30), concurrency=1)
    assert [one.attempts for one in results] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("method", "call", "body"),
    [
        ("get_conference", "info", {"confInfo": {"title": "no id"}}),
        ("find_conferences", "roomCode", {"conferenceList": "none"}),
        ("lock_conference", "token", {"expireIn": 7200}),
    ],
)
def test_an_undocumented_response_keeps_its_request_id_and_is_retried(
    face: Any, sandbox: Sandbox, method: str, call: str, body: dict[str, Any]
) -> None:
    sandbox.create_conference(conference_id="m", room_code="1234567890")
    arguments = {"room_code": "1234567890"} if call == "roomCode" else {"conference_id": "m"}
    sandbox.fail(Fault(call=call, body={**body, "requestid": "R-1"}, times=1))
    with pytest.raises(ResponseError) as caught:
        face.do(method, hook=face.hook(max_attempts=1), **arguments)
    assert (caught.value.request_id, caught.value.http_status) == ("R-1", 200)
    sandbox.fail(Fault(call=call, body={**body, "requestid": "R-1"}, times=1))
    assert face.do(method, **arguments)


@SYNC_TOO
def test_an_invalid_room_code_is_refused_by_dingtalk(face: Any) -> None:
    with pytest.raises(ParameterError):
        face.do("find_conferences", room_code="not-digits")
    with pytest.raises(InvalidConferenceIdError, match="room_code: it is missing"):
        face.do("find_conferences")


# Any other call


@pytest.mark.parametrize(
    ("path", "path_params"),
    [("/v1.0/im/chats/{id}", {"id": "cid//Vc7N=="}), ("/v1.0/im/chats/cid%2F%2FVc7N%3D%3D", None)],
    ids=["a path parameter", "an encoded path"],
)
def test_a_path_parameter_stays_one_segment_on_the_wire(
    face: Any, sandbox: Sandbox, path: str, path_params: Any
) -> None:
    with pytest.raises(DingTalkError):  # the sandbox has no such call
        face.do("call", "GET", path, path_params=path_params)
    assert sandbox.calls[-1].path == "/v1.0/im/chats/cid%2F%2FVc7N%3D%3D"


def test_a_room_code_that_a_template_rendered_natively_is_taken(face: Any, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(room_code="1234567890")
    assert face.do("lock_conference", room_code=1234567890)["conference_id"] == meeting


@pytest.mark.parametrize("xcom", [{"id": "c", "title": "t"}, {"conference_id": None, "success": False}])
def test_an_xcom_without_a_conference_id_is_refused_with_its_keys(
    face: Any, sandbox: Sandbox, xcom: dict[str, Any]
) -> None:
    with pytest.raises(InvalidConferenceIdError) as raised:
        face.do("lock_conference", xcom)
    assert all(repr(key) in str(raised.value) for key in xcom)
    assert sandbox.calls == []
