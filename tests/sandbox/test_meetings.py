"""Meetings: locking, unlocking, joining, and the calls that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conftest import CONFERENCES, Caller, code

if TYPE_CHECKING:
    from airflow_provider_dingconf.sandbox import Sandbox

LIST = "/v1.0/conference/orgConferences"
QUERY = f"{CONFERENCES}/query"


def test_nobody_joins_a_locked_meeting_until_it_is_unlocked(sandbox: Sandbox, caller: Caller) -> None:
    meeting = sandbox.create_conference("All hands")
    assert sandbox.join(meeting, "early")

    answer = caller.lock(meeting)

    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert sandbox.conference(meeting).locked
    assert not sandbox.join(meeting, "late")
    assert sandbox.join(meeting, "early"), "who is in stays in"
    assert caller.lock(meeting, "unlock").json() == {"success": True}
    assert sandbox.join(meeting, "late")
    assert sandbox.conference(meeting).participants == ["early", "late"]
    assert sandbox.conference(meeting).refused == ["late"]


@pytest.mark.parametrize(("action", "locked"), [("lock", True), ("unlock", False)])
def test_repeating_a_lock_or_an_unlock_succeeds(
    sandbox: Sandbox, caller: Caller, action: str, locked: bool
) -> None:
    meeting = sandbox.create_conference()
    for _ in range(2):
        assert caller.lock(meeting, action).json() == {"success": True}
        assert sandbox.conference(meeting).locked is locked


def test_a_meeting_can_be_joined_and_locked_only_while_it_runs(sandbox: Sandbox, caller: Caller) -> None:
    meeting = sandbox.create_conference(status="not_started")
    assert not sandbox.join(meeting, "ann")
    assert code(caller.lock(meeting)) == (400, "commandError")
    sandbox.start(meeting)
    assert sandbox.join(meeting, "ann")
    assert caller.lock(meeting).status_code == 200
    sandbox.end(meeting)
    assert not sandbox.join(meeting, "ben")
    assert code(caller.lock(meeting)) == (400, "confClosed")
    assert code(caller.lock(meeting, "unlock")) == (400, "confClosed")
    with pytest.raises(ValueError, match="has ended"):
        sandbox.start(meeting)


def test_an_unknown_meeting_is_a_wrong_parameter(sandbox: Sandbox, caller: Caller) -> None:
    assert code(caller.lock("nosuchmeeting")) == (400, "paramsError")
    with pytest.raises(KeyError):
        sandbox.conference("nosuchmeeting")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"action": "lock"}', "text/plain"),
        (b'{"action": "lock"}', None),
        (b"action=lock", "application/x-www-form-urlencoded"),
        (b"{", "application/json"),
        (b"\xff", "application/json"),
        (b'["lock"]', "application/json"),
        (b"{}", "application/json"),
        (b'{"action": "Lock"}', "application/json"),
        (b'{"action": ["lock"]}', "application/json"),
        (b"", "application/json"),
    ],
)
def test_a_body_dingtalk_would_not_take_is_a_wrong_parameter(
    sandbox: Sandbox, caller: Caller, body: bytes, content_type: str | None
) -> None:
    path = f"{CONFERENCES}/{sandbox.create_conference()}/lock"
    answer = caller.call("POST", path, data=body, headers={"Content-Type": content_type})
    assert code(answer) == (400, "paramsError")


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
def test_a_meeting_that_cannot_be_is_refused(
    sandbox: Sandbox, fields: dict[str, str], complaint: str
) -> None:
    sandbox.create_conference(conference_id="taken")
    with pytest.raises(ValueError, match=complaint):
        sandbox.create_conference(**fields)  # type: ignore[arg-type]


def test_a_meeting_tells_about_itself(sandbox: Sandbox, caller: Caller) -> None:
    meeting = sandbox.create_conference("周会", status="not_started")
    before = caller.call("GET", f"{CONFERENCES}/{meeting}").json()["confInfo"]
    sandbox.start(meeting)
    sandbox.join(meeting, "ann")
    during = caller.call("GET", f"{CONFERENCES}/{meeting}").json()["confInfo"]
    sandbox.end(meeting)
    after = caller.call("GET", f"{CONFERENCES}/{meeting}").json()["confInfo"]

    assert (before["status"], before["startTime"], before["activeNum"]) == (0, None, 0)
    assert (during["status"], during["activeNum"], during["title"]) == (2, 1, "周会")
    assert during["roomCode"] == sandbox.conference(meeting).room_code
    assert (after["status"], after["activeNum"], after["attendNum"]) == (1, 0, 1)
    assert after["confDuration"] == after["endTime"] - after["startTime"] >= 0
    assert "endTime" not in during
    assert code(caller.call("GET", f"{CONFERENCES}/nosuchmeeting")) == (404, "roomNotFound")


def test_a_query_finds_the_meetings_that_run(sandbox: Sandbox, caller: Caller) -> None:
    running = sandbox.create_conference("Running")
    sandbox.join(running, "ann")
    ended = sandbox.create_conference(status="ended")
    wanted = {"conferenceIdList": [running, ended, "nosuchmeeting", "sandbox-open"]}

    infos = caller.call("POST", QUERY, wanted).json()["infos"]

    assert [info["conferenceId"] for info in infos] == [running, "sandbox-open"]
    assert infos[0]["title"] == "Running"
    assert [user["userId"] for user in infos[0]["userList"]] == ["ann"]


@pytest.mark.parametrize(
    "body", [{}, {"conferenceIdList": []}, {"conferenceIdList": "x"}, {"conferenceIdList": [1]}]
)
def test_a_query_for_no_meetings_is_a_wrong_parameter(caller: Caller, body: dict[str, object]) -> None:
    assert code(caller.call("POST", QUERY, body)) == (400, "paramsError")


def test_the_running_meetings_come_page_by_page(sandbox: Sandbox, caller: Caller) -> None:
    meetings = [sandbox.create_conference(f"Meeting {number}") for number in range(5)]
    sandbox.create_conference(status="ended")
    found, token, pages = [], "", 0
    while token is not None:
        page = caller.call("GET", LIST, params={"maxResults": 2, "nextToken": token}).json()
        found += [conference["conferenceId"] for conference in page["onGoingConfList"]]
        token, pages = page.get("nextToken"), pages + 1
        assert page["hasMore"] is (token is not None)
        assert page["totalCount"] == 5
    assert (found, pages) == (meetings, 3)
    assert len(caller.call("GET", LIST).json()["onGoingConfList"]) == 5


@pytest.mark.parametrize("query", ["maxResults=many", "maxResults=-1", "nextToken=elsewhere"])
def test_a_page_that_cannot_be_is_a_wrong_parameter(caller: Caller, query: str) -> None:
    assert code(caller.call("GET", f"{LIST}?{query}")) == (400, "paramError")


CREATED = {"userId": "chris", "confTitle": "Exam", "inviteUserIds": ["ann", "ben"]}


def test_a_created_meeting_runs_and_its_host_closes_it(sandbox: Sandbox, caller: Caller) -> None:
    made = caller.call("POST", CONFERENCES, CREATED).json()
    meeting = sandbox.conference(made["conferenceId"])
    assert (meeting.title, meeting.status, meeting.creator_id) == ("Exam", "started", "chris")
    assert (made["roomCode"], made["hostPassword"]) == (meeting.room_code, meeting.host_password)
    path = f"{CONFERENCES}/{meeting.conference_id}"
    assert caller.call("GET", path).json()["confInfo"]["invitedNum"] == 2
    assert code(caller.call("DELETE", path)) == (400, "paramsError")
    assert code(caller.call("DELETE", f"{path}?unionId=ann")) == (400, "noPermission")
    assert caller.call("DELETE", f"{path}?unionId=chris").json() == {"code": 200, "cause": ""}
    assert meeting.status == "ended"
    assert code(caller.call("DELETE", f"{path}?unionId=chris")) == (400, "resourceClose")
    assert code(caller.call("DELETE", f"{CONFERENCES}/nosuch?unionId=chris")) == (400, "paramsError")


def test_a_title_is_shortened_to_50_characters(sandbox: Sandbox, caller: Caller) -> None:
    made = caller.call("POST", CONFERENCES, CREATED | {"confTitle": "会" * 256}).json()
    assert sandbox.conference(made["conferenceId"]).title == "会" * 50


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"confTitle": None}, (400, "paramsTitleError")),
        ({"confTitle": " "}, (400, "paramsTitleError")),
        ({"confTitle": "x" * 257}, (400, "paramsTitleError")),
        ({"userId": None}, (400, "paramsError")),
        ({"inviteUserIds": "ann"}, (400, "paramsError")),
        ({"userId": "sandbox-unknownUserError"}, (400, "unknownUserError")),
        ({"userId": "sandbox-waterLimitError"}, (404, "waterLimitError")),
        ({"userId": "sandbox-permissionError"}, (404, "permissionError")),
        ({"userId": "sandbox-systemError"}, (500, "systemError")),
    ],
    ids=str,
)
def test_a_meeting_that_cannot_be_created(
    sandbox: Sandbox, caller: Caller, changes: dict[str, object], refusal: tuple[int, str]
) -> None:
    assert code(caller.call("POST", CONFERENCES, CREATED | changes)) == refusal
    assert not sandbox.conferences


def test_a_reserved_meeting_that_is_closed_is_there_again(caller: Caller) -> None:
    assert caller.call("DELETE", f"{CONFERENCES}/sandbox-open?unionId=sandbox").status_code == 200
    assert caller.lock("sandbox-open").json() == {"success": True}


def test_who_was_there_comes_page_by_page_without_has_more(sandbox: Sandbox, caller: Caller) -> None:
    meeting = sandbox.create_conference(creator_id="chris")
    for user in ("chris", "ann", "ben"):
        sandbox.join(meeting, user)
    sandbox.leave(meeting, "ann")
    sandbox.leave(meeting, "nobody")
    path = f"{CONFERENCES}/{meeting}/members"
    first = caller.call("GET", f"{path}?maxResults=2&nextToken=0").json()
    second = caller.call("GET", path, params={"maxResults": 2, "nextToken": first["nextToken"]}).json()
    assert (first["totalCount"], second["nextToken"]) == (3, "")
    assert "hasMore" not in first | second
    chris, ann, ben = first["memberModels"] + second["memberModels"]
    assert [one["unionId"] for one in (chris, ann, ben)] == ["chris", "ann", "ben"]
    assert (chris["host"], ann["host"]) == (True, False)
    assert (ann["attendStatus"], ben["attendStatus"]) == (6, 3)
    assert ann["leaveTime"] - ann["joinTime"] == ann["duration"]
    assert "leaveTime" not in ben
    sandbox.end(meeting)
    assert all("leaveTime" in one for one in caller.call("GET", path).json()["memberModels"])
    assert code(caller.call("GET", f"{CONFERENCES}/nosuch/members")) == (404, "roomNotFound")


def test_who_left_a_locked_meeting_cannot_come_back(sandbox: Sandbox, caller: Caller) -> None:
    meeting = sandbox.create_conference()
    sandbox.join(meeting, "ann")
    caller.lock(meeting)
    sandbox.leave(meeting, "ann")
    assert not sandbox.join(meeting, "ann")
    caller.lock(meeting, "unlock")
    assert sandbox.join(meeting, "ann")
    assert sandbox.conference(meeting).participants == ["ann"]


def test_all_meetings_of_a_schedule_come_page_by_page(sandbox: Sandbox, caller: Caller) -> None:
    held = [sandbox.create_conference(schedule_conference_id="s", status="ended") for _ in range(25)]
    sandbox.create_conference(schedule_conference_id="s", status="not_started")
    path = f"{CONFERENCES}/scheduleConferences/s"
    first = caller.call("GET", path).json()
    second = caller.call("GET", f"{path}?nextToken={first['nextToken']}").json()
    assert [one["conferenceId"] for one in first["conferenceList"] + second["conferenceList"]] == held
    assert (first["totalCount"], first["nextToken"], second["nextToken"]) == (25, "20", "")
    assert "hasMore" not in first | second


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "~/users/invite", {"success": True}),
        ("POST", "~/allMembers/mute", {"success": True}),
        ("POST", "~/members/kick", {"success": True}),
        ("POST", "~/cloudRecords/start", {"code": "200"}),
        ("POST", "~/cloudRecords/stop", {"code": "200"}),
        ("PUT", "~", {"code": "200", "case": ""}),
        ("GET", "~/details", {"list": [], "nextToken": ""}),
        ("GET", "~/flashMinutes/summaries", {"flashMinutesSummary": {"status": 1, "summary": []}}),
    ],
)
def test_any_other_conference_call_can_be_rehearsed(
    caller: Caller, method: str, path: str, body: dict[str, object]
) -> None:
    meeting = f"{CONFERENCES}/sandbox-open"
    answer = caller.call(method, path.replace("~", meeting), {})
    assert (answer.status_code, answer.json()) == (200, body)
    assert caller.sandbox.calls[-1].name == "other"
    refused = caller.call(method, path.replace("~", f"{CONFERENCES}/sandbox-noPermission"), {})
    assert code(refused) == (400, "noPermission")
    del caller.headers["x-acs-dingtalk-access-token"]
    assert code(caller.call(method, path.replace("~", meeting), {}))[0] == 400
