"""The control interface: what other processes can do with a sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

from .conftest import CONFERENCES, TOKEN_HEADER, Caller, code


def test_a_meeting_lives_its_life_over_http(caller: Caller) -> None:
    def join(user: str) -> Any:
        return caller.control("POST", path + "/join", {"user": user}).json()

    made = caller.control("POST", "/conferences", {"title": "All hands", "status": "not_started"}).json()
    path = f"/conferences/{made['conference_id']}"
    assert join("ann") == {"joined": False, "reason": "not_started"}
    assert caller.control("POST", path + "/start").json()["status"] == "started"
    assert join("ann") == {"joined": True, "reason": None}
    caller.lock(made["conference_id"])
    assert join("ben") == {"joined": False, "reason": "locked"}
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


def test_secrets_are_masked_on_the_screen_and_whole_for_tests(sandbox: Sandbox, caller: Caller) -> None:
    token = str(caller.headers[TOKEN_HEADER])
    body = {"appKey": sandbox.client_id, "appSecret": "s3cret", "list": [{"suiteTicket": "s3cret"}]}
    caller.call("POST", "/v1.0/oauth2/accessToken?access_token=s3cret&nextToken=7", body)
    caller.call("POST", "/v1.0/oauth2/accessToken", data=b"appSecret=s3cret", headers={"Cookie": "s3cret"})

    screen = caller.control("GET", "/calls")

    assert "s3cret" not in screen.text
    assert token not in screen.text
    first, second = screen.json()["calls"]
    assert first["path"] == "/v1.0/oauth2/accessToken?access_token=***&nextToken=7"
    assert first["body"] == body | {"appSecret": "***", "list": [{"suiteTicket": "***"}]}
    assert second["body"] == "16 bytes that are not JSON, or have too many levels"
    assert ["Cookie", "***"] in second["headers"]
    assert sandbox.calls[0].json() == body
    assert sandbox.calls[0].header(TOKEN_HEADER) == token


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
        ("POST", "/events", {}, (400, "event_type: Missing required")),
        ("POST", "/events", {"event_type": ""}, (400, "event_type: it is empty")),
        ("POST", "/events", {"event_type": "a", "data": []}, (400, "data: Input should be a valid dict")),
        ("POST", "/events", {"event_type": "a", "kind": "a"}, (400, "kind: Unexpected keyword")),
        (
            "POST",
            "/streams/disconnect",
            {"politely": "no"},
            (400, "politely: Input should be a valid boolean"),
        ),
        ("POST", "/fault", {}, (404, "POST /sandbox/faults")),
        ("PATCH", "/calls", None, (404, "GET /sandbox/calls")),
        ("GET", "", None, (404, "GET /sandbox/calls")),
        *[
            ("POST", path, body, refusal)
            for path in ("/faults", "/events")
            for body, refusal in (
                (b"\xff{", (400, "line 1")),
                (b'{"body": ' + b"[" * 900 + b"]" * 900 + b"}", (400, "recursion limit")),
                (b'{"body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", (400, "recursion limit")),
                (b'{"body": "' + b"x" * 2**20 + b'"}', (413, "1048576")),
            )
        ],
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_control_call_gets_the_reason(
    caller: Caller, method: str, path: str, body: Any, refusal: Any
) -> None:
    sent = {"data": body} if isinstance(body, bytes) else {"json": body}
    response = caller.control(method, path, **sent)
    status, piece = refusal
    assert response.status_code == status
    assert piece in response.json()["error"]


def test_a_body_with_many_levels_is_shown_and_one_with_too_many_by_its_length(caller: Caller) -> None:
    fault = f'{{"call": "lock", "times": 1, "body": {"[" * 99}{"]" * 99}}}'
    assert caller.control("POST", "/faults", data=fault).status_code == 200
    assert caller.lock("sandbox-open", data="[" * 190 + "]" * 190).text == "[" * 99 + "]" * 99
    body = '{"action":' * 899 + "{}" + "}" * 899
    response = caller.call(
        "POST", f"{CONFERENCES}/sandbox-open/lock", data=body, headers={"Content-Type": "application/json"}
    )
    assert code(response) == (400, "paramsError")
    _, shown = caller.control("GET", "/calls").json()["calls"]
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
def test_only_this_machine_and_no_web_page_reaches_it(caller: Caller, headers: Any, status: int) -> None:
    assert caller.control("GET", "/conferences", headers=headers).status_code == status
