"""Reserved meetings and faults: what a DAG author can rehearse."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from airflow_provider_dingconf.sandbox import Fault, Sandbox

from .conftest import CONFERENCES, TOKEN_HEADER, Caller, Clock, code

JSON, HTML = "application/json; charset=utf-8", "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("name", "status", "kind", "piece"),
    [
        ("addressBanned", 200, JSON, '"punish": "deny"'),
        ("addressBanned-html", 403, HTML, "_____tmd_____/punish?x5secdata="),
        ("htmlPage", 400, HTML, "The plain HTTP request was sent to HTTPS port"),
        ("htmlPage-200", 200, HTML, "<html>"),
        ("htmlPage-403", 403, HTML, "403 Forbidden"),
        ("404-errcode", 200, JSON, '"errcode": 404'),
        ("40014-errcode", 200, JSON, '"errcode": 40014'),
        ("60011-errcode", 200, JSON, '"sub_code": "60011"'),
        ("90018-errcode", 400, JSON, '"errcode": 90018'),
        ("90020-errcode", 200, JSON, '"errcode": 90020'),
        ("notConfirmed", 200, JSON, '{"success": false}'),
        ("unreadableAnswer", 200, "text/plain", "OK"),
        ("gateway", 502, HTML, "Bad Gateway"),
        ("redirect", 302, HTML, ""),
        ("ended", 400, JSON, '"confClosed"'),
        ("notStarted", 400, JSON, '"commandError"'),
    ],
)
def test_a_reserved_meeting_gets_its_response(
    caller: Caller, name: str, status: int, kind: str, piece: str
) -> None:
    response = caller.lock(f"sandbox-{name}")
    assert (response.status_code, response.headers["Content-Type"]) == (status, kind)
    assert piece in response.text
    assert response.headers.get("Location", "https://").startswith("https://"), "another host"
    marks = ("punish", "x5secdata", "_____tmd_____", "deny", "baxia")
    assert name.startswith("addressBanned") or not [mark for mark in marks if mark in response.text]
    assert caller.sandbox.join(f"sandbox-{name}", "ann") is (name not in {"ended", "notStarted"})


def test_the_flaky_meeting_fails_twice_before_each_success(caller: Caller) -> None:
    assert [caller.lock("sandbox-flaky").status_code for _ in range(6)] == [500, 500, 200] * 2
    token = caller.headers[TOKEN_HEADER]
    caller.headers[TOKEN_HEADER] = "unknown"  # the token is checked first, and the call does not count
    assert code(caller.lock("sandbox-flaky")) == (400, "InvalidAuthentication")
    caller.headers[TOKEN_HEADER] = token
    assert [caller.lock("sandbox-flaky").status_code for _ in range(3)] == [500, 500, 200]


@pytest.mark.parametrize(
    ("meeting", "effect"), [("sandbox-answerLost", True), ("sandbox-connectionLost", False)]
)
def test_a_connection_breaks_before_or_after_a_lock(
    sandbox: Sandbox, caller: Caller, meeting: str, effect: bool
) -> None:
    with pytest.raises(requests.ConnectionError):
        caller.lock(meeting)
    assert sandbox.conference(meeting).locked is effect
    assert sandbox.calls[-1].status is None
    if effect:
        assert caller.lock(meeting).status_code == 200


def test_the_response_for_the_slow_meeting_is_late() -> None:
    with Sandbox(slow=60.0) as sandbox, Caller(sandbox) as caller:
        with pytest.raises(requests.Timeout):
            caller.lock("sandbox-slow", timeout=(30, 0.3))
        assert len(sandbox.calls) == 1, "a call is recorded when it comes"
    with Sandbox(slow=0.1) as sandbox, Caller(sandbox) as caller:
        assert caller.lock("sandbox-slow").elapsed.total_seconds() >= 0.1


def test_faults_hit_as_often_as_asked_one_after_the_other(sandbox: Sandbox, caller: Caller) -> None:
    sandbox.fail(Fault(code="systemError", times=3))
    sandbox.fail(Fault(code="confClosed", times=1))
    sandbox.fail(Fault(code="serviceBusy", status=503))
    codes = [code(caller.lock("sandbox-open")) for _ in range(7)]
    assert codes == [(500, "systemError")] * 3 + [(400, "confClosed")] + [(503, "serviceBusy")] * 3
    sandbox.heal()
    assert caller.lock("sandbox-open").status_code == 200


@pytest.mark.parametrize(
    ("fields", "hit"),
    [
        ({"call": "unlock"}, ["unlock"]),
        ({"path": "/sandbox-open$"}, ["info"]),
        ({"sent": '"unlock"'}, ["unlock"]),
        ({}, ["lock", "unlock", "info"]),
    ],
    ids=str,
)
def test_a_fault_hits_only_the_calls_it_names(
    sandbox: Sandbox, caller: Caller, fields: Any, hit: Any
) -> None:
    sandbox.fail(Fault(code="commandError", **fields))
    caller.lock("sandbox-open")
    caller.lock("sandbox-open", "unlock")
    caller.call("GET", f"{CONFERENCES}/sandbox-open")
    assert [call.name for call in sandbox.calls if call.code == "commandError"] == hit


def test_a_ban_refuses_every_call_while_it_lasts(sandbox: Sandbox, clock: Clock, caller: Caller) -> None:
    sandbox.fail(Fault(code="addressBanned", duration=300.0))
    clock.now += 299.9
    for response in (caller.lock("sandbox-open"), caller.call("POST", "/v1.0/oauth2/accessToken", {})):
        assert response.json()["punish"] == "deny"
    clock.now += 0.2
    assert caller.lock("sandbox-open").json() == {"success": True}


def test_a_fault_can_send_any_response(sandbox: Sandbox, caller: Caller) -> None:
    body = {"code": "brandNew", "requestid": "{requestid}", "message": "周会"}
    sandbox.fail(Fault(status=418, body=body, headers={"Retry-After": "7"}, times=1))
    response = caller.lock("sandbox-open")
    assert (response.status_code, response.headers["Retry-After"]) == (418, "7")
    assert response.json() == body | {"requestid": sandbox.calls[-1].request_id}
    sandbox.fail(Fault(body=b"\x00\xff", headers={"Content-Type": "image/png"}, times=1))
    response = caller.lock("sandbox-open")
    assert (response.status_code, response.content) == (200, b"\x00\xff")
    assert response.headers["Content-Type"] == "image/png"
    sandbox.fail(Fault(status=503, times=1))
    assert caller.lock("sandbox-open").json() == {}
    sandbox.fail(Fault(body={"success": True}, drop=True, times=1))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):  # it breaks off in the middle
        caller.lock("sandbox-open")
    assert caller.lock("sandbox-open").status_code == 200


def test_a_fault_can_redirect_to_another_sandbox(sandbox: Sandbox, caller: Caller) -> None:
    with Sandbox() as other:
        sandbox.fail(Fault(status=307, headers={"Location": other.url}))
        caller.lock("sandbox-open", allow_redirects=True)
        assert len(other.calls) == 1, "a caller that follows is found out"


def test_a_fault_after_the_call_changes_only_the_response(sandbox: Sandbox, caller: Caller) -> None:
    sandbox.fail(Fault(call="lock", code="systemError", after=True))
    assert caller.lock("sandbox-open").status_code == 500
    assert sandbox.conference("sandbox-open").locked


@pytest.mark.parametrize("after", [True, False])
def test_a_delay_alone_leaves_the_response_as_it_is(sandbox: Sandbox, caller: Caller, after: bool) -> None:
    sandbox.fail(Fault(delay=0.05, after=after))
    response = caller.lock("sandbox-open")
    assert response.json() == {"success": True}
    assert response.elapsed.total_seconds() >= 0.05


@pytest.fixture
def no_finalisers() -> Iterator[None]:
    """Let nothing be collected while a pattern of 5,000 groups exhausts the stack: its finaliser would fail."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("call", "locks"),
        ("path", "("),
        ("path", 5),
        ("path", "a{99999999999999999999}"),
        ("sent", "(" * 5_000 + ")" * 5_000),
        *[("times", value) for value in (0, 1.5, True)],
        ("duration", -1),
        ("duration", 10**400),
        ("code", "confClose"),
        ("code", ["confClosed"]),
        ("status", 99),
        ("status", "500"),
        *[
            ("headers", value)
            for value in (
                {"Retry-After": 5}, {"X": "a\r\nY: b"}, {"X": "a\n"}, {"X\n": "a"}, {"a b": "c"},
                {"Content-Length": "5"}, {"transfer-Encoding": "chunked"}, [],
            )
        ],
        ("delay", None),
        ("delay", 10**400),
        ("drop", "yes"),
        ("after", None),
        ("colour", "red"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_an_invalid_fault_is_refused_by_name(
    no_finalisers: None, caller: Caller, name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=name):
        Fault(**{name: value})
    response = caller.control("POST", "/faults", {name: value})
    assert response.status_code == 400
    assert name in response.json()["error"]
    assert caller.lock("sandbox-open").status_code == 200
