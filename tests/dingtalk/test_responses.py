"""What every response means: a good one, or which error with which facts."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from typing import Any

import pytest

from airflow_provider_dingconf.dingtalk import errors
from airflow_provider_dingconf.dingtalk.calls import Call, Response, any_call, lock_call
from airflow_provider_dingconf.dingtalk.conferences import check_reference, conference_call
from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, Outcome
from airflow_provider_dingconf.dingtalk.responses import (
    MAX_RESPONSE_BYTES,
    CallResult,
    parse_retry_after,
    read_response,
)
from airflow_provider_dingconf.dingtalk.tokens import App

LOCK = lock_call(check_reference("conference"), "lock")
TOKEN = App("id", "the-secret").token_call()
OTHER = any_call("GET", "/v1.0/conference/orgConferences")
NOW = 1_700_000_000.0


def read(
    status: int,
    body: Any = b"",
    headers: dict[str, str] | None = None,
    call: Call = LOCK,
    secrets: tuple[str, ...] = (),
) -> CallResult:
    """Read a response; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_response(call, Response(status, headers or {}, content), NOW, secrets)


def error_of(*args: Any, **options: Any) -> DingTalkError:
    """Return the error that a response stands for."""
    with pytest.raises(DingTalkError) as caught:
        read(*args, **options)
    return caught.value


# Good responses


@pytest.mark.parametrize(
    ("call", "status", "body", "content"),
    [
        *((LOCK, 200, body, body) for body in (
            {"success": True}, {"success": True, "errcode": 0}, {"success": True, "code": "200"},
            {"success": True, "code": "OK"})),
        *((OTHER, 200, body, body) for body in (
            {}, {"code": 200, "cause": ""}, {"code": "some-code-of-a-meeting"}, {"infos": []}, [1], [], True,
            False, 7, "x")),
        (OTHER, 200, b"null", None), (OTHER, 200, b"", None), (OTHER, 204, b"", None),
        (OTHER, 202, b" \n", None), (OTHER, 201, {"a": 1}, {"a": 1}),
        (LOCK, 200, b'{"success":true}'.ljust(MAX_RESPONSE_BYTES), {"success": True}),
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, Call) else value.name,
)  # fmt: skip
def test_a_good_response_is_its_content(call: Call, status: int, body: Any, content: Any) -> None:
    result = read(status, body, {"x-acs-request-id": "R-1"}, call=call)
    assert result == CallResult(content, "R-1")
    assert type(result.content) is type(content)


@pytest.mark.parametrize("name", ["requestid", "requestId", "RequestId", "request_id"])
def test_the_request_id_of_a_response_is_kept(name: str) -> None:
    assert read(200, {"success": True, name: "R-1"}).request_id == "R-1"
    assert read(200, {"success": True}).request_id is None
    assert error_of(502, b"", {"x-acs-request-id": "R-3"}).request_id == "R-3"


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "deflate"])
def test_a_compressed_response_is_read(encoding: str) -> None:
    plain = b'{"success":true}'
    packed = zlib.compress(plain) if encoding == "deflate" else gzip.compress(plain)
    for body in (packed, plain):  # a proxy can say it, and not do it
        assert read(200, body, {"content-encoding": encoding}).content == {"success": True}


# The table


@pytest.mark.parametrize("code", [row.code for row in ERRORS.values() if row.sent_by_dingtalk])
def test_every_code_of_the_table_is_the_error_the_table_says(code: str) -> None:
    row = ERRORS[code]
    for status in row.http_status or (400,):
        error = error_of(status, {"code": code, "requestid": "R-1", "message": "said"})
        kind = errors.AccessTokenError if status == 401 else row.error
        assert (type(error), error.code, error.http_status) == (kind, code, status)
        assert (error.request_id, error.message, error.retry_after) == ("R-1", "said", row.wait)
        assert error.outcome is kind.outcome
        assert error.scope is (row.scope if kind is row.error else kind.scope)
        about = row if isinstance(error, row.error) else kind
        for said in (code, f"HTTP {status}", "R-1", about.meaning, about.remedy):
            assert said in str(error)


FORBIDDEN = "Forbidden.AccessDenied."
UNREADABLE = "unreadableAnswer"
SAID = {"code": "x", "message": "said"}
BAN = {"status": 1111, "wait": 5, "source": "x5", "punish": "deny", "uuid": "U-1"}
BAN_PAGE = b'  <!DOCTYPE html>\n<html><script src="//g.alicdn.com/sd/baxia/baxiaCommon.js"></script></html>'
DENIED_PAGE = b"<html><body>Access denied: deny</body></html>"
DECISIONS: list[tuple[type[DingTalkError], str | None, list[tuple[int, Any]]]] = [
    # No code, or none of the table: the status decides.
    (errors.RefusedError, "x", [(400, SAID), (404, SAID)]),
    (errors.AccessTokenError, "x", [(401, SAID)]),
    (errors.PermissionDeniedError, "x", [(403, SAID)]),
    (errors.ThrottledError, "x", [(429, SAID)]),
    (errors.ServerError, "x", [(500, SAID), (599, SAID)]),
    (errors.RefusedError, "confclosed", [(400, {"code": "confclosed"})]),
    (errors.ServerError, "system.error", [(500, {"code": "system.error"})]),
    (errors.RefusedError, None, [(400, {}), (400, {"code": ["confClosed"]}), (400, {"code": True})]),
    (errors.ServerError, None, [(500, {}), (503, b""), (504, b"upstream timed out"), (500, DENIED_PAGE), (502, b"<html>x</html>")]),
    (errors.PermissionDeniedError, None, [(403, b"")]),
    (errors.AccessTokenError, None, [(401, b"")]),
    (errors.ThrottledError, None, [(429, DENIED_PAGE)]),
    (errors.AccessTokenError, "paramsError", [(401, {"code": "paramsError"})]),
    (errors.ServerError, "unknownError", [(500, {"code": "unknownError"})]),
    # The body says that a status of success is none.
    (errors.ResponseError, "notConfirmed", [(200, {}), (200, {"wait": 5}), (200, {"status": 1111}), *((200, {"success": said}) for said in (False, "true", 1))]),
    (errors.ConferenceClosedError, "confClosed", [(200, {"success": True, "code": "confClosed"})]),
    (errors.ThrottledError, "90018", [(200, {"errcode": 90018, "errmsg": "slow"})]),
    (errors.ThrottledError, "90002", [(200, {"errcode": "90002"}), (200, {"errcode": 88, "sub_code": 90002})]),
    (errors.RefusedError, "40035", [(200, {"errcode": 40035})]),
    (errors.RefusedError, "404", [(200, {"errcode": 404})]),
    (errors.AccessTokenError, "40014", [(200, {"errcode": 40014}), (200, {"errcode": 88, "sub_code": "40014"})]),
    (errors.RefusedError, "88", [(200, {"errcode": 88})]),
    (errors.PermissionDeniedError, "60011", [(200, {"errcode": 88, "sub_code": "60011"})]),
    (errors.RefusedError, "isv.x", [(200, {"errcode": 88, "sub_code": "isv.x"})]),
    (errors.QuotaExhaustedError, "90020", [(200, {"errcode": 90020})]),
    # Families of codes.
    *((errors.ThrottledError, code, [(403, {"code": code})]) for code in (f"{FORBIDDEN}QpsLimitForX", f"{FORBIDDEN}QpmLimitForX")),
    (errors.QuotaExhaustedError, f"{FORBIDDEN}ApiCountLimitForX", [(403, {"code": f"{FORBIDDEN}ApiCountLimitForX"})]),
    (errors.PermissionDeniedError, f"{FORBIDDEN}X", [(403, {"code": f"{FORBIDDEN}X"})]),
    # No JSON object, and pages of other servers.
    (errors.ResponseError, UNREADABLE, [
        *((200, body) for body in (b"OK", b"", b"null", [1], b'{"success": tr', b"\xff\xfe\x00", DENIED_PAGE)),
        *((200, body) for body in (b"[" * 100_000, b'{"a":' * 100_000, b'{"code":' + b"9" * 5_000 + b"}")),
        (200, b" " * (MAX_RESPONSE_BYTES + 1)), (204, b""),
    ]),
    (errors.RefusedError, UNREADABLE, [(404, b"<!doctype html><title>Not here</title>"), (400, DENIED_PAGE), (407, b"<html>Proxy login</html>")]),
    (errors.AccessTokenError, UNREADABLE, [(401, b"<html><h1>401 Authorization Required</h1></html>")]),
    # The ban, whose status is not documented.
    (errors.AddressBannedError, "addressBanned", [
        *((status, BAN) for status in (200, 400, 401, 403, 429, 500, 503)),
        (200, {"status": 1111, "wait": 5}), (200, {"punish": "deny"}),
        *((status, BAN_PAGE) for status in (200, 400, 403, 429, 503)),
        (403, b"<!DOCTYPE html><html><body>Access denied</body></html>"),
    ]),
    (errors.RedirectError, "redirect", [(status, b"") for status in (301, 302, 303, 304, 307, 308)]),
]  # fmt: skip
CASES = [(kind, code, *case) for kind, code, cases in DECISIONS for case in cases]


@pytest.mark.parametrize(
    ("kind", "code", "status", "body"), CASES, ids=[f"{case[2]} {str(case[3])[:40]}" for case in CASES]
)
def test_every_response_is_one_error(
    kind: type[DingTalkError], code: str | None, status: int, body: Any
) -> None:
    error = error_of(status, body)
    assert (type(error), error.code, error.http_status) == (kind, code, status)
    assert str(error).isprintable()


MARKS = [
    b"x5secdata=1", b"https://api.dingtalk.com/_____tmd_____/punish?x=1", b'{"action":"x","punish":"deny"}',
    b'<script src="https://g.alicdn.com/sd/punish/deny_pc.html">', b"window.baxiaCommon",
    b'<script src="https://gw.alicdn.com/x/deny.js">',
]  # fmt: skip
NO_MARKS = [
    b"deny", b"Access is denied by policy 1111", b"violations are punished", b"we may punish you",
    b'<p class="deny">no</p>', b"action=deny", b'<script src="//g.alicdn.com/alilog/mlog/aplus.js">',
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "banned"), [*((mark, True) for mark in MARKS), *((words, False) for words in NO_MARKS)]
)
def test_a_page_is_the_ban_if_it_has_a_mark_of_the_firewall(words: bytes, banned: bool) -> None:
    for status in (200, 400, 500):
        assert (error_of(status, b"<html>" + words).code == "addressBanned") is banned
    assert type(error_of(403, b"<html>" + words)) is errors.AddressBannedError


@pytest.mark.parametrize(
    ("page", "headers"),
    [
        (b"<title>squid: access to host denied</title>", {}),
        (b"<h1>403 Forbidden</h1><center>nginx</center>", {}),
        (b"<h1>FortiGuard Intrusion Prevention</h1>", {}),
        (b"<h1>Forbidden</h1>", {"server": "Apache/2.4"}),
        (b"<h1>Forbidden</h1>", {"via": "1.1 proxy.example (squid/6)"}),
    ],
)
def test_a_refusal_of_a_proxy_or_a_web_server_is_no_ban(page: bytes, headers: dict[str, str]) -> None:
    error = error_of(403, b"<html>" + page, headers)
    assert (type(error), error.code, error.concerns_all) == (errors.RefusedError, "unreadableAnswer", True)
    assert "proxies" in str(error)


def test_a_page_is_named_by_its_title_or_its_text_in_short_and_not_retried_at_once() -> None:
    page = b"<html><h1>Welcome</h1> to <b>our</b> network<script>let x = 1</script></html>"
    error = error_of(200, page)
    assert error.message == "an HTML page came, not JSON: Welcome to our network"
    assert (error.repeat, error.outcome) == (False, Outcome.RETRY)
    page = b"<!DOCTYPE html><html><head><title>\n Maintenance </title></head>until noon</html>"
    assert error_of(403, page).message.endswith(": Maintenance")
    for odd in (b"<title" * 150_000, b"<script" * 140_000, b"alicdn.com/" * 90_000, b"x" * 1_000_000):
        assert len(str(error_of(400, b"<html>" + odd))) < 1_000


@pytest.mark.parametrize("name", ["message", "Message", "errmsg"])
def test_each_form_of_the_message_is_read(name: str) -> None:
    assert error_of(400, {"code": "x", name: "said"}).message == "said"


@pytest.mark.parametrize("call", [LOCK, OTHER, TOKEN], ids=lambda call: call.name)
@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ({"code": "conf.readonly", "message": "the host has left"}, ": conf.readonly: the host has left"),
        ({"Code": "conf.readonly"}, ": conf.readonly"),
        ({"code": "0", "Message": "the host\x1b\r\n\u202ehas left"}, ": the host has left"),
        ({"code": None, "message": ["x"]}, ""),
        ({"code": "x", "message": "y" * 10_000}, f": x: {'y' * 263}…"),
    ],
)
def test_the_error_says_why_a_response_does_not_confirm(body: Any, reasons: str, call: Call) -> None:
    error = error_of(200, {"success": False, **body}, call=call)
    assert (error.code, error.message) == ("notConfirmed", f"success is false in the response{reasons}")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"code": "invalidClientIdOrSecret"}, errors.CredentialsError),
        (400, {"code": "something new"}, errors.CredentialsError),
        (401, {"code": "unauthorized.client"}, errors.CredentialsError),
        (401, {"code": "something new"}, errors.CredentialsError),
        (400, {"code": "InvalidAuthentication"}, errors.CredentialsError),
        (403, {"code": "Forbidden.AccessDenied.IpNotInWhiteList"}, errors.PermissionDeniedError),
        (429, {}, errors.ThrottledError),
        (500, {"code": "server.error"}, errors.ServerError),
        (500, {"code": "unknownError"}, errors.CredentialsError),
        (200, {"errcode": 40089}, errors.CredentialsError),
        (403, {"code": "Forbidden.AccessDenied.ApiCountLimitForOrg"}, errors.QuotaExhaustedError),
    ],
)
def test_a_refused_token_call_is_about_the_credentials(
    status: int, body: dict[str, Any], kind: type[DingTalkError]
) -> None:
    error = error_of(status, body, call=TOKEN)
    assert type(error) is kind
    if body == {"code": "unknownError"}:
        assert "Check Client ID (login) and Organisation (corpId) in the connection first" in str(error)
        assert "DingTalk's side" not in str(error)


@pytest.mark.parametrize("name", ["accessdenieddetail", "AccessDeniedDetail"])  # the official SDK reads both
def test_the_permission_points_that_dingtalk_names_are_the_ones_to_grant(name: str) -> None:
    code = "Forbidden.AccessDenied.AccessTokenPermissionDenied"
    named = {"requiredScopes": ["Contact.User.Read", "qyapi_x", 7]}
    error = error_of(403, {"code": code, name: named})
    assert "grants the app Contact.User.Read, qyapi_x." in str(error)
    assert "VideoConference" not in str(error)
    assert str(DingTalkError.from_dict(error.as_dict())) == str(error)
    for nothing in (None, [], {"requiredScopes": []}, {"requiredScopes": "x"}, {"requiredScopes": [None]}):
        assert ERRORS[code].remedy in str(error_of(403, {"code": code, name: nothing}))


def test_a_documented_call_needs_its_object() -> None:
    for body in (b"", b"[]", b"true", b"null"):
        assert error_of(200, body, call=conference_call(check_reference("x"))).code == "unreadableAnswer"
    for status, body in ((500, b""), (400, b"[1]"), (200, b"OK"), (200, b"<html></html>")):
        assert error_of(status, body, call=OTHER).http_status == status


def test_a_bare_403_may_be_a_permission_or_a_rate_limit() -> None:
    for body in (b"", {}, {"code": "Forbidden.Something"}):
        said = str(error_of(403, body))
        assert "permission" in said
        assert "rate limit" in said


# Waiting


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 120 ", 120.0),
        ("0007", 7.0),
        ("9" * 5_000, 999_999_999_999.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799.0 - NOW),
        *(
            (value, None)
            for value in (
                None, "", " ", "-5", "+5", "1.5", "1e3", "soon", "٣", "Tue, 99 Foo 2023 25:61:61 GMT",
                "Mon, 01 Jan 99999 00:00:00 GMT", "Mon,", ",", "NaN", "inf", "1, 2",
                "Mon, 01 Jan 2024 00:00:00 +99999999999999999999",
            )
        ),
    ],
)  # fmt: skip
def test_what_retry_after_says(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "date", ["Tue Nov 14 22:14:50 2023", "Tue, 14 Nov 2023 22:14:50", "Tue, 14 Nov 2023 22:14:50 -0000"]
)
@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/New_York"])
def test_a_date_without_a_time_zone_is_in_gmt_wherever_the_worker_is(
    monkeypatch: pytest.MonkeyPatch, zone: str, date: str
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", zone)
        time.tzset()
        assert parse_retry_after(date, NOW) == 90.0
    time.tzset()


QPM = {"code": "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi"}


def limit_ends(seconds: int, what: str = "限制", code: str = "Forbidden.AccessDenied.QpsLimitForApi") -> Any:
    """Return a response that names the moment at which a limit ends, in China time."""
    moment = datetime.fromtimestamp(NOW + seconds, timezone(timedelta(hours=8)))
    return {"code": code, "message": f"请求总次数超过20次, {what}将在 {moment:%Y-%m-%d %H:%M:%S} 结束"}


@pytest.mark.parametrize(
    ("body", "header", "wait"),
    [
        (QPM, None, 60.0),
        (QPM, "7", 7.0),
        (QPM, "soon", 60.0),
        *((limit_ends(seconds, what), None, wait) for what in ("限制", "处罚")
          for seconds, wait in ((5, 5.0), (0, 0.0), (-60, 0.0), (3_600, 3_600.0), (864_000, 3_600.0))),
        (limit_ends(5), "7", 7.0),
        (limit_ends(5, code="paramsError"), None, None),
        ({"errcode": 90018, "errmsg": "限制将在 2026-99-09 12:00:01 结束"}, None, None),
    ],
)  # fmt: skip
def test_the_wait_is_that_of_retry_after_or_else_of_the_message_or_the_table(
    body: Any, header: str | None, wait: float | None
) -> None:
    assert error_of(403, body, {"retry-after": header} if header else {}).retry_after == wait


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [
        (5, 300.0), (1, 60.0), (0.5, 30.0),
        *((nonsense, 300.0) for nonsense in (0, -1, None, "5", True, [5], float("nan"), float("inf"), 10**400)),
    ],
)  # fmt: skip
def test_a_ban_says_in_minutes_how_long_it_lasts(wait: Any, seconds: float) -> None:
    error = error_of(200, {"status": 1111, "wait": wait, "punish": "deny", "uuid": "U-1"})
    assert (error.retry_after, error.request_id, error.repeat) == (seconds, "U-1", False)
    assert error.outcome is Outcome.RETRY


# Hostile responses


def test_a_compression_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(b"{" + b" " * (50 * MAX_RESPONSE_BYTES))
    assert len(bomb) < MAX_RESPONSE_BYTES
    error = error_of(200, bomb, {"content-encoding": "gzip"})
    assert error.code == "unreadableAnswer"
    assert str(MAX_RESPONSE_BYTES) in error.message


SECRETS = ("s3cr3t-0123456789abcdef", 'q"uo\\te', "s3cr3t-0123456789abcdef-and-longer")
ECHOES = {
    "message": lambda word: (400, {"code": "x", "message": f"no app {word}"}, {}),
    "code": lambda word: (400, {"code": f"no {word}"}, {}),
    "errcode": lambda word: (200, {"errcode": word}, {}),
    "request id": lambda word: (400, {"code": "x", "requestid": word}, {}),
    "request id header": lambda word: (500, {}, {"x-acs-request-id": word}),
    "location": lambda word: (302, b"", {"location": f"https://other.example/?token={word}"}),
    "success": lambda word: (200, {"success": word}, {}),
    "code without success": lambda word: (200, {"success": False, "code": word}, {}),
    "message without success": lambda word: (200, {"success": False, "message": word}, {}),
    "page": lambda word: (502, f"upstream said {word}".encode(), {}),
    "JSON in a page": lambda word: (502, f"upstream said {json.dumps(word)}".encode(), {}),
    "cut by the message's end": lambda word: (400, {"code": "x", "message": "-" * 285 + word}, {}),
    "cut by the page's end": lambda word: (502, (" " * 590 + word).encode(), {}),
    "cut by the page's end, in many words": lambda word: (502, (("a" + " " * 9) * 59 + word).encode(), {}),
    "after other secrets": lambda word: (502, (word * 100).encode(), {}),
}


@pytest.mark.parametrize("word", SECRETS)
@pytest.mark.parametrize("echo", ECHOES)
def test_a_secret_that_the_server_echoes_is_shown_to_no_one(echo: str, word: str) -> None:
    status, body, headers = ECHOES[echo](word)
    error = error_of(status, body, headers, secrets=SECRETS)
    shown = f"{error} {error!r} {error.code} {error.request_id} {error.message} {vars(error)}"
    assert not [part for part in (word[:8], word[-8:], "s3cr3t", "-and-longer", "uo") if part in shown]
