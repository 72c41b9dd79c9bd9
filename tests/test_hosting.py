"""Operators that create and close a meeting, and who was there."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from contextlib import closing
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowFailException, AirflowSkipException

from airflow_provider_dingconf.dingtalk.errors import (
    ConferenceNotFoundError,
    InvalidInputError,
    ResponseError,
    ServerError,
    ThrottledError,
)
from airflow_provider_dingconf.dingtalk.hosting import MEMBERS, ConferenceMember
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.operators import (
    CloseConferenceOperator,
    ConferenceMembersOperator,
    CreateConferenceOperator,
)
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("conn")
SYNC_TOO = pytest.mark.parametrize("face", ["sync", "async"], indirect=True)
"""Both run the same coroutine, so one test or two of each method show that waiting for it works."""

QPS = "Forbidden.AccessDenied.QpsLimitForApi"


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what returns the log, wherever the version of Airflow writes it."""
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.text + "".join(capfd.readouterr())


def create(**parameters: Any) -> Any:
    given = {"title": "Exam", "creator_id": "chris", **parameters}
    return CreateConferenceOperator(task_id="create", **given).execute({})


def close(conference_id: Any, creator_id: str = "chris", **parameters: Any) -> Any:
    given = {"conference_id": conference_id, "creator_id": creator_id, **parameters}
    return CloseConferenceOperator(task_id="close", **given).execute({})


def members(conference_id: Any, **parameters: Any) -> Any:
    return ConferenceMembersOperator(task_id="members", conference_id=conference_id, **parameters).execute({})


# Create


def test_a_meeting_is_created_for_one_call_and_its_xcom_names_it(sandbox: Sandbox) -> None:
    xcom = create(invite=["ann", "bo"])
    meeting = sandbox.conference(xcom["conference_id"])
    assert xcom == {
        "conference_id": meeting.conference_id,
        "room_code": meeting.room_code,
        "join_url": f"https://meeting.dingtalk.invalid/j/{meeting.room_code}",
        "title": "Exam",
    }
    assert (meeting.title, meeting.creator_id, meeting.status) == ("Exam", "chris", "started")
    assert meeting.invited == ["ann", "bo"]
    assert [call.name for call in sandbox.calls] == ["token", "create"]
    create(invite_creator=False)
    assert sandbox.calls[-1].json() == {"confTitle": "Exam", "inviteCaller": False, "userId": "chris"}


def test_the_password_is_handed_on_only_on_request_and_the_hosts_never(
    sandbox: Sandbox, logged: Callable[[], str]
) -> None:
    xcom = create(with_password=True)
    meeting = sandbox.conference(xcom["conference_id"])
    assert xcom["password"] == meeting.password
    log = logged()
    assert meeting.room_code in log
    shown = f"{json.dumps(create())} {log}"
    for made in sandbox.conferences.values():
        assert made.password not in shown
        assert made.host_password not in f"{shown} {xcom}"


LOST: dict[str, Any] = {"drop": True, "after": True}


@pytest.mark.parametrize("on_error", [None, {"systemError": "fail"}])
def test_a_create_whose_response_was_lost_is_not_repeated_and_says_what_may_exist(
    sandbox: Sandbox, on_error: Any
) -> None:
    sandbox.fail(Fault(call="create", **LOST))
    with pytest.raises(AirflowFailException, match="A meeting 'Exam' of chris may exist") as raised:
        create(on_error=on_error)
    assert "running_conferences()" in str(raised.value)
    assert len(sandbox.calls_of("create")) == len(sandbox.conferences) == 1


def test_a_server_error_may_have_created_a_meeting_too(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="create", code="systemError", after=True))
    with pytest.raises(AirflowFailException, match="may exist"):
        create()
    assert len(sandbox.calls_of("create")) == 1
    with pytest.raises(ServerError):  # if the user accepts a second meeting
        create(on_error={"systemError": "retry"})


def test_a_throttled_create_is_repeated_and_left_to_airflows_retries_since_it_took_no_effect(
    sandbox: Sandbox,
) -> None:
    sandbox.fail(Fault(call="create", code=QPS, times=2))
    with pytest.raises(ThrottledError) as raised:
        create(max_attempts=1)
    assert "may exist" not in str(raised.value)
    create()
    assert (len(sandbox.calls_of("create")), len(sandbox.conferences)) == (3, 1)


@pytest.mark.parametrize("fault", [{"code": "systemError"}, LOST], ids=["server error", "lost"])
def test_a_create_is_sent_once_there_is_a_token(sandbox: Sandbox, fault: dict[str, Any]) -> None:
    sandbox.fail(Fault(call="token", times=1, **fault))
    assert create()["conference_id"]
    assert [call.name for call in sandbox.calls] == ["token", "token", "create"]


def test_a_refusal_becomes_the_state_that_on_error_says(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="create", code="waterLimitError"))
    with pytest.raises(AirflowFailException, match="waterLimitError"):
        create()
    with pytest.raises(AirflowSkipException):
        create(on_error={"RefusedError": "skip"})
    xcom = create(on_error={"RefusedError": "succeed"})
    assert (xcom["conference_id"], xcom["error"]["code"]) == (None, "waterLimitError")
    assert close(xcom)["success"], "there is nothing to close"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"title": None}, "title: it is None, as a template or XCom without a value renders"),
        ({"title": " "}, "title: it is empty"),
        ({"creator_id": "None"}, "creator_id: it is 'None'"),
        ({"invite": "ann"}, "invite: expected a list of unionIds, got 'ann'"),
        ({"invite": ["ann", ""]}, "invite: it is empty"),
    ],
)
def test_a_parameter_that_a_template_renders_wrongly_is_an_error_before_any_call(
    sandbox: Sandbox, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(AirflowFailException) as raised:
        create(**parameters)
    assert said in str(raised.value)
    assert sandbox.calls == []


@pytest.mark.parametrize(
    "mistake",
    [{"with_password": "yes"}, {"invite_creator": 1}, {"on_error": {"x": "fail"}}, {"max_attempts": 0}],
    ids=str,
)
def test_a_mistake_is_an_error_when_the_dag_is_parsed(mistake: dict[str, Any]) -> None:
    for make in (create, partial(CreateConferenceOperator.partial, task_id="create")):
        with pytest.raises(InvalidInputError, match=next(iter(mistake))):
            make(**mistake)


def test_a_response_without_a_meeting_is_an_error_that_says_what_may_exist(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="create", body={"roomCode": "1", "hostPassword": "654321"}))
    with pytest.raises(AirflowFailException, match="a new meeting without conferenceId") as raised:
        create()
    assert "may exist" in str(raised.value)
    assert "654321" not in str(raised.value)


@pytest.mark.parametrize("raises", [False, True], ids=["on_kill", "handler raises"])
def test_a_create_that_is_terminated_closes_its_meeting(conn: Callable[..., None], raises: bool) -> None:
    task = CreateConferenceOperator(task_id="create", title="Exam", creator_id="chris")

    def handler(number: int, frame: Any) -> None:
        task.on_kill()
        if raises:  # as Airflow 2 does
            raise SystemExit

    def on_call(call: Any) -> None:
        if call.name == "create":
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with Sandbox(on_call=on_call) as sandbox:
            conn(host=sandbox.url)
            with pytest.raises(SystemExit):
                task.execute({})
            assert [made.status for made in sandbox.conferences.values()] == ["ended"]
    finally:
        signal.signal(signal.SIGTERM, before)


# Close


def test_a_meeting_is_closed_by_the_xcom_of_its_create_or_lock_and_its_id(sandbox: Sandbox) -> None:
    for made in (create(), {**create(), "action": "lock", "success": True}, create()["conference_id"]):
        meeting = made if isinstance(made, str) else made["conference_id"]
        result = {"action": "close", "success": True, "attempts": 1, "request_id": None}
        assert close(made) == {"conference_id": meeting, **result}
        assert sandbox.conference(meeting).status == "ended"


def test_a_close_whose_response_was_lost_is_repeated(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(creator_id="chris")
    sandbox.fail(Fault(call="close", times=1, **LOST))
    assert close(meeting)["success"]
    assert sandbox.conference(meeting).status == "ended"


def test_an_ended_meeting_counts_as_closed(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(creator_id="chris", status="ended")
    result = close(meeting)
    assert (result["success"], result["attempts"]) == (True, 1)
    assert result["request_id"] == sandbox.calls[-1].request_id
    with pytest.raises(AirflowFailException):
        close(meeting, on_error={"resourceClose": "fail"})


@pytest.mark.parametrize("xcom", [None, {"conference_id": None}])
def test_there_is_nothing_to_close_after_a_create_that_failed(
    sandbox: Sandbox, xcom: Any, logged: Callable[[], str]
) -> None:
    result = close(xcom)
    assert (result["conference_id"], result["success"]) == (None, True)
    assert "Nothing to close" in logged()
    assert sandbox.calls == []


def test_a_refused_close_fails_and_says_that_the_meeting_may_be_open(
    sandbox: Sandbox, logged: Callable[[], str]
) -> None:
    meeting = sandbox.create_conference(creator_id="chris")
    with pytest.raises(AirflowFailException, match="noPermission"):
        close(meeting, "ann")
    assert f"{meeting} may still be open" in logged()
    assert sandbox.conference(meeting).status == "started"
    result = close(meeting, "ann", on_error={"noPermission": "succeed"})
    assert (result["success"], result["error"]["code"]) == (False, "noPermission")


@pytest.mark.parametrize(
    ("operation", "given", "said"),
    [
        (close, ("", "chris"), "conference_id: "),
        (close, ("a/b", "chris"), "conference_id: "),
        (close, ("{'conference_id': 'c'}", "chris"), "a template rendered a list or an XCom as text"),
        (close, ("None", "chris"), "conference_id: "),
        (close, ("a", ""), "creator_id: "),
        (close, ({"id": "c", "title": "t"},), "its keys: 'id', 'title'"),
        (members, ({"id": "c", "title": "t"},), "its keys: 'id', 'title'"),
        (members, (None,), "conference_id: it is missing"),
    ],
)
def test_a_close_or_a_list_of_members_of_no_meeting_is_an_error_before_any_call(
    sandbox: Sandbox, operation: Any, given: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(AirflowFailException, match=said):
        operation(*given)
    assert sandbox.calls == []


# Who was there


def attended(sandbox: Sandbox) -> str:
    """Return a meeting that chris hosts, and that ann has left."""
    meeting = sandbox.create_conference(creator_id="chris")
    for user in ("chris", "ann"):
        sandbox.join(meeting, user)
    sandbox.leave(meeting, "ann")
    return meeting


def listed(face: Any, meeting: Any, **options: Any) -> list[ConferenceMember]:
    hook = face.hook(**options)

    async def awaited() -> list[ConferenceMember]:
        return [one async for one in hook.aconference_members(meeting)]

    return asyncio.run(awaited()) if face.awaited else list(hook.conference_members(meeting))


@SYNC_TOO
def test_a_member_is_a_typed_value_with_aware_times(face: Any, sandbox: Sandbox) -> None:
    meeting = attended(sandbox)
    host, guest = listed(face, meeting)
    assert (host.union_id, host.user_nick, host.conference_id) == ("chris", "chris", meeting)
    assert (host.host, host.co_host, host.outer_org_member, host.pstn_join) == (True, False, False, False)
    assert (host.attend_status, host.leave_time, host.job_number) == (3, None, None)
    assert (guest.union_id, guest.host, guest.attend_status) == ("ann", False, 6)
    assert guest.join_time is not None
    assert guest.leave_time is not None
    assert guest.join_time.tzinfo is guest.leave_time.tzinfo is timezone.utc
    assert guest.duration == guest.leave_time - guest.join_time
    assert timedelta(0) <= datetime.now(timezone.utc) - guest.leave_time < timedelta(hours=1)


def test_the_members_are_those_of_all_pages_and_each_page_is_requested_when_it_is_needed(
    sandbox: Sandbox,
) -> None:
    meeting = sandbox.create_conference()
    users = [f"user-{number}" for number in range(MEMBERS + 1)]
    for user in users:
        sandbox.join(meeting, user)
    with closing(DingTalkConferenceHook()) as hook:
        found = hook.conference_members({"conference_id": meeting})
        assert sandbox.calls == []
        assert next(found).union_id == users[0]
        assert len(sandbox.calls_of("members")) == 1
        assert [each.union_id for each in found] == users[1:]
        assert len(sandbox.calls_of("members")) == 2


@pytest.mark.parametrize("body", [{"memberModels": {}}, {"memberModels": ["ann"]}], ids=str)
def test_a_list_of_another_shape_is_an_error(face: Any, sandbox: Sandbox, body: Any) -> None:
    sandbox.fail(Fault(call="members", body=body))
    with pytest.raises(ResponseError):
        listed(face, "a", max_attempts=1)


@pytest.mark.parametrize("value", [None, "soon"])
def test_a_value_that_is_missing_or_invalid_is_none(face: Any, sandbox: Sandbox, value: Any) -> None:
    model = {"duration": value, "joinTime": value, "host": value if value is None else 1}
    sandbox.fail(Fault(call="members", body={"memberModels": [model]}))
    assert listed(face, "a") == [ConferenceMember(None, None)]


def test_the_attendance_list_is_an_xcom_of_plain_values(sandbox: Sandbox) -> None:
    meeting = attended(sandbox)
    host, guest = json.loads(json.dumps(members({"conference_id": meeting, "action": "lock"})))
    assert list(guest) == [
        "union_id", "user_nick", "conference_id", "attend_status", "join_time", "leave_time", "duration",
        "host", "co_host", "outer_org_member", "pstn_join", "job_number",
    ]  # fmt: skip
    assert (host["union_id"], host["host"], host["leave_time"]) == ("chris", True, None)
    spent = datetime.fromisoformat(guest["leave_time"]) - datetime.fromisoformat(guest["join_time"])
    assert guest["duration"] == spent.total_seconds()
    assert [each["union_id"] for each in members(meeting)] == ["chris", "ann"]


def test_an_attendance_list_that_is_refused_ends_as_on_error_says(face: Any) -> None:
    with pytest.raises(ConferenceNotFoundError):
        listed(face, "nobody")
    with pytest.raises(AirflowFailException, match="roomNotFound"):
        members("nobody")
    assert members("nobody", on_error={"roomNotFound": "succeed"}) == []
