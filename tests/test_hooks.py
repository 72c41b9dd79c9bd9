"""The hook as its users see it, waiting and awaiting, against a DingTalk that goes wrong."""

from __future__ import annotations

import json
import re
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowNotFoundException

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.dingtalk.errors import (
    AccessTokenError,
    AddressBannedError,
    CallTimeoutError,
    ConferenceClosedError,
    ConnectionLostError,
    CredentialsError,
    InvalidConferenceIdError,
    InvalidInputError,
    ParameterError,
    PermissionDeniedError,
    ServerError,
    ThrottledError,
)
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.outcomes import task_outcome
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Face

pytestmark = pytest.mark.usefixtures("conn")

THROTTLED = "Forbidden.AccessDenied.QpsLimitForApi"
KINDS = ["internal", "third_party", "unified", "static_token"]
SYNC_TOO = pytest.mark.parametrize("face", ["sync", "async"], indirect=True)
"""Both run the same coroutine, so one test or two of each method show that waiting for it works."""


def token_of(call: Any) -> str:
    return call.header("x-acs-dingtalk-access-token") or ""


# Locking and unlocking.


@pytest.mark.parametrize("kind", KINDS)
@SYNC_TOO
def test_a_meeting_is_locked_and_unlocked_for_every_kind_of_app(
    face: Face, conn: Callable[..., None], sandbox: Sandbox, kind: str
) -> None:
    conn(kind)
    meeting = sandbox.create_conference()
    for action in ("lock", "unlock"):
        result = face.do(f"{action}_conference", meeting)
        assert sandbox.join(meeting, f"after {action}") is (action == "unlock")
        assert result == {
            "conference_id": meeting,
            "action": action,
            "success": True,
            "attempts": 1,
            "request_id": None,
        }
    assert len(sandbox.calls_of("token")) == (0 if kind == "static_token" else 1)


def test_a_hundred_locks_cost_a_hundred_and_one_calls(face: Face, sandbox: Sandbox) -> None:
    assert all(result["success"] for result in face.lock_each(["sandbox-open"] * 100, face.hook()))
    assert len(sandbox.calls) == 101


def test_another_hook_of_the_same_credentials_fetches_no_token(face: Face, sandbox: Sandbox) -> None:
    face.do("lock_conference", "sandbox-open")
    face.do("lock_conference", "sandbox-open")
    assert len(sandbox.calls_of("token")) == 1


@pytest.mark.parametrize("wrong", ["", " ", "..", "a/b", "a b", None, ["a"], "x" * 257])
def test_a_bad_conference_id_is_refused_before_any_call(face: Face, sandbox: Sandbox, wrong: Any) -> None:
    with pytest.raises(InvalidConferenceIdError, match="conference_id"):
        face.do("lock_conference", wrong)
    assert not sandbox.calls


@pytest.mark.parametrize("limits", [
    *({"max_attempts": value} for value in (0, -1, 1.5, "3", None, True)),
    *({"max_seconds": value} for value in (0, -1, "60", None, True, float("nan"), float("inf"), 86_401, 10**400)),
])  # fmt: skip
def test_an_invalid_limit_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(limits))):
        DingTalkConferenceHook(**limits)


# A block of code in a locked meeting.


def raises(error: BaseException) -> Callable[[], None]:
    def inside() -> None:
        raise error

    return inside


@SYNC_TOO
def test_a_meeting_is_locked_inside_the_block_and_open_after_it(face: Face, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    seen: list[bool] = []
    face.inside(lambda: seen.append(sandbox.conference(meeting).locked), meeting)
    assert seen == [True]
    assert not sandbox.conference(meeting).locked


@pytest.mark.parametrize("error", [RuntimeError("inside"), KeyboardInterrupt(), SystemExit(1)])
@SYNC_TOO
def test_a_meeting_is_unlocked_whatever_happens_inside(
    face: Face, sandbox: Sandbox, error: BaseException
) -> None:
    meeting = sandbox.create_conference()
    with pytest.raises(type(error)):
        face.inside(raises(error), meeting)
    assert [call.name for call in sandbox.calls] == ["token", "lock", "unlock"]
    assert not sandbox.conference(meeting).locked


def test_a_meeting_that_ends_inside_the_block_is_no_error(face: Face, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    face.inside(lambda: sandbox.end(meeting), meeting)
    assert sandbox.calls[-1].code == "confClosed"


@SYNC_TOO
def test_a_block_is_not_entered_when_the_lock_is_refused(face: Face, sandbox: Sandbox) -> None:
    entered: list[bool] = []
    with pytest.raises(ConferenceClosedError):
        face.inside(lambda: entered.append(True), "sandbox-confClosed")
    assert not entered
    assert not sandbox.calls_of("unlock")


def test_no_unlock_follows_a_ban(face: Face, sandbox: Sandbox) -> None:
    with pytest.raises(AddressBannedError):
        face.inside(lambda: pytest.fail("entered"), "sandbox-addressBanned")
    assert [call.name for call in sandbox.calls] == ["token", "lock"]


@SYNC_TOO
def test_a_lock_whose_response_was_lost_is_undone(face: Face, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="lock", drop=True, after=True))
    entered: list[bool] = []
    with pytest.raises(ConnectionLostError):
        face.inside(lambda: entered.append(True), meeting, hook=face.hook(max_attempts=1))
    assert not entered
    assert not sandbox.conference(meeting).locked
    assert len(sandbox.calls_of("unlock")) == 1


def test_an_unlock_that_fails_is_an_error(face: Face, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="unlock", code="noPermission"))
    with pytest.raises(Exception, match="noPermission"):
        face.inside(lambda: None, "sandbox-open")


@SYNC_TOO
def test_an_unlock_that_fails_hides_no_error_of_the_block(face: Face, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="unlock", code="systemError"))
    for wrapped in (nullcontext(), task_outcome(), task_outcome({"systemError": "fail"})):
        with pytest.raises(Exception, match="systemError") as caught, wrapped:
            face.inside(
                raises(ZeroDivisionError("the block's own")), "sandbox-open", hook=face.hook(max_attempts=1)
            )
        shown = "".join(traceback.format_exception(caught.value))
        assert "ZeroDivisionError: the block's own" in shown
        assert sandbox.client_secret not in shown


# Tokens.


def test_a_refused_token_is_replaced_once(face: Face, sandbox: Sandbox) -> None:
    face.do("lock_conference", "sandbox-open")
    sandbox.revoke_tokens()
    assert face.do("lock_conference", "sandbox-open")["attempts"] == 1
    assert [call.name for call in sandbox.calls] == ["token", "lock", "lock", "token", "lock"]


def test_a_token_that_is_refused_for_ever_costs_two_locks_and_two_tokens(
    face: Face, sandbox: Sandbox
) -> None:
    with pytest.raises(AccessTokenError):
        face.do("lock_conference", "sandbox-InvalidAuthentication")
    assert [call.name for call in sandbox.calls] == ["token", "lock", "token", "lock"]


def test_a_static_token_that_is_refused_costs_one_call(
    face: Face, conn: Callable[..., None], sandbox: Sandbox
) -> None:
    conn("static_token")
    sandbox.revoke_tokens()
    with pytest.raises(AccessTokenError) as caught:
        face.do("lock_conference", "sandbox-open")
    assert [call.name for call in sandbox.calls] == ["lock"]
    assert "a static access token has to be replaced" in str(caught.value)
    assert "fresh" not in str(caught.value), "none was tried"


def test_a_token_is_renewed_before_it_expires(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(token_lifetime=1) as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", sandbox.connection_json())
        face.do("lock_conference", "sandbox-open")
        time.sleep(1)
        face.do("lock_conference", "sandbox-open")
        assert [call.name for call in sandbox.calls] == ["token", "lock", "token", "lock"]


def test_wrong_credentials_are_refused_once(face: Face, conn: Callable[..., None], sandbox: Sandbox) -> None:
    conn(password="a-wrong-secret")
    with pytest.raises(CredentialsError) as caught:
        face.do("lock_conference", "sandbox-open")
    assert "a-wrong-secret" not in str(caught.value)
    assert len(sandbox.calls) == 1


def test_fifty_threads_fetch_one_token(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="token", delay=0.1))
    with ThreadPoolExecutor(50) as pool:
        hooks = [DingTalkConferenceHook() for _ in range(50)]
        results = list(pool.map(lambda hook: hook.lock_conference("sandbox-open"), hooks))
    for hook in hooks:
        hook.close()
    assert all(result["success"] for result in results)
    assert len(sandbox.calls_of("token")) == 1


# Again, within a call.


@pytest.mark.parametrize("code", ["systemError", "gateway", "unreadableAnswer", "notConfirmed"])
def test_a_call_is_tried_no_more_often_than_max_attempts(face: Face, sandbox: Sandbox, code: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        face.do("lock_conference", f"sandbox-{code}", hook=face.hook(max_attempts=2))
    assert getattr(caught.value, "attempts", None) == 2
    assert len(sandbox.calls_of("lock")) == 2


def test_a_call_waits_as_long_as_dingtalk_asks(face: Face, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="lock", code=THROTTLED, headers={"Retry-After": "2"}, times=1))
    assert face.do("lock_conference", "sandbox-open")["attempts"] == 2
    first, second = sandbox.calls_of("lock")
    assert second.time - first.time >= 2


def test_a_wait_that_does_not_fit_is_not_begun(face: Face, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="lock", code=THROTTLED, headers={"Retry-After": "30"}))
    with pytest.raises(ThrottledError) as caught:
        face.do("lock_conference", "sandbox-open", hook=face.hook(max_seconds=5))
    assert (caught.value.retry_after, caught.value.attempts) == (30, 1)
    assert len(sandbox.calls_of("lock")) == 1


@pytest.mark.parametrize("page", ["addressBanned", "addressBanned-html"])
def test_a_banned_address_makes_one_call_and_none_afterwards(face: Face, sandbox: Sandbox, page: str) -> None:
    sandbox.fail(Fault(code=page))
    for _ in range(2):
        with pytest.raises(AddressBannedError) as caught:
            face.do("lock_conference", "sandbox-open")
        assert 290 < caught.value.retry_after <= 300
    assert len(sandbox.calls) == 1


@pytest.mark.parametrize("page", ["addressBanned", "addressBanned-html"])
def test_a_ban_that_the_token_call_meets_is_heeded_by_all(face: Face, sandbox: Sandbox, page: str) -> None:
    sandbox.fail(Fault(call="token", code=page))
    for call in ("lock_conferences", "test_connection", "lock_conferences"):
        token_cache.forget()  # as another process begins
        if call == "test_connection":
            worked, said = face.do(call)
            assert not worked
            assert "addressBanned" in said
        else:
            with pytest.raises(AddressBannedError):
                face.do(call, ["a", "b"])
    assert len(sandbox.calls) == 1


def test_what_was_not_sent_is_not_in_doubt(face: Face, conn: Callable[..., None], sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="lock", code="addressBanned", times=1))
    for _ in range(2):
        with pytest.raises(AddressBannedError) as caught:
            face.do("lock_conference", "sandbox-open")
        assert not caught.value.uncertain
    assert len(sandbox.calls_of("lock")) == 1


def test_those_that_were_not_tried_are_not_in_doubt(face: Face, sandbox: Sandbox) -> None:
    made = [sandbox.create_conference() for _ in range(5)]
    sandbox.fail(Fault(call="lock", drop=True, after=True, times=1))
    sandbox.fail(Fault(call="lock", code=THROTTLED, headers={"Retry-After": "600"}))
    results = face.do("lock_conferences", made, concurrency=1)
    assert [(one.attempts, one.error.uncertain) for one in results] == [(2, True), *[(0, False)] * 4]


def test_a_call_whose_response_was_lost_is_retried(face: Face, sandbox: Sandbox) -> None:
    assert face.do("lock_conference", "sandbox-answerLost")["attempts"] == 2


@SYNC_TOO
def test_a_slow_dingtalk_costs_no_more_than_max_seconds(face: Face, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="lock", delay=30))
    began = time.monotonic()
    with pytest.raises(CallTimeoutError):
        face.do("lock_conference", "sandbox-open", hook=face.hook(max_seconds=1))
    assert time.monotonic() - began < 25


def test_a_token_call_that_fails_for_a_while_is_made_again(face: Face, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="token", code="server.error", times=1))
    assert face.do("lock_conference", "sandbox-open")["attempts"] == 2
    assert [call.name for call in sandbox.calls] == ["token", "token", "lock"]


def test_max_seconds_end_while_a_token_is_fetched(face: Face, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="token", delay=30))
    with pytest.raises(CallTimeoutError):
        face.do("lock_conference", "sandbox-open", hook=face.hook(max_seconds=0.5))
    assert [call.name for call in sandbox.calls] == ["token"]


@pytest.mark.parametrize("call", ["token", "lock"])
def test_a_ban_holds_for_other_processes_and_not_for_other_hosts(
    face: Face, conn: Callable[..., None], sandbox: Sandbox, call: str
) -> None:
    sandbox.fail(Fault(call=call, code="addressBanned", times=1))
    for method in ("lock_conference", "unlock_conference"):
        with pytest.raises(AddressBannedError):
            face.do(method, "sandbox-open")
        token_cache.forget()  # as another process begins
    assert [made.name for made in sandbox.calls] == (["token"] if call == "token" else ["token", "lock"])
    with Sandbox() as other:
        conn(host=other.url)
        assert face.do("lock_conference", "sandbox-open")["success"]


# Any other call.


@SYNC_TOO
def test_any_other_call_has_the_same_token_and_errors(face: Face, sandbox: Sandbox) -> None:
    answer = face.do("call", "get", "/v1.0/conference/orgConferences", params={"maxResults": 20})
    assert "totalCount" in answer
    assert sandbox.calls[-1].path == "/v1.0/conference/orgConferences?maxResults=20"
    with pytest.raises(Exception, match="HTTP 4"):
        face.do("call", "POST", "/v1.0/no/such/call", json={"title": "周会"})
    assert sandbox.calls[-1].json() == {"title": "周会"}


@pytest.mark.parametrize("method_and_path", [("FETCH", "/v1.0/x"), ("GET", "v1.0/x"), ("GET", "/a/../b")])
def test_an_invalid_call_is_not_sent(face: Face, sandbox: Sandbox, method_and_path: Any) -> None:
    with pytest.raises(InvalidInputError):
        face.do("call", *method_and_path)
    assert not sandbox.calls


@pytest.mark.parametrize(("code", "calls"), [("systemError", 1), (THROTTLED, 2)])
def test_a_call_that_is_not_repeatable_is_retried_only_if_it_was_throttled(
    face: Face, sandbox: Sandbox, code: str, calls: int
) -> None:
    sandbox.fail(Fault(call="unknown", code=code))
    with pytest.raises((ServerError, ThrottledError)):
        face.do("call", "POST", "/v1.0/x", repeatable=False, hook=face.hook(max_attempts=2))
    assert len(sandbox.calls_of("unknown")) == calls


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_call_goes_out_with_its_method_parameters_and_body(
    face: Face, sandbox: Sandbox, method: str
) -> None:
    path = "/v1.0/conference/videoConferences/644272f14ba3310"
    sandbox.fail(Fault(path=path, body={"code": 200, "cause": ""}))
    params = {"unionId": "a b+c&d=e/f?g:h@i%j,k;l", "name": "会议", "n": 1, "all": True}
    body = None if method in {"GET", "DELETE"} else {"confTitle": '会议 "x"', "inviteUserIds": []}
    assert face.do("call", method, path, params=params, json=body) == {"code": 200, "cause": ""}
    call = sandbox.calls[-1]
    assert (call.method, call.path.partition("?")[0]) == (method, path)
    assert call.parameters["unionId"] == params["unionId"]
    assert call.parameters["name"] == params["name"]
    assert (call.parameters["n"], call.parameters["all"]) == ("1", "true")
    assert (call.json() if body else call.body) == (body or b"")


@pytest.mark.parametrize(
    "options",
    [
        {"json": {"when": object()}},
        {"json": {"name": "\ud800"}},
        {"json": {"n": float("nan")}},
        {"params": {"name": "\ud800"}},
        {"params": {"names": ["a", "b"]}},
        {"params": {"name": None}},
    ],
    ids=["no JSON", "no text", "no number", "no parameter", "list", "nothing"],
)
def test_what_cannot_be_sent_is_refused_before_any_call(
    face: Face, sandbox: Sandbox, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError, match="cannot be sent"):
        face.do("call", "POST", "/v1.0/x", **options)
    assert not sandbox.calls


def test_the_error_names_the_permission_that_an_app_lacks(face: Face, conn: Callable[..., None]) -> None:
    conn("unpermitted")
    with pytest.raises(PermissionDeniedError, match=r"VideoConference\.Conference\.Write"):
        face.do("lock_conference", "sandbox-open")


@SYNC_TOO
def test_a_connection_that_is_not_defined_is_airflows_own_error(face: Face) -> None:
    with pytest.raises(AirflowNotFoundException, match="no_such_connection"):
        face.do("lock_conference", "1", hook=face.hook(dingtalk_conn_id="no_such_connection"))


# The button that tests a connection.


@pytest.mark.parametrize("kind", KINDS)
@SYNC_TOO
def test_a_good_connection_is_found_good(face: Face, conn: Callable[..., None], kind: str) -> None:
    conn(kind)
    worked, said = face.do("test_connection")
    assert worked, said
    assert "access token" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"password": "a-wrong-secret"}, "invalidClientIdOrSecret"),
        ({"host": "http://127.0.0.1:1"}, "connectionLost"),
        ({"login": ""}, "login (Client ID)"),
    ],
)
def test_a_bad_connection_is_found_bad(
    face: Face, conn: Callable[..., None], overrides: dict[str, Any], said: str
) -> None:
    conn(**overrides)
    worked, found = face.do("test_connection", hook=face.hook(max_seconds=5))
    assert not worked
    assert said in found
    assert "a-wrong-secret" not in found


def test_a_static_token_that_is_refused_is_found_bad(
    face: Face, conn: Callable[..., None], sandbox: Sandbox
) -> None:
    conn("static_token")
    sandbox.revoke_tokens()
    worked, said = face.do("test_connection")
    assert not worked
    assert "InvalidAuthentication" in said


def test_a_static_token_that_may_not_read_is_found_good(
    face: Face, conn: Callable[..., None], sandbox: Sandbox
) -> None:
    conn("static_token")
    sandbox.fail(Fault(call="list", code="Forbidden.AccessDenied.AccessTokenPermissionDenied", times=1))
    worked, said = face.do("test_connection")
    assert worked, said
    sandbox.fail(Fault(call="list", code="Forbidden.AccessDenied.IpNotInWhiteList"))
    worked, said = face.do("test_connection")
    assert not worked
    assert "IpNotInWhiteList" in said


# What is said.


def test_each_attempt_is_one_line_of_the_log_and_no_secret(
    face: Face, sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    assert face.do("lock_conference", "sandbox-flaky")["attempts"] == 3
    # Airflow's ways of logging differ by version; this is what its user sees.
    text = "".join(capfd.readouterr())
    lines = list(dict.fromkeys(re.findall(r"(lock sandbox-flaky: .*), \d+ ms\]", text)))
    first, second, _ = (call.request_id for call in sandbox.calls_of("lock"))
    assert lines == [
        f"lock sandbox-flaky: systemError (HTTP 500, request id {first}) [attempt 1",
        f"lock sandbox-flaky: systemError (HTTP 500, request id {second}) [attempt 2",
        "lock sandbox-flaky: done (request id -) [attempt 3",
    ]
    assert "access token: fetched for the internal app dingsandboxapp" in text
    assert Sandbox.client_secret not in text
    assert token_of(sandbox.calls[-1]) not in text


@SYNC_TOO
def test_no_secret_is_in_a_traceback_even_with_its_local_values(face: Face, sandbox: Sandbox) -> None:
    # Airflow's console log, and many a tool that collects errors, print the locals of each frame.
    with pytest.raises(ParameterError) as caught:
        face.do("lock_conference", "sandbox-paramsError")
    stack = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    shown = "\n".join(f"{frame.name} {frame.locals}" for frame in stack if "dingconf" in frame.filename)
    assert "lock_conference" in shown
    assert Sandbox.client_secret not in shown
    assert token_of(sandbox.calls[-1]) not in shown


def test_the_fields_of_the_form_are_the_declared_ones() -> None:
    from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE

    behaviour = DingTalkConferenceHook.get_ui_field_behaviour()
    assert set(behaviour) == {"hidden_fields", "relabeling", "placeholders"}
    try:
        import flask_appbuilder  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError):
            DingTalkConferenceHook.get_connection_form_widgets()
    else:
        widgets = DingTalkConferenceHook.get_connection_form_widgets()
        assert list(widgets) == list(CONNECTION_TYPE["conn-fields"])


def test_a_connection_as_a_uri_works_as_well(
    face: Face, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", sandbox.connection_uri("unified"))
    hook = face.hook(dingtalk_conn_id="other")
    assert face.do("lock_conference", "sandbox-open", hook=hook)["success"]
    assert json.loads(sandbox.calls_of("token")[0].body)["grant_type"] == "client_credentials"
