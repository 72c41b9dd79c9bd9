"""What every response means: a good one, or which error with which facts."""

from __future__ import annotations

import gzip
import json
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
    """Read an answer; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_response(call, Response(status, headers or {}, content), NOW, secrets)


def error_of(*args: Any, **options: Any) -> DingTalkError:
    """Return the error that an answer stands for."""
    with pytest.raises(DingTalkError) as caught:
        read(*args, **options)
    return caught.value


# Good responses


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ({"success": True}, LOCK),
        ({"success": True, "errcode": 0}, LOCK),
        ({"success": True, "code": "200"}, LOCK),
        ({"success": True, "code": "OK"}, LOCK),
        ({}, OTHER),
        ({"code": 200, "cause": ""}, OTHER),
        ({"code": "some-code-of-a-meeting"}, OTHER),
        ({"infos": []}, OTHER),
    ],
)
def test_a_good_response_is_its_content(body: dict[str, Any], call: Call) -> None:
    assert read(200, body, call=call) == CallResult(body, None)


@pytest.mark.parametrize("name", ["requestid", "requestId", "RequestId", "request_id"])
def test_the_request_id_of_an_answer_is_kept(name: str) -> None:
    assert read(200, {"success": True, name: "R-1"}).request_id == "R-1"
    assert read(200, {"success": True}, {"x-acs-request-id": "R-2"}).request_id == "R-2"
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
        expected = errors.AccessTokenError if status == 401 else row.error
        assert type(error) is expected
        assert (error.code, error.http_status, error.request_id, error.message) == (
            code,
            status,
            "R-1",
            "said",
        )
        assert error.retry_after == row.wait
        assert error.outcome is expected.outcome
        assert error.scope is (row.scope if expected is row.error else expected.scope)
        about = row if isinstance(error, row.error) else expected
        for said in (code, f"HTTP {status}", "R-1", about.meaning, about.remedy):
            assert said in str(error)


FORBIDDEN = "Forbidden.AccessDenied."
NO_BAN = {"code": "x", "message": "said"}
DECISIONS: dict[str, tuple[int, Any, type[DingTalkError], str | None]] = {
    # What there is no code for, or none in the table: the status decides.
    "unknown 400": (400, NO_BAN, errors.RefusedError, "x"),
    "unknown 404": (404, NO_BAN, errors.RefusedError, "x"),
    "unknown 401": (401, NO_BAN, errors.AccessTokenError, "x"),
    "known code with 401": (401, {"code": "paramsError"}, errors.AccessTokenError, "paramsError"),
    "unknown 403": (403, NO_BAN, errors.PermissionDeniedError, "x"),
    "unknown 429": (429, NO_BAN, errors.ThrottledError, "x"),
    "unknown 500": (500, NO_BAN, errors.ServerError, "x"),
    "unknown 599": (599, NO_BAN, errors.ServerError, "x"),
    "the code's case counts": (400, {"code": "confclosed"}, errors.RefusedError, "confclosed"),
    "the code's dots count": (500, {"code": "system.error"}, errors.ServerError, "system.error"),
    "no code 400": (400, {}, errors.RefusedError, None),
    "no code 500": (500, {}, errors.ServerError, None),
    "a code that is no text": (400, {"code": ["confClosed"]}, errors.RefusedError, None),
    "a code that is a boolean": (400, {"code": True}, errors.RefusedError, None),
    # A status of success is none where the body says otherwise.
    "success false": (200, {"success": False}, errors.ResponseError, "notConfirmed"),
    "success as a word": (200, {"success": "true"}, errors.ResponseError, "notConfirmed"),
    "success as a number": (200, {"success": 1}, errors.ResponseError, "notConfirmed"),
    "success missing": (200, {}, errors.ResponseError, "notConfirmed"),
    "code with 200": (200, {"success": True, "code": "confClosed"}, errors.ConferenceClosedError, "confClosed"),
    "errcode with 200": (200, {"errcode": 90018, "errmsg": "slow"}, errors.ThrottledError, "90018"),
    "errcode as text": (200, {"errcode": "90002", "errmsg": "slow"}, errors.ThrottledError, "90002"),
    "unknown errcode with 200": (200, {"errcode": 40035}, errors.RefusedError, "40035"),
    "unknown path with 200": (200, {"errcode": 404}, errors.RefusedError, "404"),
    "refused token with 200": (200, {"errcode": 40014}, errors.AccessTokenError, "40014"),
    "88 without a sub_code": (200, {"errcode": 88}, errors.RefusedError, "88"),
    "88, no permission": (200, {"errcode": 88, "sub_code": "60011"}, errors.PermissionDeniedError, "60011"),
    "88, throttled": (200, {"errcode": 88, "sub_code": 90002}, errors.ThrottledError, "90002"),
    "88, refused token": (200, {"errcode": 88, "sub_code": "40014"}, errors.AccessTokenError, "40014"),
    "88, anything else": (200, {"errcode": 88, "sub_code": "isv.x"}, errors.RefusedError, "isv.x"),
    "quota with 200": (200, {"errcode": 90020}, errors.QuotaExhaustedError, "90020"),
    # Families of codes.
    "unknown Qps": (403, {"code": f"{FORBIDDEN}QpsLimitForX"}, errors.ThrottledError, f"{FORBIDDEN}QpsLimitForX"),
    "unknown Qpm": (403, {"code": f"{FORBIDDEN}QpmLimitForX"}, errors.ThrottledError, f"{FORBIDDEN}QpmLimitForX"),
    "unknown quota": (403, {"code": f"{FORBIDDEN}ApiCountLimitForX"}, errors.QuotaExhaustedError, f"{FORBIDDEN}ApiCountLimitForX"),
    "another Forbidden": (403, {"code": f"{FORBIDDEN}X"}, errors.PermissionDeniedError, f"{FORBIDDEN}X"),
    "403 without anything": (403, b"", errors.PermissionDeniedError, None),
    "unknownError": (500, {"code": "unknownError"}, errors.ServerError, "unknownError"),
    "no JSON": (200, b"OK", errors.ResponseError, "unreadableAnswer"),
    "empty": (200, b"", errors.ResponseError, "unreadableAnswer"),
    "empty 204": (204, b"", errors.ResponseError, "unreadableAnswer"),
    "a list": (200, [1], errors.ResponseError, "unreadableAnswer"),
    "null": (200, b"null", errors.ResponseError, "unreadableAnswer"),
    "half an answer": (200, b'{"success": tr', errors.ResponseError, "unreadableAnswer"),
    "not UTF-8": (200, b"\xff\xfe\x00", errors.ResponseError, "unreadableAnswer"),
    "nested too deep": (200, b"[" * 100_000, errors.ResponseError, "unreadableAnswer"),
    "objects nested too deep": (200, b'{"a":' * 100_000, errors.ResponseError, "unreadableAnswer"),
    "a number too long": (200, b'{"code":' + b"9" * 5_000 + b"}", errors.ResponseError, "unreadableAnswer"),
    "too long": (200, b" " * (MAX_RESPONSE_BYTES + 1), errors.ResponseError, "unreadableAnswer"),
    # Gateways.
    "gateway 502": (502, b"<html><h1>502 Bad Gateway</h1></html>", errors.ServerError, None),
    "gateway 503 empty": (503, b"", errors.ServerError, None),
    "gateway 504 text": (504, b"upstream timed out", errors.ServerError, None),
    "another server's 404": (404, b"<!doctype html><title>Not here</title>", errors.RefusedError, "unreadableAnswer"),
    **{
        f"page with {status}": (status, b"<html><body>Access denied: deny</body></html>", kind, code)
        for status, kind, code in (
            (200, errors.ResponseError, "unreadableAnswer"),
            (400, errors.RefusedError, "unreadableAnswer"),
            (429, errors.ThrottledError, None),
            (500, errors.ServerError, None),
        )
    },
    "401 without JSON": (401, b"", errors.AccessTokenError, None),
    "401 of a server that asks for a password": (401, b"<html><h1>401 Authorization Required</h1></html>", errors.AccessTokenError, "unreadableAnswer"),
    "407 of a proxy": (407, b"<html><h1>Proxy login</h1></html>", errors.RefusedError, "unreadableAnswer"),
    # The ban, whose status is not documented.
    **{
        f"ban {status} JSON": (status, {"status": 1111, "wait": 5, "source": "x5", "punish": "deny", "uuid": "U-1"}, errors.AddressBannedError, "addressBanned")
        for status in (200, 400, 401, 403, 429, 500, 503)
    },
    **{
        f"ban {status} HTML": (status, b'  <!DOCTYPE html>\n<html><script src="//g.alicdn.com/sd/baxia/baxiaCommon.js"></script></html>', errors.AddressBannedError, "addressBanned")
        for status in (200, 400, 403, 429, 503)
    },
    "ban 403 HTML without marks": (403, b"<!DOCTYPE html><html><body>Access denied</body></html>", errors.AddressBannedError, "addressBanned"),
    # Redirects.
    **{
        f"redirect {status}": (status, b"", errors.RedirectError, "redirect")
        for status in (301, 302, 303, 304, 307, 308)
    },
}  # fmt: skip

MARKS = [
    b"x5secdata=1",
    b"https://api.dingtalk.com/_____tmd_____/punish?x=1",
    b'{"action":"x","punish":"deny"}',
    b'<script src="https://g.alicdn.com/sd/punish/deny_pc.html">',
    b'<script src="https://gw.alicdn.com/x/deny.js">',
    b"window.baxiaCommon",
]
NO_MARKS = [
    b"deny", b"Access is denied by policy 1111", b"violations are punished", b"we may punish you",
    b'<p class="deny">no</p>', b"action=deny", b'<script src="//g.alicdn.com/alilog/mlog/aplus.js">',
]  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
def test_a_page_with_a_mark_of_the_firewall_is_the_ban(mark: bytes) -> None:
    for status in (200, 400, 403, 500):
        assert type(error_of(status, b"<html>" + mark + b"</html>")) is errors.AddressBannedError


@pytest.mark.parametrize("words", NO_MARKS)
def test_a_page_with_words_like_the_firewalls_is_no_ban(words: bytes) -> None:
    for status in (200, 400, 500):
        assert error_of(status, b"<html>" + words + b"</html>").code != "addressBanned"


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


def test_a_page_is_not_retried_at_once() -> None:
    page = b"<html><h1>Welcome</h1> to <b>our</b> network<script>let x = 1</script></html>"
    error = error_of(200, page)
    assert (error.message, error.repeat, error.outcome) == (
        "an HTML page came, not JSON: Welcome to our network",
        False,
        Outcome.RETRY,
    )


def test_a_page_is_named_by_its_title_and_shortened() -> None:
    page = b"<!DOCTYPE html><html><head><title>\n Maintenance </title></head></html>"
    assert error_of(403, page).message.endswith(": Maintenance")
    for odd in (b"<title" * 150_000, b"<script" * 140_000, b"alicdn.com/" * 90_000, b"x" * 1_000_000):
        assert len(str(error_of(400, b"<html>" + odd))) < 1_000


@pytest.mark.parametrize("name", DECISIONS)
def test_every_response_is_one_error(name: str) -> None:
    status, body, kind, code = DECISIONS[name]
    error = error_of(status, body)
    assert (type(error), error.code, error.http_status) == (kind, code, status)
    assert str(error).isprintable()


def test_deprecated_forms_of_the_message_are_read() -> None:
    for name in ("message", "Message", "errmsg"):
        assert error_of(400, {"code": "x", name: "said"}).message == "said"


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ({"code": "conf.readonly", "message": "the host has left"}, ": conf.readonly: the host has left"),
        ({"Code": "conf.readonly"}, ": conf.readonly"),
        ({"code": "0", "Message": "the host\x1b\nhas left"}, ": the host has left"),
        ({"code": None, "message": ["x"]}, ""),
    ],
)
def test_the_error_says_why_a_response_does_not_confirm(body: dict[str, Any], reasons: str) -> None:
    error = error_of(200, {"success": False, **body})
    assert (error.code, error.message) == ("notConfirmed", f"success is false in the response{reasons}")


def test_the_error_says_briefly_why_a_response_does_not_confirm() -> None:
    message = error_of(200, {"success": False, "code": "x", "message": "y" * 10_000}).message
    assert message.startswith("success is false in the response: x: yyy")
    assert len(message) < 310


@pytest.mark.parametrize("call", [LOCK, OTHER, TOKEN])
def test_success_that_is_false_is_an_error_of_any_call(call: Call) -> None:
    error = error_of(200, {"success": False, "message": "no"}, call=call)
    assert (error.code, error.message) == ("notConfirmed", "success is false in the response: no")


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
    assert type(error_of(status, body, call=TOKEN)) is kind


def test_an_unknown_error_of_a_token_call_points_at_client_id_and_organisation() -> None:
    said = str(error_of(500, {"code": "unknownError", "requestid": "R-1"}, call=TOKEN))
    assert "Check Client ID (login) and Organisation (corpId) in the connection first" in said
    assert "DingTalk's side" not in said


def test_the_permission_points_that_dingtalk_names_are_the_ones_to_grant() -> None:
    code = "Forbidden.AccessDenied.AccessTokenPermissionDenied"
    named = {"requiredScopes": ["Contact.User.Read", "qyapi_x", 7]}
    error = error_of(403, {"code": code, "accessdenieddetail": named})
    assert "grants the app Contact.User.Read, qyapi_x." in str(error)
    assert "VideoConference" not in str(error)
    assert str(DingTalkError.from_dict(error.as_dict())) == str(error)
    for nothing in (None, [], {"requiredScopes": []}, {"requiredScopes": "x"}, {"requiredScopes": [None]}):
        assert ERRORS[code].remedy in str(error_of(403, {"code": code, "accessdenieddetail": nothing}))


def test_a_bare_403_may_be_a_permission_or_a_rate_limit() -> None:
    for body in (b"", {}, {"code": "Forbidden.Something"}):
        said = str(error_of(403, body))
        assert "permission" in said
        assert "rate limit" in said


# Any body


@pytest.mark.parametrize(
    ("status", "body", "content"),
    [
        (200, b"", None), (204, b"", None), (202, b" \n", None), (200, b"null", None), (200, b"[1]", [1]),
        (200, b"[]", []), (200, b"true", True), (200, b"false", False), (200, b"7", 7), (200, b'"x"', "x"),
        (201, b'{"a":1}', {"a": 1}), (200, b"{}", {}),
    ],
)  # fmt: skip
def test_any_json_or_nothing_is_a_success_of_any_call(status: int, body: bytes, content: Any) -> None:
    result = read(status, body, {"x-acs-request-id": "R-1"}, call=OTHER)
    assert result == CallResult(content, "R-1")
    assert type(result.content) is type(content)


def test_a_documented_call_needs_its_object() -> None:
    for body in (b"", b"[]", b"true", b"null"):
        assert error_of(200, body, call=conference_call(check_reference("x"))).code == "unreadableAnswer"
    for status, body in ((500, b""), (400, b"[1]"), (200, b"OK"), (200, b"<html></html>")):
        assert error_of(status, body, call=OTHER).http_status == status


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


def test_retry_after_goes_before_the_tables_wait() -> None:
    code = "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi"
    assert error_of(403, {"code": code}).retry_after == 60.0
    assert error_of(403, {"code": code}, {"retry-after": "7"}).retry_after == 7.0
    assert error_of(403, {"code": code}, {"retry-after": "soon"}).retry_after == 60.0


CHINA = timezone(timedelta(hours=8))


@pytest.mark.parametrize(
    ("seconds", "wait"), [(5, 5.0), (0, 0.0), (-60, 0.0), (3_600, 3_600.0), (864_000, 3_600.0)]
)
@pytest.mark.parametrize("what", ["限制", "处罚"])
def test_a_limit_lasts_until_the_moment_that_the_message_names(what: str, seconds: int, wait: float) -> None:
    end = datetime.fromtimestamp(NOW + seconds, CHINA).strftime("%Y-%m-%d %H:%M:%S")
    body = {
        "code": "Forbidden.AccessDenied.QpsLimitForApi",
        "message": f"请求总次数超过20次, {what}将在 {end} 结束",
    }
    assert error_of(403, body).retry_after == wait
    assert error_of(403, body, {"retry-after": "7"}).retry_after == 7.0


def test_an_invalid_moment_is_no_wait() -> None:
    body = {"errcode": 90018, "errmsg": "限制将在 2026-99-09 12:00:01 结束"}
    assert error_of(400, body).retry_after is None
    body = {"code": "paramsError", "message": "将在 2026-05-09 12:00:01 结束"}
    assert error_of(400, body).retry_after is None, "it is no rate limit"


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


# Hostile answers


def test_a_compression_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(b"{" + b" " * (50 * MAX_RESPONSE_BYTES))
    assert len(bomb) < MAX_RESPONSE_BYTES
    error = error_of(200, bomb, {"content-encoding": "gzip"})
    assert error.code == "unreadableAnswer"
    assert str(MAX_RESPONSE_BYTES) in error.message


def test_a_response_of_just_the_greatest_length_is_read() -> None:
    body = b'{"success":true}'
    assert read(200, body + b" " * (MAX_RESPONSE_BYTES - len(body))).content == {"success": True}


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


def test_a_long_or_strange_message_becomes_one_short_line() -> None:
    message = error_of(400, {"code": "x", "message": "a\r\n\x1b[31mb\u202e\ud800 " * 200}).message
    assert message.isprintable()
    assert len(message) < 310
    assert message.startswith("a [31mb")
