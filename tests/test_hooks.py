"""The hook as its users see it, waiting and awaiting, against a DingTalk that fails in many ways."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import time
import traceback
import weakref
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowNotFoundException
from waiting import wait_until

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.dingtalk.errors import (
    AccessTokenError,
    AddressBannedError,
    CallTimeoutError,
    ConnectionLostError,
    CredentialsError,
    DingTalkError,
    InvalidInputError,
    ParameterError,
    PermissionDeniedError,
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
"""Both run the same coroutine: one or two tests of each method show that waiting for it works."""


def token_of(call: Any) -> str:
    return call.header("x-acs-dingtalk-access-token") or ""


def names(sandbox: Sandbox) -> list[str]:
    return [call.name for call in sandbox.calls]


# Locking and unlocking


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


@pytest.mark.parametrize("limits", [
    *({"max_attempts": value} for value in (0, -1, 1.5, "3", None, True)),
    *({"max_seconds": value} for value in (0, -1, "60", None, True, float("nan"), float("inf"), 86_401, 10**400)),
    pytest.param({"max_seconds": 10**5000}, id="huge"),
], ids=lambda limits: "{} of {!r:.20}".format(*next(iter(limits.items()))))  # fmt: skip
def test_an_invalid_limit_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(limits))):
        DingTalkConferenceHook(**limits)


# A block of code in a locked meeting


def raises(error: BaseException) -> Callable[[], None]:
    def inside() -> None:
        raise error

    return inside


@pytest.mark.parametrize(
    "error",
    [None, RuntimeError("inside"), KeyboardInterrupt(), SystemExit(1)],
    ids=lambda e: type(e).__name__,
)
@SYNC_TOO
def test_a_meeting_is_unlocked_whatever_happens_inside(
    face: Face, sandbox: Sandbox, error: BaseException | None
) -> None:
    meeting = sandbox.create_conference()

    def inside() -> None:
        assert sandbox.conference(meeting).locked
        if error:
            raise error

    with pytest.raises(type(error)) if error else nullcontext():
        face.inside(inside, meeting)
    assert names(sandbox) == ["token", "lock", "unlock"]
    assert not sandbox.conference(meeting).locked


def test_a_meeting_that_ends_inside_the_block_is_no_error(face: Face, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    face.inside(lambda: sandbox.end(meeting), meeting)
    assert sandbox.calls[-1].code == "confClosed"


@pytest.mark.parametrize("code", ["confClosed", "noPermission", "paramsError", "systemBusy", "addressBanned"])
@SYNC_TOO
def test_a_refused_lock_enters_no_block_and_costs_no_unlock(face: Face, sandbox: Sandbox, code: str) -> None:
    with pytest.raises(DingTalkError, match=code):
        face.inside(lambda: pytest.fail("entered"), f"sandbox-{code}", hook=face.hook(max_attempts=1))
    assert names(sandbox) == ["token", "lock"]


@SYNC_TOO
def test_a_lock_whose_response_was_lost_is_undone(face: Face, sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    sandbox.fail(Fault(call="lock", drop=True, after=True))
    with pytest.raises(ConnectionLostError):
        face.inside(lambda: pytest.fail("entered"), meeting, hook=face.hook(max_attempts=1))
    assert names(sandbox) == ["token", "lock", "unlock"]
    assert not sandbox.conference(meeting).locked


@pytest.mark.parametrize(
    "wrapped",
    [nullcontext, task_outcome, partial(task_outcome, {"systemError": "fail"})],
    ids=["in code", "in a task", "in a task with on_error"],
)
@SYNC_TOO
def test_an_unlock_that_fails_is_an_error_and_hides_no_error_of_the_block(
    face: Face, sandbox: Sandbox, wrapped: Callable[[], AbstractContextManager[Any]]
) -> None:
    sandbox.fail(Fault(call="unlock", code="systemError"))
    hook = face.hook(max_attempts=1)
    with pytest.raises(Exception, match="systemError"), wrapped():
        face.inside(lambda: None, "sandbox-open", hook=hook)
    with pytest.raises(Exception, match="systemError") as caught, wrapped():
        face.inside(raises(ZeroDivisionError("the block's own")), "sandbox-open", hook=hook)
    shown = "".join(traceback.format_exception(caught.value))
    assert "ZeroDivisionError: the block's own" in shown
    assert sandbox.client_secret not in shown


# Tokens


@pytest.mark.parametrize(
    ("kind", "refuses", "calls"),
    [
        ("internal", "the shared one", ["lock", "token", "lock"]),
        ("internal", "every one", ["lock", "token", "lock"]),
        ("static_token", "the shared one", ["lock"]),
    ],
    ids=["a shared token", "every token", "a static token"],
)
def test_a_refused_token_is_replaced_once_unless_it_is_static(
    face: Face, conn: Callable[..., None], sandbox: Sandbox, kind: str, refuses: str, calls: list[str]
) -> None:
    conn(kind)
    face.do("lock_conference", "sandbox-open")
    sandbox.clear()
    sandbox.revoke_tokens()
    meeting = "sandbox-InvalidAuthentication" if refuses == "every one" else "sandbox-open"
    if (kind, refuses) == ("internal", "the shared one"):
        assert face.do("lock_conference", meeting)["attempts"] == 1
    else:
        with pytest.raises(AccessTokenError) as caught:
            face.do("lock_conference", meeting)
        assert "a static access token has to be replaced" in str(caught.value)
        assert "fresh" not in str(caught.value)
    assert names(sandbox) == calls


def test_wrong_credentials_are_refused_once(face: Face, conn: Callable[..., None], sandbox: Sandbox) -> None:
    conn(password="a-wrong-secret")
    with pytest.raises(CredentialsError) as caught:
        face.do("lock_conference", "sandbox-open")
    assert "a-wrong-secret" not in str(caught.value)
    assert names(sandbox) == ["token"]


# Retries within a call


def test_a_call_is_attempted_no_more_often_than_max_attempts(face: Face, sandbox: Sandbox) -> None:
    with pytest.raises(DingTalkError) as caught:
        face.do("lock_conference", "sandbox-notConfirmed", hook=face.hook(max_attempts=2))
    assert caught.value.attempts == 2
    assert len(sandbox.calls_of("lock")) == 2


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        (Fault(call="token", code="server.error", times=1), ["token", "token", "lock"]),
        (Fault(call="lock", drop=True, after=True, times=1), ["token", "lock", "lock"]),
    ],
    ids=["token call", "lost response"],
)
def test_a_fault_that_passes_costs_one_more_call(
    face: Face, sandbox: Sandbox, fault: Fault, calls: list[str]
) -> None:
    sandbox.fail(fault)
    assert face.do("lock_conference", "sandbox-open")["attempts"] == 2
    assert names(sandbox) == calls


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


@pytest.mark.parametrize("call", ["lock", "token"])
@SYNC_TOO
def test_a_slow_dingtalk_costs_no_more_than_max_seconds(face: Face, sandbox: Sandbox, call: str) -> None:
    sandbox.fail(Fault(call=call, delay=30))
    began = time.monotonic()
    with pytest.raises(CallTimeoutError):
        face.do("lock_conference", "sandbox-open", hook=face.hook(max_seconds=0.5))
    assert time.monotonic() - began < 9
    assert sandbox.calls[-1].name == call


@pytest.mark.parametrize("page", ["addressBanned", "addressBanned-html"])
@pytest.mark.parametrize("call", ["lock", "token"])
def test_a_banned_address_makes_one_call_and_none_afterwards(
    face: Face, conn: Callable[..., None], sandbox: Sandbox, page: str, call: str
) -> None:
    sandbox.fail(Fault(call=call, code=page, times=1))
    meetings: dict[str, Any] = {"lock_conferences": ["a", "b"]}
    without_token = ["lock_conferences"] if call == "token" else []
    for method in ("lock_conference", "lock_conference", "unlock_conference", *without_token):
        with pytest.raises(AddressBannedError) as caught:
            face.do(method, meetings.get(method, "sandbox-open"))
        assert 290 < caught.value.retry_after <= 300
        assert not caught.value.uncertain
        if method != "lock_conference":
            token_cache.forget()  # as another process begins
    worked, said = face.do("test_connection")
    assert not worked
    assert "addressBanned" in said
    assert names(sandbox) == (["token"] if call == "token" else ["token", "lock"])
    with Sandbox() as other:
        conn(host=other.url)
        assert face.do("lock_conference", "sandbox-open")["success"], "other hosts are not banned"


def test_only_the_meeting_whose_response_was_lost_is_uncertain(face: Face, sandbox: Sandbox) -> None:
    made = [sandbox.create_conference() for _ in range(5)]
    sandbox.fail(Fault(call="lock", drop=True, after=True, times=1))
    sandbox.fail(Fault(call="lock", code=THROTTLED, headers={"Retry-After": "600"}))
    results = face.do("lock_conferences", made, concurrency=1)
    assert [(one.attempts, one.error.uncertain) for one in results] == [(2, True), *[(0, False)] * 4]


def test_a_call_whose_time_is_over_before_it_is_sent_took_no_effect(face: Face, sandbox: Sandbox) -> None:
    face.do("lock_conference", "sandbox-open")
    known = len(sandbox.calls)
    with pytest.raises(CallTimeoutError, match=r"no time is left .* Raise max_seconds") as caught:
        face.do(
            "call", "POST", "/v1.0/im/groups", json={}, repeatable=False, hook=face.hook(max_seconds=1e-9)
        )
    assert len(sandbox.calls) == known
    assert not caught.value.uncertain
    assert "may have taken effect" not in str(caught.value)


# Any other call


@pytest.mark.parametrize("method", ["GET", "post", "PUT", "PATCH", "DELETE"])
@SYNC_TOO
def test_any_other_call_has_its_method_parameters_and_body_and_the_same_token_and_errors(
    face: Face, sandbox: Sandbox, method: str
) -> None:
    path = "/v1.0/conference/videoConferences/644272f14ba3310"
    sandbox.fail(Fault(path=path, body={"code": 200, "cause": ""}))
    params = {"unionId": "a b+c&d=e/f?g:h@i%j,k;l", "name": "会议", "n": 1, "all": True}
    body = None if method in {"GET", "DELETE"} else {"confTitle": '会议 "x"', "inviteUserIds": []}
    assert face.do("call", method, path, params=params, json=body) == {"code": 200, "cause": ""}
    call = sandbox.calls[-1]
    assert (call.method, call.path.partition("?")[0]) == (method.upper(), path)
    assert call.parameters.items() >= (params | {"n": "1", "all": "true"}).items()
    assert (call.json() if body else call.body) == (body or b"")
    assert token_of(call)
    with pytest.raises(DingTalkError, match="HTTP 4"):
        face.do("call", method, "/v1.0/no/such/call", json=body)
    assert names(sandbox) == ["token", call.name, "unknown"]


@pytest.mark.parametrize(
    ("method", "args", "options", "problem"),
    [
        ("lock_conference", [""], {}, "conference_id"),
        ("lock_conference", ["a/b"], {}, "conference_id"),
        ("lock_conference", [None], {}, "conference_id"),
        ("call", ["FETCH", "/v1.0/x"], {}, "method"),
        ("call", ["GET", "/a/../b"], {}, "path"),
        ("call", ["POST", "/v1.0/x"], {"json": {"when": object()}}, "cannot be sent"),
        ("call", ["POST", "/v1.0/x"], {"params": {"names": ["a", "b"]}}, "cannot be sent"),
    ],
    ids=["no id", "id of two segments", "None as id", "method", "path", "body", "parameter"],
)
def test_what_cannot_be_sent_is_refused_before_any_call(
    face: Face, sandbox: Sandbox, method: str, args: list[Any], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        face.do(method, *args, **options)
    assert not sandbox.calls


def test_the_error_names_the_permission_that_an_app_lacks(face: Face, conn: Callable[..., None]) -> None:
    conn("unpermitted")
    with pytest.raises(PermissionDeniedError, match=r"VideoConference\.Conference\.Write"):
        face.do("lock_conference", "sandbox-open")


@pytest.mark.usefixtures("conn", "sandbox")
def test_a_hook_is_released_together_with_its_error() -> None:
    hook = DingTalkConferenceHook(max_attempts=1)
    released = weakref.ref(hook)
    assert hook.settings
    gc.collect()  # Airflow 3.1 keeps a reference when it looks up a connection
    gc.disable()
    try:
        with suppress(DingTalkError):
            hook.lock_conference("sandbox-paramsError")
        del hook
        wait_until(lambda: released() is None)  # the background thread is about to let it go
    finally:
        gc.enable()


# The connection


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_was_used_can_be_copied_and_pickled_and_hands_on_no_secret(
    sandbox: Sandbox, conn: Callable[..., None], kind: Any
) -> None:
    conn(kind)
    hook = DingTalkConferenceHook(max_attempts=2)
    assert hook.lock_conference("sandbox-open")["success"]
    pickled = pickle.dumps(hook)
    secrets = (*hook.settings.secrets, token_of(sandbox.calls[-1]))
    assert not any(secret.encode() in pickled for secret in secrets)
    for other in (pickle.loads(pickled), copy.deepcopy(hook), copy.copy(hook)):  # noqa: S301 - our own
        assert other.max_attempts == 2
        assert other.lock_conference("sandbox-open")["success"]
        other.close()
    assert hook.lock_conference("sandbox-open")["success"]
    hook.close()


@SYNC_TOO
def test_a_connection_that_is_not_defined_is_airflows_own_error(face: Face) -> None:
    with pytest.raises(AirflowNotFoundException, match="no_such_connection"):
        face.do("lock_conference", "1", hook=face.hook(dingtalk_conn_id="no_such_connection"))


@pytest.mark.parametrize("kind", [*KINDS, "static_token that may not read"])
@SYNC_TOO
def test_the_test_button_passes_a_good_connection(
    face: Face, conn: Callable[..., None], sandbox: Sandbox, kind: str
) -> None:
    conn(kind.partition(" ")[0])
    if "may not read" in kind:
        sandbox.fail(Fault(call="list", code="Forbidden.AccessDenied.AccessTokenPermissionDenied"))
    worked, said = face.do("test_connection")
    assert worked, said
    static = kind.startswith("static_token")
    assert ("accepts the access token" if static else "gave an access token for the ") in said


@pytest.mark.parametrize(
    ("kind", "overrides", "fault", "problem"),
    [
        ("internal", {"password": "a-wrong-secret"}, None, "invalidClientIdOrSecret"),
        ("internal", {"host": "http://127.0.0.1:1"}, None, "connectionLost"),
        ("internal", {"login": ""}, None, "login (Client ID)"),
        ("static_token", {}, "InvalidAuthentication", "InvalidAuthentication"),
        ("static_token", {}, "Forbidden.AccessDenied.IpNotInWhiteList", "IpNotInWhiteList"),
    ],
    ids=["wrong secret", "no DingTalk there", "no login", "refused static token", "address not allowed"],
)
@SYNC_TOO
def test_the_test_button_says_what_is_wrong_with_a_connection(
    face: Face,
    conn: Callable[..., None],
    sandbox: Sandbox,
    kind: str,
    overrides: dict[str, Any],
    fault: str | None,
    problem: str,
) -> None:
    conn(kind, **overrides)
    if fault:
        sandbox.fail(Fault(call="list", code=fault))
    worked, said = face.do("test_connection", hook=face.hook(max_seconds=5))
    assert not worked
    assert problem in said
    assert "a-wrong-secret" not in said


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


# Logs and tracebacks


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
