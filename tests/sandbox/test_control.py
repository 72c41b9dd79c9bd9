"""The control interface: what other processes can do with a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .conftest import CONFERENCES, code

if TYPE_CHECKING:
    from airflow_provider_dingconf.sandbox import Sandbox

    from .conftest import Caller

JSON = {"Content-Type": "application/json"}


def test_a_meeting_lives_its_life_over_http(sandbox: Sandbox, caller: Caller) -> None:
    made = caller.control("POST", "/conferences", {"title": "All hands", "status": "not_started"}).json()
    path = f"/conferences/{made['conference_id']}"
    assert caller.control("POST", path + "/join", {"user": "ann"}).json() == {
        "joined": False,
        "reason": "not_started",
    }
    assert caller.control("POST", path + "/start").json()["status"] == "started"
    assert caller.control("POST", path + "/join", {"user": "ann"}).json() == {"joined": True, "reason": None}
    caller.lock(made["conference_id"])
    assert caller.control("POST", path + "/join", {"user": "ben"}).json() == {
        "joined": False,
        "reason": "locked",
    }
    assert list(caller.control("POST", path + "/leave", {"user": "ann"}).json()["left"]) == ["ann"]
    assert caller.control("POST", path + "/end", {}).json()["status"] == "ended"
    shown = caller.control("GET", path).json()
    assert (shown["title"], shown["locked"], shown["participants"]) == ("All hands", True, ["ann"])
    assert shown["refused"] == ["ann", "ben"]
    assert (shown["password"], shown["host_password"]) == ("***", "***")
    assert caller.control("GET", "/conferences").json() == {"conferences": [shown]}


def test_faults_tokens_and_records_are_set_over_http(sandbox: Sandbox, caller: Caller) -> None:
    caller.control("POST", "/faults", {"call": "lock", "code": "systemError"})
    assert caller.lock("sandbox-open").status_code == 500
    caller.control("DELETE", "/faults")
    caller.control("POST", "/tokens/revoke")
    assert caller.lock("sandbox-open").json()["code"] == "InvalidAuthentication"
    calls = caller.control("GET", "/calls").json()["calls"]
    assert [(call["call"], call["status"], call["code"]) for call in calls] == [
        ("lock", 500, "systemError"),
        ("lock", 400, "InvalidAuthentication"),
    ]
    caller.control("DELETE", "/calls")
    assert caller.control("GET", "/calls").json() == {"calls": []}
    assert sandbox.calls == []


def test_secrets_and_tokens_are_masked_on_the_screen_and_whole_for_tests(
    sandbox: Sandbox, caller: Caller
) -> None:
    token = str(caller.headers["x-acs-dingtalk-access-token"])
    body = {"appKey": sandbox.client_id, "appSecret": "s3cret", "list": [{"suiteTicket": "s3cret"}]}
    caller.call("POST", "/v1.0/oauth2/accessToken?access_token=s3cret&nextToken=7", body)
    caller.call("POST", "/v1.0/oauth2/accessToken", data=b"appSecret=s3cret", headers={"Cookie": "s3cret"})

    screen = caller.control("GET", "/calls")

    assert "s3cret" not in screen.text
    assert token not in screen.text
    first, second = screen.json()["calls"]
    assert first["path"] == "/v1.0/oauth2/accessToken?access_token=***&nextToken=7"
    assert first["body"] == {
        "appKey": sandbox.client_id,
        "appSecret": "***",
        "list": [{"suiteTicket": "***"}],
    }
    assert second["body"] == "16 bytes that are not JSON, or have too many levels"
    assert second["headers"][-1][0] != "***"
    assert sandbox.calls[0].json() == body
    assert sandbox.calls[0].header("x-acs-dingtalk-access-token") == token


@pytest.mark.parametrize(
    ("method", "path", "body", "refusal"),
    [
        ("POST", "/conferences", {"title": 5}, (400, "title: Input should be a valid string")),
        ("POST", "/conferences", {"colour": "red"}, (400, "colour: Unexpected keyword")),
        ("POST", "/conferences", {"status": "paused"}, (400, "status: Input should be 'not_started'")),
        ("POST", "/conferences", {"conference_id": "sandbox-open"}, (400, "already")),
        ("POST", "/conferences", ["x"], (400, "not a JSON object")),
        ("POST", "/conferences/nosuch/start", {}, (404, "no meeting 'nosuch'")),
        ("POST", "/conferences/sandbox-ended/start", {}, (400, "has ended")),
        ("POST", "/conferences/sandbox-open/start", {"x": 1}, (400, "x: Unexpected keyword")),
        ("POST", "/conferences/sandbox-open/join", {}, (400, "user: Missing required")),
        ("POST", "/fault", {}, (404, "POST /sandbox/faults")),
        ("PATCH", "/calls", None, (404, "GET /sandbox/calls")),
        ("GET", "", None, (404, "GET /sandbox/calls")),
    ],
)
def test_a_wrong_control_call_is_told_what_is_wrong(
    caller: Caller, method: str, path: str, body: Any, refusal: tuple[int, str]
) -> None:
    answer = caller.control(method, path, body)
    status, piece = refusal
    assert answer.status_code == status
    assert piece in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b"\xff{", (400, "line 1")),
        ('{"body": ' + "[" * 900 + "]" * 900 + "}", (400, "recursion limit")),
        ('{"body": ' + "[" * 100_000 + "]" * 100_000 + "}", (400, "recursion limit")),
        ('{"body": "' + "x" * 2**20 + '"}', (413, "1048576")),
    ],
    ids=["no-json", "levels", "many-levels", "long"],
)
@pytest.mark.parametrize("path", ["/faults", "/events"])
def test_a_body_that_cannot_be_read_is_refused(
    caller: Caller, path: str, body: bytes, refusal: tuple[int, str]
) -> None:
    answer = caller.control("POST", path, data=body)
    status, piece = refusal
    assert answer.status_code == status
    assert piece in answer.json()["error"]


def test_a_body_with_many_levels_is_accepted_and_shown(caller: Caller) -> None:
    body = f'{{"call": "lock", "body": {"[" * 99}{"]" * 99}}}'
    assert caller.control("POST", "/faults", data=body).status_code == 200
    assert caller.lock("sandbox-open", data="[" * 190 + "]" * 190).text == "[" * 99 + "]" * 99
    assert caller.control("GET", "/calls").status_code == 200


def test_a_call_with_too_many_levels_is_wrong_and_shown_by_its_length(caller: Caller) -> None:
    body = '{"action":' * 899 + "{}" + "}" * 899
    answer = caller.call("POST", f"{CONFERENCES}/sandbox-open/lock", data=body, headers=JSON)
    assert code(answer) == (400, "paramsError")
    (shown,) = caller.control("GET", "/calls").json()["calls"]
    assert shown["body"] == f"{len(body)} bytes that are not JSON, or have too many levels"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "sandbox.example.com"}, 403),
        ({"Host": "127.0.0.1.example.com:8790"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://example.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8790"}, 200),
        ({"Origin": "http://127.0.0.1:8080"}, 200),
    ],
    ids=str,
)
def test_only_this_machine_and_no_web_page_reaches_the_control_interface(
    caller: Caller, headers: dict[str, str], status: int
) -> None:
    assert caller.control("GET", "/conferences", headers=headers).status_code == status
