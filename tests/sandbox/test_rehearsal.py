"""Reserved meetings and faults: what a DAG author can rehearse."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from airflow_provider_dingconf.sandbox import Fault, Sandbox

from .conftest import CONFERENCES, Caller, Clock, code


@pytest.mark.parametrize(
    ("conference_id", "status", "content_type", "piece"),
    [
        ("sandbox-addressBanned", 200, "application/json", '"punish": "deny"'),
        ("sandbox-addressBanned-html", 403, "text/html", "_____tmd_____/punish?x5secdata="),
        ("sandbox-htmlPage", 400, "text/html", "The plain HTTP request was sent to HTTPS port"),
        ("sandbox-htmlPage-200", 200, "text/html", "<html>"),
        ("sandbox-htmlPage-403", 403, "text/html", "403 Forbidden"),
        ("sandbox-404-errcode", 200, "application/json", '"errcode": 404'),
        ("sandbox-40014-errcode", 200, "application/json", '"errcode": 40014'),
        ("sandbox-60011-errcode", 200, "application/json", '"sub_code": "60011"'),
        ("sandbox-90018-errcode", 400, "application/json", '"errcode": 90018'),
        ("sandbox-90020-errcode", 200, "application/json", '"errcode": 90020'),
        ("sandbox-notConfirmed", 200, "application/json", '{"success": false}'),
        ("sandbox-unreadableAnswer", 200, "text/plain", "OK"),
        ("sandbox-gateway", 502, "text/html", "Bad Gateway"),
        ("sandbox-redirect", 302, "text/html", ""),
    ],
)
def test_answers_without_an_error_code_can_be_rehearsed(
    caller: Caller, conference_id: str, status: int, content_type: str, piece: str
) -> None:
    answer = caller.lock(conference_id)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith(content_type)
    assert piece in answer.text


def test_only_the_page_of_a_ban_has_the_firewalls_marks(caller: Caller) -> None:
    marks = ("punish", "x5secdata", "_____tmd_____", "deny", "baxia")
    for name in ("htmlPage", "htmlPage-200", "htmlPage-403", "gateway", "redirect"):
        assert not [mark for mark in marks if mark in caller.lock(f"sandbox-{name}").text]


def test_a_redirect_leads_to_another_host(caller: Caller) -> None:
    location = caller.lock("sandbox-redirect").headers["Location"]
    assert not location.startswith(caller.sandbox.url)


@pytest.mark.parametrize(
    ("conference_id", "refusal"),
    [("sandbox-ended", (400, "confClosed")), ("sandbox-notStarted", (400, "commandError"))],
)
def test_meetings_that_do_not_run_are_there(
    sandbox: Sandbox, caller: Caller, conference_id: str, refusal: tuple[int, str]
) -> None:
    assert code(caller.lock(conference_id)) == refusal
    assert not sandbox.join(conference_id, "ann")


def test_the_flaky_meeting_fails_twice_before_each_success(caller: Caller) -> None:
    statuses = [caller.lock("sandbox-flaky").status_code for _ in range(6)]
    assert statuses == [500, 500, 200, 500, 500, 200]


def test_a_lock_whose_answer_is_lost_has_taken_effect_and_can_be_repeated(
    sandbox: Sandbox, caller: Caller
) -> None:
    with pytest.raises(requests.ConnectionError):
        caller.lock("sandbox-answerLost")
    assert sandbox.conference("sandbox-answerLost").locked
    assert caller.lock("sandbox-answerLost").status_code == 200


def test_a_lost_connection_changes_nothing(sandbox: Sandbox, caller: Caller) -> None:
    with pytest.raises(requests.ConnectionError):
        caller.lock("sandbox-connectionLost")
    assert not sandbox.conference("sandbox-connectionLost").locked
    assert sandbox.calls[-1].status is None


def test_the_slow_meeting_answers_late() -> None:
    with Sandbox(slow=60.0) as sandbox, Caller(sandbox) as caller:
        with pytest.raises(requests.Timeout):
            caller.lock("sandbox-slow", timeout=(30, 1))
        assert len(sandbox.calls) == 1, "a call is recorded when it comes"
    with Sandbox(slow=0.2) as sandbox, Caller(sandbox) as caller:
        assert caller.lock("sandbox-slow").elapsed.total_seconds() >= 0.2


def test_a_refused_token_comes_before_what_a_meeting_rehearses(caller: Caller) -> None:
    caller.authorise("unknown")
    assert code(caller.lock("sandbox-flaky")) == (400, "InvalidAuthentication")
    caller.authorise(caller.sandbox.issue_token())
    assert [caller.lock("sandbox-flaky").status_code for _ in range(3)] == [500, 500, 200]


def test_faults_hit_as_often_as_asked_one_after_the_other(sandbox: Sandbox, caller: Caller) -> None:
    sandbox.fail(Fault(code="systemError", times=3))
    sandbox.fail(Fault(code="confClosed", times=1))
    assert [caller.lock("sandbox-open").status_code for _ in range(5)] == [500, 500, 500, 400, 200]


def test_a_fault_lasts_until_it_is_healed(sandbox: Sandbox, caller: Caller) -> None:
    sandbox.fail(Fault(code="serviceBusy", status=503))
    assert [code(caller.lock("sandbox-open")) for _ in range(3)] == [(503, "serviceBusy")] * 3
    sandbox.heal()
    assert caller.lock("sandbox-open").status_code == 200


def test_a_fault_hits_only_the_calls_it_names(sandbox: Sandbox, caller: Caller) -> None:
    sandbox.fail(Fault(call="unlock", code="commandError"))
    sandbox.fail(Fault(path="/sandbox-open$", code="systemError"))
    assert caller.lock("sandbox-open").status_code == 200
    assert code(caller.lock("sandbox-open", "unlock")) == (400, "commandError")
    assert caller.call("GET", f"{CONFERENCES}/sandbox-open").status_code == 500
    sandbox.heal()
    sandbox.fail(Fault(sent='"unlock"', code="commandError"))
    assert caller.lock("sandbox-open").status_code == 200
    assert code(caller.lock("sandbox-open", "unlock")) == (400, "commandError")


def test_a_ban_of_the_address_refuses_every_call_while_it_lasts(
    sandbox: Sandbox, clock: Clock, caller: Caller
) -> None:
    sandbox.fail(Fault(code="addressBanned", duration=300.0))
    clock.now += 299.9
    for answer in (caller.lock("sandbox-open"), caller.call("POST", "/v1.0/oauth2/accessToken", {})):
        assert answer.json()["punish"] == "deny"
    clock.now += 0.2
    assert caller.lock("sandbox-open").status_code == 200


def test_a_fault_can_answer_anything(sandbox: Sandbox, caller: Caller) -> None:
    body = {"code": "brandNew", "requestid": "{requestid}", "message": "周会"}
    sandbox.fail(Fault(status=418, body=body, headers={"Retry-After": "7"}, times=1))
    answer = caller.lock("sandbox-open")
    assert (answer.status_code, answer.headers["Retry-After"]) == (418, "7")
    assert answer.json() == body | {"requestid": sandbox.calls[-1].request_id}
    sandbox.fail(Fault(body=b"\x00\xff", headers={"Content-Type": "image/png"}, times=1))
    answer = caller.lock("sandbox-open")
    assert (answer.status_code, answer.content) == (200, b"\x00\xff")
    assert answer.headers["Content-Type"] == "image/png"
    sandbox.fail(Fault(status=503, times=1))
    assert caller.lock("sandbox-open").json() == {}


def test_a_fault_after_the_call_alters_only_the_answer(sandbox: Sandbox, caller: Caller) -> None:
    sandbox.fail(Fault(call="lock", code="systemError", after=True))
    assert caller.lock("sandbox-open").status_code == 500
    assert sandbox.conference("sandbox-open").locked


@pytest.mark.parametrize("after", [True, False])
def test_a_delay_alone_leaves_the_answer_as_it_is(sandbox: Sandbox, caller: Caller, after: bool) -> None:
    sandbox.fail(Fault(delay=0.05, after=after))
    answer = caller.lock("sandbox-open")
    assert answer.json() == {"success": True}
    assert answer.elapsed.total_seconds() >= 0.05


def test_an_answer_can_break_off_in_the_middle(sandbox: Sandbox, caller: Caller) -> None:
    sandbox.fail(Fault(body={"success": True}, drop=True, times=1))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        caller.lock("sandbox-open")
    assert caller.lock("sandbox-open").status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"call": "locks"},
        {"path": "("},
        {"path": 5},
        {"path": "a{99999999999999999999}"},
        {"sent": "(" * 5_000 + ")" * 5_000},
        {"times": 0},
        {"times": 1.5},
        {"times": True},
        {"duration": -1},
        {"duration": 10**400},
        {"code": "confClose"},
        {"code": ["confClosed"]},
        {"status": 99},
        {"status": "500"},
        {"headers": {"Retry-After": 5}},
        {"headers": {"X": "a\r\nY: b"}},
        {"headers": {"X": "a\n"}},
        {"headers": {"X\n": "a"}},
        {"headers": {"a b": "c"}},
        {"headers": {"Content-Length": "5"}},
        {"headers": {"transfer-Encoding": "chunked"}},
        {"headers": []},
        {"delay": None},
        {"delay": 10**400},
        {"drop": "yes"},
        {"after": None},
        {"colour": "red"},
    ],
    ids=lambda fields: str(fields)[:30],
)
def test_an_invalid_fault_is_refused_by_name(caller: Caller, fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(ValueError, match=name):
        Fault(**fields)
    answer = caller.control("POST", "/faults", fields)
    assert answer.status_code == 400
    assert name in answer.json()["error"]
    assert caller.lock("sandbox-open").status_code == 200
