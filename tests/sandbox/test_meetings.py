"""Meetings: locking, unlocking, joining, and the calls that read, create and close them."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

from .conftest import CONFERENCES, TOKEN_HEADER, Caller, code

LIST = "/v1.0/conference/orgConferences"
QUERY = f"{CONFERENCES}/query"
CREATED = {"userId": "chris", "confTitle": "Exam", "inviteUserIds": ["ann", "ben"]}
WRONG = (400, "paramsError")


def test_nobody_joins_a_locked_meeting_until_it_is_unlocked(sandbox: Sandbox, caller: Caller) -> None:
    meeting = sandbox.create_conference("All hands")
    for user in ("early", "gone"):
        assert sandbox.join(meeting, user)
    for _ in range(2):  # a lock and an unlock can be repeated
        response = caller.lock(meeting)
        assert (response.status_code, response.json()) == (200, {"success": True})
        assert sandbox.conference(meeting).locked
    sandbox.leave(meeting, "gone")
    assert [sandbox.join(meeting, user) for user in ("early", "gone", "late")] == [True, False, False]
    for _ in range(2):
        assert caller.lock(meeting, "unlock").json() == {"success": True}
        assert not sandbox.conference(meeting).locked
    assert all(sandbox.join(meeting, user) for user in ("gone", "late"))
    assert sandbox.conference(meeting).participants == ["early", "gone", "late"]
    assert sandbox.conference(meeting).refused == ["gone", "late"]


def test_a_meeting_can_be_joined_and_locked_only_while_it_runs(sandbox: Sandbox, caller: Caller) -> None:
    meeting = sandbox.create_conference(status="not_started")
    assert not sandbox.join(meeting, "ann")
    assert code(caller.lock(meeting)) == (400, "commandError")
    sandbox.start(meeting)
    assert sandbox.join(meeting, "ann")
    assert caller.lock(meeting).status_code == 200
    sandbox.end(meeting)
    assert not sandbox.join(meeting, "ben")
    assert [code(caller.lock(meeting, action)) for action in ("lock", "unlock")] == [(400, "confClosed")] * 2
    with pytest.raises(ValueError, match="has ended"):
        sandbox.start(meeting)
    with pytest.raises(KeyError):
        sandbox.conference("nosuchmeeting")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"action": "lock"}', "text/plain"),
        (b'{"action": "lock"}', None),
        (b"action=lock", "application/x-www-form-urlencoded"),
        *[
            (body, "application/json")
            for body in (b"{", b"\xff", b'["lock"]', b"{}", b'{"action": "Lock"}', b'{"action": ["lock"]}', b"")
        ],
    ],
)  # fmt: skip
def test_a_malformed_lock_is_refused(
    sandbox: Sandbox, caller: Caller, body: bytes, content_type: Any
) -> None:
    path = f"{CONFERENCES}/{sandbox.create_conference()}/lock"
    assert code(caller.call("POST", path, data=body, headers={"Content-Type": content_type})) == WRONG


@pytest.mark.parametrize(
    ("method", "path", "body", "refusal"),
    [
        ("POST", f"{CONFERENCES}/nosuch/lock", {"action": "lock"}, WRONG),
        ("GET", f"{CONFERENCES}/nosuch", None, (404, "roomNotFound")),
        ("GET", f"{CONFERENCES}/nosuch/members", None, (404, "roomNotFound")),
        ("DELETE", f"{CONFERENCES}/nosuch?unionId=chris", None, WRONG),
        ("POST", QUERY, {}, WRONG),
        ("POST", QUERY, {"conferenceIdList": []}, WRONG),
        ("POST", QUERY, {"conferenceIdList": "x"}, WRONG),
        ("POST", QUERY, {"conferenceIdList": [1]}, WRONG),
        ("GET", f"{LIST}?maxResults=many", None, (400, "paramError")),
        ("GET", f"{LIST}?maxResults=-1", None, (400, "paramError")),
        ("GET", f"{LIST}?nextToken=elsewhere", None, (400, "paramError")),
        ("GET", "/v1.0/conference/roomCodes/x/infos", None, (400, "invalidRoomCode")),
        ("POST", CONFERENCES, CREATED | {"confTitle": None}, (400, "paramsTitleError")),
        ("POST", CONFERENCES, CREATED | {"confTitle": " "}, (400, "paramsTitleError")),
        ("POST", CONFERENCES, CREATED | {"confTitle": "x" * 257}, (400, "paramsTitleError")),
        ("POST", CONFERENCES, CREATED | {"userId": None}, WRONG),
        ("POST", CONFERENCES, CREATED | {"inviteUserIds": "ann"}, WRONG),
        ("POST", CONFERENCES, CREATED | {"userId": "sandbox-unknownUserError"}, (400, "unknownUserError")),
        ("POST", CONFERENCES, CREATED | {"userId": "sandbox-waterLimitError"}, (404, "waterLimitError")),
        ("POST", CONFERENCES, CREATED | {"userId": "sandbox-permissionError"}, (404, "permissionError")),
        ("POST", CONFERENCES, CREATED | {"userId": "sandbox-systemError"}, (500, "systemError")),
    ],
)
def test_a_wrong_request_gets_dingtalks_error(
    sandbox: Sandbox, caller: Caller, method: str, path: str, body: Any, refusal: Any
) -> None:
    assert code(caller.call(method, path, body)) == refusal
    assert not sandbox.conferences


def test_a_meeting_can_have_any_id_that_is_one_path_segment(sandbox: Sandbox, caller: Caller) -> None:
    meeting = sandbox.create_conference(conference_id="周会 a/b?c")
    quoted = "%E5%91%A8%E4%BC%9A%20a%2Fb%3Fc"
    assert caller.lock(quoted).status_code == 200
    assert sandbox.conference(meeting).locked
    assert sandbox.calls[-1].conference_id == meeting
    assert sandbox.calls[-1].path == f"{CONFERENCES}/{quoted}/lock", "the path is recorded as it was sent"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"conference_id": "taken"}, "already"),
        ({"conference_id": "sandbox-open"}, "already"),
        ({"status": "paused"}, "not_started, started, ended"),
    ],
)
def test_an_invalid_new_meeting_is_an_error(sandbox: Sandbox, fields: Any, complaint: str) -> None:
    sandbox.create_conference(conference_id="taken")
    with pytest.raises(ValueError, match=complaint):
        sandbox.create_conference(**fields)


def test_the_calls_show_the_state_of_a_meeting(sandbox: Sandbox, caller: Caller) -> None:
    def shown() -> tuple[Any, list[Any]]:
        info = caller.call("GET", f"{CONFERENCES}/{meeting}").json()["confInfo"]
        wanted = {"conferenceIdList": ["nosuchmeeting", meeting, "sandbox-open"]}
        *found, last = caller.call("POST", QUERY, wanted).json()["infos"]
        assert last["conferenceId"] == "sandbox-open"
        return info, found

    meeting = sandbox.create_conference("周会", status="not_started")
    before, nothing = shown()
    assert (before["status"], before["startTime"], before["activeNum"], nothing) == (0, None, 0, [])
    sandbox.start(meeting)
    sandbox.join(meeting, "ann")
    during, (found,) = shown()
    assert (during["status"], during["activeNum"], during["title"]) == (2, 1, "周会")
    assert during["roomCode"] == sandbox.conference(meeting).room_code
    assert "endTime" not in during
    assert (found["conferenceId"], found["title"]) == (meeting, "周会")
    assert [user["userId"] for user in found["userList"]] == ["ann"]
    sandbox.end(meeting)
    after, nothing = shown()
    assert (after["status"], after["activeNum"], after["attendNum"], nothing) == (1, 0, 1, [])
    assert after["confDuration"] == after["endTime"] - after["startTime"] >= 0


@pytest.mark.parametrize(
    ("path", "key", "has_more"),
    [
        (LIST, "onGoingConfList", True),
        ("/v1.0/conference/roomCodes/1/infos", "conferenceList", True),
        (f"{CONFERENCES}/scheduleConferences/s", "conferenceList", False),
        (f"{CONFERENCES}/m/members", "memberModels", False),
    ],
)
@pytest.mark.parametrize(("size", "pages"), [({"maxResults": 10}, 3), ({}, 2)])
def test_a_list_comes_page_by_page(
    sandbox: Sandbox, caller: Caller, path: str, key: str, has_more: bool, size: dict[str, int], pages: int
) -> None:
    of_all = {"schedule_conference_id": "s", "room_code": "1"}
    meetings = [sandbox.create_conference(conference_id=f"{number}", **of_all) for number in range(25)]
    sandbox.create_conference(schedule_conference_id="s", status="not_started")
    sandbox.create_conference(conference_id="m", status="started")
    for meeting in meetings:
        sandbox.join("m", meeting)
    found, token, read = [], "0", 0
    while token:
        page = caller.call("GET", path, params={"nextToken": token, **size}).json()
        found += [one["unionId" if key == "memberModels" else "conferenceId"] for one in page[key]]
        token, read = page.get("nextToken"), read + 1
        assert page["totalCount"] == 25 + (path == LIST)
        assert page.get("hasMore") is (bool(token) if has_more else None)
        assert has_more or token is not None, "without hasMore, an empty token ends the list"
    assert found == [*meetings, *["m"] * (path == LIST)]
    assert read == (1 if key == "memberModels" and not size else pages)


def test_a_created_meeting_runs_and_its_host_closes_it(sandbox: Sandbox, caller: Caller) -> None:
    made = caller.call("POST", CONFERENCES, CREATED).json()
    meeting = sandbox.conference(made["conferenceId"])
    assert (meeting.title, meeting.status, meeting.creator_id) == ("Exam", "started", "chris")
    assert (made["roomCode"], made["hostPassword"]) == (meeting.room_code, meeting.host_password)
    path = f"{CONFERENCES}/{meeting.conference_id}"
    assert caller.call("GET", path).json()["confInfo"]["invitedNum"] == 2
    assert code(caller.call("DELETE", path)) == WRONG
    assert code(caller.call("DELETE", f"{path}?unionId=ann")) == (400, "noPermission")
    assert caller.call("DELETE", f"{path}?unionId=chris").json() == {"code": 200, "cause": ""}
    assert meeting.status == "ended"
    assert code(caller.call("DELETE", f"{path}?unionId=chris")) == (400, "resourceClose")
    made = caller.call("POST", CONFERENCES, CREATED | {"confTitle": "会" * 256}).json()
    assert sandbox.conference(made["conferenceId"]).title == "会" * 50
    assert caller.call("DELETE", f"{CONFERENCES}/sandbox-open?unionId=sandbox").status_code == 200
    assert caller.lock("sandbox-open").json() == {"success": True}, "a reserved one is there again"


def test_any_other_conference_call_can_be_rehearsed(sandbox: Sandbox, caller: Caller) -> None:
    path = f"{CONFERENCES}/sandbox-open/flashMinutes/summaries"
    summary = {"flashMinutesSummary": {"status": 1, "summary": []}}
    assert caller.call("GET", path).json() == summary
    assert caller.call("PUT", f"{CONFERENCES}/sandbox-open", {}).json() == {"code": "200", "case": ""}
    assert {call.name for call in sandbox.calls} == {"other"}
    assert code(caller.call("GET", path.replace("open", "noPermission"))) == (400, "noPermission")
    del caller.headers[TOKEN_HEADER]
    assert caller.call("GET", path).status_code == 400
